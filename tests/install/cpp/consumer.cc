// An engine in C++: stores a block of a made-up model, finds it again, and
// loads it into another page.
#include <latentkv/client/client.h>

#include <algorithm>
#include <cstdio>
#include <vector>

int main(int, char** arguments) {
  latentkv::LayerGeometry layer;
  layer.kv_heads = 2;
  layer.head_dim = 64;
  latentkv::ClientOptions options;
  options.address = arguments[1];
  options.scope.model.bytes[0] = 1;
  options.geometry.layers = {layer};
  auto client = latentkv::Client::Open(options);
  if (!client.ok()) return std::puts(client.status().ToString().c_str()), 1;

  // Of a page: tokens, heads, dimensions, bf16. Values lie behind.
  constexpr int64_t kKeysBytes = 64 * 2 * 64 * 2;
  std::vector<uint8_t> memory(2 * 2 * kKeysBytes);
  for (int64_t i = 0; i < 2 * kKeysBytes; ++i) memory[i] = i % 251;
  const latentkv::PageStrides strides = {2 * kKeysBytes, 256, 128, 2};
  latentkv::PagedCache pages;
  pages.layers = {
      {memory.data(), memory.data() + kKeysBytes, strides, strides}};
  pages.page_tokens = 64;
  pages.page_count = 2;
  if (!(*client)->RegisterPages(pages).ok()) return 2;

  const std::vector<uint32_t> tokens(64, 7);
  auto stored = (*client)->Store({tokens, {}}, 0, 64, {0});
  if (!stored.ok() || (*stored)->Wait(-1, absl::Seconds(20))->token_count != 64)
    return 3;
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  if (*(*client)->Match({tokens, {}}, absl::Seconds(1), deadline) != 64)
    return 4;
  auto loaded = (*client)->Load({tokens, {}}, 0, 64, {1}, deadline);
  if (!loaded.ok() || (*loaded)->Wait(-1, absl::Seconds(20))->token_count != 64)
    return 5;
  return std::equal(memory.begin(), memory.begin() + 2 * kKeysBytes,
                    memory.begin() + 2 * kKeysBytes)
             ? 0
             : 6;
}
