#include "client/encode_worker.h"

#include <sys/resource.h>

#include <exception>
#include <utility>

#include "core/limits.h"

namespace latentkv {
namespace {

// The engine's threads wait for each other, so that taking a core from one of them stops all. With a tenth of a core,
// which this leaves the encoder beside a busy engine, it still encodes 1000 tokens of SmolLM2 a second: more than that
// engine computes on two cores.
constexpr int kNiceness = 10;

}  // namespace

EncodeWorker::EncodeWorker(const Codec* codec, const EncodeOptions& options, StoreLedger* ledger,
                           std::function<void(StagedBlock)> next)
    : codec_(codec), options_(options), ledger_(ledger), next_(std::move(next)), thread_([this] { Work(); }) {}

EncodeWorker::~EncodeWorker() {
  closing_ = true;
  queue_.Close();
  thread_.join();
}

void EncodeWorker::Work() {
  setpriority(PRIO_PROCESS, 0, kNiceness);  // Of this thread alone, on Linux.
  while (std::optional<StagedBlock> block = queue_.Pop(absl::InfiniteFuture())) {
    if (closing_) {
      ledger_->Failed(*block, absl::CancelledError("the client was closed"));
    } else if (ledger_->Lost(block->parent)) {
      ledger_->Unreachable(*block);
    } else if (absl::Status status = Encode(&*block); !status.ok()) {
      ledger_->Failed(*block, status);
    } else {
      next_(*std::move(block));
    }
  }
}

absl::Status EncodeWorker::Encode(StagedBlock* block) const try {
  EncodeOptions options = options_;
  options.loss_inherited = block->loss_inherited;
  const absl::Span<const uint32_t> tokens(block->chain_tokens->data(), block->first_token + kBlockTokens);
  absl::StatusOr<Bytes> frame =
      codec_->Encode({block->key, block->first_token, tokens}, ByteSpan(block->raw.get(), block->raw_bytes), options);
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
