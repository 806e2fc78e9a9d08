#include "client/encode_workers.h"

#include <sys/resource.h>

#include <exception>
#include <utility>

#include "core/limits.h"

namespace latentkv {
namespace {

// The engine's threads wait for each other, so that taking a core from one of
// them stops all. With a tenth of a core, which this leaves the encoder beside
// a busy engine, it still encodes 1000 tokens of SmolLM2 a second: more than
// that engine computes on two cores.
constexpr int kNiceness = 10;

}  // namespace

EncodeWorkers::EncodeWorkers(const Codec* codec, const EncodeOptions& options,
                             StoreLedger* ledger, uint32_t thread_count,
                             std::function<void(StagedBlock)> next)
    : codec_(codec),
      options_(options),
      ledger_(ledger),
      next_(std::move(next)) {
  try {
    for (uint32_t i = 0; i < thread_count; ++i)
      threads_.emplace_back([this] { Work(); });
  } catch (...) {  // A thread that cannot be had; those that were must end
                   // before they are destroyed.
    Close();
    throw;
  }
}

EncodeWorkers::~EncodeWorkers() { Close(); }

void EncodeWorkers::Close() {
  closing_ = true;
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

void EncodeWorkers::Work() {
  setpriority(PRIO_PROCESS, 0, kNiceness);  // Of this thread alone, on Linux.
  while (true) {
    uint64_t place = 0;
    std::optional<StagedBlock> block;
    {
      std::lock_guard lock(take_mutex_);
      block = queue_.Pop(absl::InfiniteFuture());
      place = places_++;
    }
    if (!block.has_value()) return;
    absl::Status status;
    if (closing_) {
      status = absl::CancelledError("the client was closed");
    } else if (!ledger_->Lost(block->behind)) {
      status = Encode(&*block);
    }
    Finish(place, {*std::move(block), std::move(status)});
  }
}

void EncodeWorkers::Finish(uint64_t place, Outcome outcome) {
  std::lock_guard lock(finish_mutex_);
  finished_.emplace(place, std::move(outcome));
  for (auto first = finished_.begin();
       first != finished_.end() && first->first == next_place_; ++next_place_) {
    auto& [block, status] = first->second;
    if (!status.ok()) {
      ledger_->Failed(block, status);
    } else if (block.frame == nullptr || ledger_->Lost(block.behind)) {
      ledger_->Unreachable(block);
    } else {
      next_(std::move(block));
    }
    first = finished_.erase(first);
  }
}

absl::Status EncodeWorkers::Encode(StagedBlock* block) const try {
  if (block->raw_complete != nullptr) {
    absl::Status status = block->raw_complete->Wait();
    if (!status.ok()) return status;
    block->raw_complete.reset();
  }
  EncodeOptions options = options_;
  options.loss_inherited = block->loss_inherited;
  const absl::Span<const uint32_t> tokens(block->chain_tokens->data(),
                                          block->first_token + kBlockTokens);
  absl::StatusOr<Bytes> frame =
      codec_->Encode({block->key, block->first_token, tokens},
                     ByteSpan(block->raw.get(), block->raw_bytes), options);
  if (!frame.ok()) return frame.status();
  block->raw.reset();
  block->share.Resize(frame->size());
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(*frame, frame->size());
  if (!header.ok()) return header.status();
  block->exact = header->encoding.IsExact();
  block->loss_chain = header->loss_chain;
  block->frame = std::make_shared<const Bytes>(*std::move(frame));
  return absl::OkStatus();
} catch (const std::exception& error) {
  return absl::ResourceExhaustedError(error.what());
}

}  // namespace latentkv
