// The loops behind kernels/rotary.h, one a backend: AVX-512 machines use the
// AVX2 ones, which memory already limits.
#ifndef LATENTKV_KERNELS_CPU_ROTARY_BACKENDS_H_
#define LATENTKV_KERNELS_CPU_ROTARY_BACKENDS_H_

#include <cstddef>
#include <cstdint>

namespace latentkv::kernels {

// One head: pairs (i, i + pairs) if halves, else (2i, 2i + 1). `undo` turns the
// other way.
void RotateHeadPortable(float* head, const float* cosine, const float* sine,
                        uint32_t pairs, bool halves, bool undo);
void RotateHeadAvx2(float* head, const float* cosine, const float* sine,
                    uint32_t pairs, bool halves, bool undo);

uint16_t Bf16FromFloat(float value);
uint16_t Fp16FromFloat(float value);
uint8_t Fp8FromFloat(float value);
float FloatFromBf16(uint16_t bits);
float FloatFromFp16(uint16_t bits);
float FloatFromFp8(uint8_t bits);

// Convert a leading part, and return how many values that was.
size_t Bf16FromFloatsAvx2(const float* from, size_t count, uint8_t* to);
size_t Fp16FromFloatsAvx2(const float* from, size_t count, uint8_t* to);
size_t FloatsFromBf16Avx2(const uint8_t* from, size_t count, float* to);
size_t FloatsFromFp16Avx2(const uint8_t* from, size_t count, float* to);

}  // namespace latentkv::kernels

#endif  // LATENTKV_KERNELS_CPU_ROTARY_BACKENDS_H_
