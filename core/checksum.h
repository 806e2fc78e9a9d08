// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as iSCSI and RocksDB
// use it.
#ifndef LATENTKV_CORE_CHECKSUM_H_
#define LATENTKV_CORE_CHECKSUM_H_

#include <cstdint>

#include "core/bytes.h"

namespace latentkv {

// CRC-32C of `bytes` continued from `crc` (0 to start). Uses SSE4.2 where the
// processor has it, three streams at a time; equal to the table-driven loop on
// every input.
uint32_t Crc32c(ByteSpan bytes, uint32_t crc = 0);

}  // namespace latentkv

#endif  // LATENTKV_CORE_CHECKSUM_H_
