#include "client/store_pipeline.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/limits.h"

namespace latentkv {

StorePipeline::StorePipeline(const Parts& parts)
    : parts_(parts),
      raw_bytes_(RawBytes(parts.codec->geometry(), kBlockTokens)),
      budget_(parts.staging_bytes_max),
      ledger_(parts.counters, parts.log, parts.clock),
      sender_(parts.channel, &ledger_),
      encoders_(parts.codec, parts.options, &ledger_, parts.thread_count,
                [this](StagedBlock block) { sender_.Push(std::move(block)); }) {}

std::unique_ptr<Job> StorePipeline::Store(StoreRequest request) {
  auto progress = std::make_shared<StoreProgress>(request.slots.size());
  std::vector<StagedBlock> staged = Stage(&request, progress);
  std::vector<BlockCopy> copies;
  for (const StagedBlock& block : staged) copies.push_back({request.slots[block.index], block.raw.get()});
  absl::StatusOr<DeviceEventPtr> complete = DeviceEventPtr();
  if (!copies.empty()) complete = request.pages->Gather(copies, request.stream);
  if (!complete.ok()) {
    parts_.log->Warn(Failure::kStore, absl::StrCat("blocks are not stored, since their pages cannot be read: ",
                                                   complete.status().message()));
  }
  for (StagedBlock& block : staged) {
    if (!complete.ok()) {
      Drop(block.key, progress.get(), block.index);
      continue;
    }
    block.raw_complete = *complete;
    parts_.losses->Computed(block.key);
    ledger_.Admit(&block);
    encoders_.Push(std::move(block));
  }
  return MakeStoreJob(std::move(progress));
}

std::vector<StagedBlock> StorePipeline::Stage(StoreRequest* request, const std::shared_ptr<StoreProgress>& progress) {
  const absl::Span<const Digest> keys = request->keys;
  const auto tokens = std::make_shared<const std::vector<uint32_t>>(std::move(request->tokens));
  const size_t first = request->first_block;
  const float inherited = parts_.losses->Inherited(keys.first(first));
  bool dropping = parts_.breaker->refuses() || (first > 0 && ledger_.Lost(keys[first - 1]));
  std::vector<StagedBlock> staged;
  for (size_t i = 0; i < request->slots.size(); ++i) {
    const size_t at = first + i;
    StagedBlock block;
    block.key = keys[at];
    if (at > 0) block.parent = keys[at - 1];
    if (!dropping) {
      block.share = budget_.Take(raw_bytes_);
      if (block.share) block.raw = request->pages->TakeBuffer();
      dropping = block.raw == nullptr;
      if (dropping) parts_.log->Warn(Failure::kQueueFull, "too much waits to be sent: the rest of a chain is dropped");
    }
    if (dropping) {
      Drop(block.key, progress.get(), i);
      continue;
    }
    block.first_token = at * kBlockTokens;
    block.chain_tokens = tokens;
    block.loss_inherited = inherited;
    block.raw_bytes = raw_bytes_;
    block.progress = progress;
    block.index = i;
    staged.push_back(std::move(block));
  }
  return staged;
}

void StorePipeline::Drop(const Digest& key, StoreProgress* progress, uint32_t index) {
  ledger_.Dropped(key);
  progress->Lost(index);
}

}  // namespace latentkv
