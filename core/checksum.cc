#include "core/checksum.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace latentkv {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Reflected.
// Three streams hide the latency of the instruction; runs of this length are
// joined by moving a checksum over zeros.
constexpr size_t kStreamBytes = 2048;

using Table = std::array<uint32_t, 256>;

constexpr Table MakeByteTable() {
  Table table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit)
      crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}
constexpr Table kByteTable = MakeByteTable();

uint32_t Portable(const uint8_t* bytes, size_t count, uint32_t crc) {
  for (size_t i = 0; i < count; ++i)
    crc = crc >> 8 ^ kByteTable[(crc ^ bytes[i]) & 0xff];
  return crc;
}

#if defined(__x86_64__)
// What kStreamBytes zero bytes make of a checksum: linear in its bits, so one
// table for each of its bytes.
class ZeroRun {
 public:
  ZeroRun() {
    for (uint32_t byte = 0; byte < 4; ++byte) {
      tables_[byte][0] = 0;
      for (uint32_t value = 1; value < 256; ++value) {
        const uint32_t rest = value & (value - 1);
        uint32_t crc = value << (8 * byte);
        // A single bit is worked out, and several are the sum of their own.
        for (size_t i = 0; rest == 0 && i < kStreamBytes; ++i)
          crc = crc >> 8 ^ kByteTable[crc & 0xff];
        tables_[byte][value] =
            rest == 0 ? crc : tables_[byte][rest] ^ tables_[byte][value ^ rest];
      }
    }
  }
  uint32_t Over(uint32_t crc) const {
    return tables_[0][crc & 0xff] ^ tables_[1][crc >> 8 & 0xff] ^
           tables_[2][crc >> 16 & 0xff] ^ tables_[3][crc >> 24];
  }

 private:
  std::array<Table, 4> tables_;
};

uint64_t Word(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

__attribute__((target("sse4.2"))) uint32_t Hardware(const uint8_t* bytes,
                                                    size_t count,
                                                    uint32_t crc) {
  static const ZeroRun zeros;
  for (; count >= 3 * kStreamBytes;
       bytes += 3 * kStreamBytes, count -= 3 * kStreamBytes) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t i = 0; i < kStreamBytes; i += 8) {
      a = _mm_crc32_u64(a, Word(bytes + i));
      b = _mm_crc32_u64(b, Word(bytes + kStreamBytes + i));
      c = _mm_crc32_u64(c, Word(bytes + 2 * kStreamBytes + i));
    }
    crc = zeros.Over(zeros.Over(a) ^ static_cast<uint32_t>(b)) ^
          static_cast<uint32_t>(c);
  }
  for (; count >= 8; bytes += 8, count -= 8)
    crc = _mm_crc32_u64(crc, Word(bytes));
  for (; count > 0; ++bytes, --count) crc = _mm_crc32_u8(crc, *bytes);
  return crc;
}
#endif

}  // namespace

uint32_t Crc32c(ByteSpan bytes, uint32_t crc) {
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  if (hardware) return ~Hardware(bytes.data(), bytes.size(), ~crc);
#endif
  return ~Portable(bytes.data(), bytes.size(), ~crc);
}

}  // namespace latentkv
