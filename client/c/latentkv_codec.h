/* latentkv: the codec without a daemon, for calibrating and evaluating.
 * Conventions as in latentkv.h. */
#ifndef LATENTKV_CLIENT_C_LATENTKV_CODEC_H_
#define LATENTKV_CLIENT_C_LATENTKV_CODEC_H_

#include "latentkv.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct latentkv_codec latentkv_codec;

/* One group of a basis, as the calibrator made it (codec/basis.h says what each
 * array means). */
typedef struct {
  uint32_t first_layer, last_layer, channels, rank;
  const float *mean, *feature_scale, *row_scale, *weight,
      *sensitivity; /* [channels]; feature_scale NULL without features */
  const float* latent_scale; /* [rank] */
  const int8_t* decoder; /* [rank + inherited_rank * groups before][channels] */
  const int8_t*
      feature_rows; /* [history * dims][channels], NULL without features */
} latentkv_basis_group;

typedef struct {
  const char* name;
  float step, loss_own_max;
} latentkv_basis_profile;

/* The KV cache of a chain's first 4 tokens: for each layer K (rotated) then V,
 * [4][kv_heads][head_dim], of V value_dim. */
typedef struct {
  uint32_t tokens[4];
  const float* values;
} latentkv_basis_sinks;

typedef struct {
  size_t struct_bytes;
  const char* description; /* NULL for "" */
  const latentkv_layer* layers;
  uint32_t layer_count;
  uint32_t vocabulary, dims, history; /* 0, 0, 0 without features */
  const int8_t* embedding;            /* [vocabulary][dims] */
  uint32_t inherited_rank;
  uint32_t sink_count, profile_count, group_count;
  const latentkv_basis_sinks* sinks;
  const latentkv_basis_profile* profiles;
  const latentkv_basis_group* groups;
} latentkv_basis;

/* Writes a basis file, whole or not at all; digest is [32]. */
LATENTKV_API latentkv_code latentkv_basis_write(const char* path,
                                                const latentkv_basis* basis,
                                                uint8_t* digest);

/* basis_path NULL: exact, and blocks that are quantized without a basis. */
LATENTKV_API latentkv_code latentkv_codec_open(const char* basis_path,
                                               const latentkv_layer* layers,
                                               uint32_t layer_count,
                                               latentkv_codec** codec);
LATENTKV_API void latentkv_codec_close(latentkv_codec* codec);
/* Step and guard of a profile of the codec's basis; without one, of
 * "uncalibrated". */
LATENTKV_API latentkv_code latentkv_codec_profile(latentkv_codec* codec,
                                                  const char* name, float* step,
                                                  float* loss_own_max);

/* raw: one block of 64 tokens at position first_token, for each layer K then V,
 * [64][kv_heads][head_dim], of V value_dim, in the layer's dtype, keys rotated.
 * tokens: of the chain up to the block's last, first_token + 64 of them. step
 * 0: exact. *frame is freed by latentkv_free. */
LATENTKV_API latentkv_code latentkv_encode(
    latentkv_codec* codec, const uint32_t* tokens, uint32_t first_token,
    const uint8_t* raw, size_t raw_bytes, float step, float loss_own_max,
    uint8_t** frame, size_t* frame_bytes, float* loss_own);
LATENTKV_API latentkv_code latentkv_decode(
    latentkv_codec* codec, const uint32_t* tokens, uint32_t first_token,
    const uint8_t* frame, size_t frame_bytes, uint8_t* raw, size_t raw_bytes);

#ifdef __cplusplus
}
#endif

#endif /* LATENTKV_CLIENT_C_LATENTKV_CODEC_H_ */
