// Every bound that more than one folder relies on, with its derivation.
#ifndef LATENTKV_CORE_LIMITS_H_
#define LATENTKV_CORE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace latentkv {

// Tokens of a block: design, section 1.
inline constexpr uint32_t kBlockTokens = 64;
// Attention sinks at the start of a chain, kept at 8 bits.
inline constexpr uint32_t kSinkTokens = 4;
// Twice the deepest model served today (126 layers).
inline constexpr uint32_t kLayersMax = 256;
// A group holds at least one layer.
inline constexpr uint32_t kGroupsMax = kLayersMax;
// K and V channels of one group: 64 layers x 2 x 8 heads x 128.
inline constexpr uint32_t kChannelsMax = 1u << 17;
// 2 M tokens in one conversation.
inline constexpr uint32_t kChainBlocksMax = 1u << 15;
// An exact block of the largest geometry served: 64 tokens x 4 MiB.
inline constexpr size_t kFrameBytesMax = 256u << 20;
// One block's image digests: 64 tokens x 64 bytes.
inline constexpr size_t kExtraBytesMax = 4096;
inline constexpr size_t kSessionNameBytesMax = 256;
// 2 M tokens of u32, the longest chain.
inline constexpr size_t kSessionRecordBytesMax = 8u << 20;
inline constexpr size_t kBasisBytesMax = size_t{4} << 30;

static_assert(kChainBlocksMax * kBlockTokens * sizeof(uint32_t) <=
              kSessionRecordBytesMax);

}  // namespace latentkv

#endif  // LATENTKV_CORE_LIMITS_H_
