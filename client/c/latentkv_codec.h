/* latentkv: the codec without a daemon, for calibrating and evaluating. Conventions as in latentkv.h. */
#ifndef LATENTKV_CLIENT_C_LATENTKV_CODEC_H_
#define LATENTKV_CLIENT_C_LATENTKV_CODEC_H_

#include "latentkv.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct latentkv_codec latentkv_codec;

/* One group of a basis, as the calibrator made it (codec/basis.h says what each array means). */
typedef struct {
  uint32_t first_layer, last_layer, channels, rank;
  const float *mean, *row_scale, *weight, *sensitivity; /* [channels] */
  const float* latent_scale;                            /* [rank] */
  const int8_t* decoder;                                /* [rank][channels] */
} latentkv_basis_group;

typedef struct {
  const char* name;
  float step, loss_own_max;
} latentkv_basis_profile;

/* Writes a basis file, whole or not at all; digest is [32]. */
LATENTKV_API latentkv_code latentkv_basis_write(const char* path, const latentkv_layer* layers, uint32_t layer_count,
                                                const latentkv_basis_group* groups, uint32_t group_count,
                                                const latentkv_basis_profile* profiles, uint32_t profile_count,
                                                const char* description, uint8_t* digest);

/* basis_path NULL: exact alone. */
LATENTKV_API latentkv_code latentkv_codec_open(const char* basis_path, const latentkv_layer* layers,
                                               uint32_t layer_count, latentkv_codec** codec);
LATENTKV_API void latentkv_codec_close(latentkv_codec* codec);
/* Step and guard of a profile of the codec's basis. */
LATENTKV_API latentkv_code latentkv_codec_profile(latentkv_codec* codec, const char* name, float* step,
                                                  float* loss_own_max);

/* raw: one block of 64 tokens at position first_token, for each layer K then V, [64][kv_heads][head_dim] in the layer's
 * dtype, keys rotated. step 0: exact. *frame is freed by latentkv_free. */
LATENTKV_API latentkv_code latentkv_encode(latentkv_codec* codec, uint32_t first_token, const uint8_t* raw,
                                           size_t raw_bytes, float step, float loss_own_max, uint8_t** frame,
                                           size_t* frame_bytes, float* loss_own);
LATENTKV_API latentkv_code latentkv_decode(latentkv_codec* codec, uint32_t first_token, const uint8_t* frame,
                                           size_t frame_bytes, uint8_t* raw, size_t raw_bytes);

#ifdef __cplusplus
}
#endif

#endif /* LATENTKV_CLIENT_C_LATENTKV_CODEC_H_ */
