/* An engine in C: keeps a session's record and gets it back. */
#include <latentkv/latentkv.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char** argv) {
  const uint8_t model[32] = {1};
  const latentkv_layer layer = {.kv_heads = 2, .head_dim = 64, .rotary_scale = 1, .dtype = 1};
  const latentkv_options options = {.struct_bytes = sizeof(options),
                                    .address = argc > 1 ? argv[1] : NULL,
                                    .model_digest = model,
                                    .layers = &layer,
                                    .layer_count = 1};
  latentkv_client* client = NULL;
  uint8_t* record = NULL;
  size_t bytes = 0;
  int right = latentkv_open(&options, &client) == LATENTKV_OK &&
              latentkv_session_put(client, "talk", (const uint8_t*)"said", 4, 20000) == LATENTKV_OK &&
              latentkv_session_get(client, "talk", &record, &bytes, 20000) == LATENTKV_OK && bytes == 4 &&
              memcmp(record, "said", 4) == 0;
  if (!right) fprintf(stderr, "latentkv %s: %s\n", latentkv_version(), latentkv_error());
  latentkv_free(record);
  latentkv_close(client);
  return right ? 0 : 1;
}
