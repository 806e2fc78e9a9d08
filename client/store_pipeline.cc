#include "client/store_pipeline.h"

#include <utility>

#include "core/limits.h"

namespace latentkv {

StorePipeline::StorePipeline(const Parts& parts)
    : parts_(parts),
      raw_bytes_(RawBytes(parts.codec->geometry(), kBlockTokens)),
      buffers_(raw_bytes_),
      budget_(parts.staging_bytes_max),
      ledger_(parts.counters, parts.log, parts.clock),
      sender_(parts.channel, &ledger_),
      encoders_(parts.codec, parts.options, &ledger_, parts.thread_count,
                [this](StagedBlock block) { sender_.Push(std::move(block)); }) {}

std::unique_ptr<Job> StorePipeline::Store(StoreRequest request) {
  const absl::Span<const Digest> keys = request.keys;
  const size_t count = request.slots.size();
  auto progress = std::make_shared<StoreProgress>(count);
  const auto tokens = std::make_shared<const std::vector<uint32_t>>(std::move(request.tokens));
  const float inherited = parts_.losses->Inherited(keys.first(request.first_block));
  bool dropping = parts_.breaker->refuses();
  for (size_t i = 0; i < count; ++i) {
    const size_t at = request.first_block + i;
    StagedBlock block;
    block.key = keys[at];
    if (at > 0) block.parent = keys[at - 1];
    dropping = dropping || ledger_.Lost(block.parent);
    if (!dropping) {
      block.share = budget_.Take(raw_bytes_);
      dropping = !block.share;
      if (dropping) parts_.log->Warn(Failure::kQueueFull, "too much waits to be sent: the rest of a chain is dropped");
    }
    if (dropping) {
      ledger_.Dropped(block.key);
      progress->Lost(i);
      continue;
    }
    block.first_token = at * kBlockTokens;
    block.chain_tokens = tokens;
    block.loss_inherited = inherited;
    block.raw = buffers_.Take();
    block.raw_bytes = raw_bytes_;
    GatherRaw(parts_.codec->geometry(), *request.pages, request.slots[i], {block.raw.get(), raw_bytes_});
    block.progress = progress;
    block.index = i;
    parts_.losses->Computed(block.key);
    ledger_.Admit(&block);
    encoders_.Push(std::move(block));
  }
  return MakeStoreJob(std::move(progress));
}

}  // namespace latentkv
