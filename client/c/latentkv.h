/* latentkv: the C interface of the client library.
 *
 * Conventions:
 *  1. Handles are opaque. Each has one function that frees it; NULL is accepted
 * there.
 *  2. A function that can fail returns a latentkv_code, 0 for success.
 * latentkv_error() then tells the calling thread why.
 *  3. Strings are UTF-8 and end in 0; other input is pointer and length.
 * Nothing of the caller's is kept after a call returns, except the page memory
 * given to latentkv_register_pages.
 *  4. No call throws, and none waits longer than the deadline it is given. A
 * daemon that is away is a miss.
 *  5. Any thread may call; one job is waited for by one thread at a time.
 *  6. Structs that are passed in begin with struct_bytes = sizeof(struct), so
 * that they can grow.
 */
#ifndef LATENTKV_CLIENT_C_LATENTKV_H_
#define LATENTKV_CLIENT_C_LATENTKV_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LATENTKV_API __attribute__((visibility("default")))

typedef enum {
  LATENTKV_OK = 0,
  LATENTKV_INVALID_ARGUMENT = 3,
  LATENTKV_DEADLINE_EXCEEDED = 4,
  LATENTKV_NOT_FOUND = 5,
  LATENTKV_RESOURCE_EXHAUSTED = 8,
  LATENTKV_FAILED_PRECONDITION = 9,
  LATENTKV_UNIMPLEMENTED = 12,
  LATENTKV_INTERNAL = 13,
  LATENTKV_UNAVAILABLE = 14,
  LATENTKV_DATA_LOSS = 15
} latentkv_code;

/* The reason of the calling thread's last failure; valid until its next call.
 */
LATENTKV_API const char* latentkv_error(void);
LATENTKV_API const char* latentkv_version(void);

typedef struct latentkv_client latentkv_client;
typedef struct latentkv_job latentkv_job;

/* One layer of the model. dtype: 1 bf16, 2 fp16, 3 fp32, 4 fp8 e4m3. pairing: 0
 * none, 1 halves, 2 neighbours. */
typedef struct {
  uint32_t kv_heads, head_dim, rotary_dim, pairing;
  float rotary_scale;
  uint32_t window, dtype;
  /* Of a head's values where they have another number of dimensions than keys,
   * 0 where not: of multi-head latent attention head_dim is what is rotated,
   * the values are the latent. */
  uint32_t value_dim;
  const double* inverse_frequencies; /* [rotary_dim / 2] */
} latentkv_layer;

typedef struct {
  size_t struct_bytes;
  const char* address;           /* "127.0.0.1:7430" or "unix:/path" */
  const char* tenant;            /* NULL for "" */
  const char* salt;              /* NULL for "" */
  const uint8_t* model_digest;   /* [32] */
  const uint8_t* adapter_digest; /* [32] or NULL */
  const latentkv_layer* layers;
  uint32_t layer_count;
  const char* basis_path; /* NULL: exact or uncalibrated */
  const char* profile;    /* "exact", "uncalibrated"; of a basis "high",
                             "balanced", "small"; NULL: "exact" */
  float step;             /* Above 0: instead of the profile's */
  float loss_chain_max;   /* What a reader accepts; 0: four times the profile's
                             bound */
  uint64_t
      staging_bytes_max; /* Bound of what waits to be sent; 0 for 256 MiB */
  uint32_t thread_count; /* That encode, and as many that decode; 0 for the
                            machine's cores, 4 at most */
  /* A rank of an engine whose KV heads are split over several: its pages hold
   * its heads alone, and every rank stores the same blocks in the same order
   * (client/client.h). layers are the whole model's. */
  uint32_t tensor_parallel_rank;
  uint32_t tensor_parallel_ranks;      /* 0 or 1: no other */
  const char* tensor_parallel_meeting; /* Path of the sockets that ranks meet
                                          at; NULL for a single rank */
} latentkv_options;

/* Never connects: a daemon that is away shows as misses. */
LATENTKV_API latentkv_code latentkv_open(const latentkv_options* options,
                                         latentkv_client** client);
LATENTKV_API void latentkv_close(latentkv_client* client);

/* Bytes between neighbours in a page tensor (kernels/pages.h). */
typedef struct {
  int64_t page, token, head, dim;
} latentkv_strides;
typedef struct {
  void* key;
  void* value;
  latentkv_strides key_strides, value_strides;
} latentkv_page_layer;

/* Before load and store, which take the pages that were registered last. All in
 * host memory, or all in that of one device (latentkv_supports_devices); the
 * library finds out which. They must outlive the client, or, when others were
 * registered in their place, the loads that were begun with them and what was
 * queued on the streams of stores. */
LATENTKV_API latentkv_code latentkv_register_pages(
    latentkv_client* client, const latentkv_page_layer* layers,
    uint32_t layer_count, uint32_t page_tokens, uint64_t page_count);

/* 1 if this library can reach pages in CUDA device memory, 0 if it was built
 * without: then memory of a device, which it takes for the host's, must not be
 * given to it. Says nothing about whether the machine has a device. */
LATENTKV_API int latentkv_supports_devices(void);

typedef struct {
  uint32_t block; /* Index of the block of 64 tokens. */
  const uint8_t* bytes;
  size_t byte_count;
} latentkv_extra;

typedef struct {
  size_t struct_bytes;
  const uint32_t* tokens;
  size_t token_count;
  const latentkv_extra* extras; /* Sorted by block */
  size_t extra_count;
  const char* salt; /* Overrides the client's; NULL keeps it */
} latentkv_prompt;

/* Tokens of the longest stored prefix, a multiple of 64, which the daemon then
 * keeps for lease_ms. 0 and LATENTKV_OK when nothing is stored or the daemon is
 * away. */
LATENTKV_API latentkv_code latentkv_match(latentkv_client* client,
                                          const latentkv_prompt* prompt,
                                          uint32_t lease_ms,
                                          uint32_t deadline_ms,
                                          uint64_t* token_count);

/* Begins to fill tokens [first, first + count) of the prompt, whose pages are
 * page_ids (of the whole prompt, one for each page_tokens). first and count are
 * multiples of 64. stream: a cudaStream_t; pages on a device are written behind
 * what is queued in it now. NULL is the default stream; of pages in host memory
 * it says nothing. */
LATENTKV_API latentkv_code latentkv_load(
    latentkv_client* client, const latentkv_prompt* prompt, uint64_t first,
    uint64_t count, const uint64_t* page_ids, size_t page_id_count,
    uint32_t deadline_ms, void* stream, latentkv_job** job);

/* Begins to store the whole blocks of [first, first + count): gathers their
 * pages before it returns, then encodes and sends behind the caller's back. A
 * full queue drops the rest of the chain: LATENTKV_OK all the same, counted.
 * job may be NULL. stream: as for load. Of pages on a device it takes what the
 * stream will have written by what is queued in it now; it does not wait for
 * that, but makes what is queued in the stream later wait until the pages are
 * read. A rank of several that lacks what the others store gives no page ids:
 * none of them stores it then. */
LATENTKV_API latentkv_code latentkv_store(latentkv_client* client,
                                          const latentkv_prompt* prompt,
                                          uint64_t first, uint64_t count,
                                          const uint64_t* page_ids,
                                          size_t page_id_count, void* stream,
                                          latentkv_job** job);

typedef struct {
  uint64_t
      token_count; /* Good tokens from `first` on: loaded, or acknowledged. */
  uint64_t frame_bytes;  /* Of those. */
  uint64_t exact_blocks; /* Of those, how many were exact. */
  double loss_chain;     /* Of the last good block. */
  /* Of ranks, the engine counts on the least token_count. */
} latentkv_result;

/* Waits until layer `layer` of a load is in its pages for all good tokens (all
 * layers if negative), or timeout_ms passed: LATENTKV_DEADLINE_EXCEEDED, and
 * the job goes on. On a device, whatever any stream is given afterwards may
 * read them. Then fills result, unless that is NULL. Whatever went wrong
 * in the job shows as a smaller token_count, never as an error. */
LATENTKV_API latentkv_code latentkv_wait(latentkv_job* job, int32_t layer,
                                         uint32_t timeout_ms,
                                         latentkv_result* result);
/* Stops a job that still runs: when it returns, no page is written any more. */
LATENTKV_API void latentkv_job_free(latentkv_job* job);
/* Waits until every store so far was acknowledged or given up. */
LATENTKV_API latentkv_code latentkv_flush(latentkv_client* client,
                                          uint32_t timeout_ms);

/* Since latentkv_open. load_failures: blocks that a load was asked for and did
 * not restore. dropped_blocks: not sent, as the queue was full, the daemon away
 * or a block before not stored. store_failures: not encoded or acknowledged.
 * device_encoded_blocks: of the stored ones, by the device that their pages lay
 * on. guarded_blocks: of the stored ones, not as the profile asks, since they
 * were over its bound of loss or had values that it does not hold: many are a
 * sign of text that the basis was not calibrated on. */
typedef struct {
  uint64_t lookups, hit_tokens, loaded_tokens, loaded_bytes, load_failures;
  uint64_t stored_blocks, stored_bytes, stored_raw_bytes, dropped_blocks,
      store_failures, device_encoded_blocks;
  uint64_t breaker_open; /* 1 while the daemon counts as away */
  uint64_t guarded_blocks;
} latentkv_stats;
LATENTKV_API void latentkv_get_stats(latentkv_client* client,
                                     latentkv_stats* stats);

/* Sessions: a named record of the caller's bytes that survives restarts. */
LATENTKV_API latentkv_code latentkv_session_put(latentkv_client* client,
                                                const char* name,
                                                const uint8_t* record,
                                                size_t record_bytes,
                                                uint32_t deadline_ms);
/* *record is freed by latentkv_free. LATENTKV_NOT_FOUND. */
LATENTKV_API latentkv_code latentkv_session_get(latentkv_client* client,
                                                const char* name,
                                                uint8_t** record,
                                                size_t* record_bytes,
                                                uint32_t deadline_ms);
LATENTKV_API latentkv_code latentkv_session_delete(latentkv_client* client,
                                                   const char* name,
                                                   uint32_t deadline_ms);
LATENTKV_API void latentkv_free(void* memory);

#ifdef __cplusplus
}
#endif

#endif /* LATENTKV_CLIENT_C_LATENTKV_H_ */
