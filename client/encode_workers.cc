#include "client/encode_workers.h"

#include <exception>
#include <utility>

#include "client/niceness.h"
#include "core/limits.h"

namespace latentkv {
namespace {

BlockPlace PlaceOf(const StagedBlock& block) {
  return {block.key,
          block.first_token,
          {block.chain_tokens->data(), block.first_token + kBlockTokens}};
}

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
  GiveWayToTheEngine();
  while (std::optional<Taken> first = Take()) {
    std::vector<Taken> batch;
    batch.push_back(*std::move(first));
    std::unique_ptr<DeviceEncoder::Turn> turn;
    if (const std::shared_ptr<DeviceEncoder> encoder = batch[0].block.encoder;
        encoder != nullptr) {
      turn = encoder->TakeTurn();
      if (turn != nullptr) TakeMore(encoder.get(), turn->blocks_max(), &batch);
    }
    std::vector<Taken*> wanted;
    for (Taken& taken : batch) {
      Prepare(&taken);
      if (taken.wanted) wanted.push_back(&taken);
    }
    if (turn != nullptr && !wanted.empty()) EncodeOnDevice(turn.get(), wanted);
    turn.reset();
    for (Taken& taken : batch) {
      if (taken.wanted && taken.block.frame == nullptr && taken.status.ok())
        taken.status = Encode(&taken.block);
      Finish(taken.place, {std::move(taken.block), std::move(taken.status)});
    }
  }
}

std::optional<EncodeWorkers::Taken> EncodeWorkers::Take() {
  std::lock_guard lock(take_mutex_);
  std::optional<StagedBlock> block = queue_.Pop(absl::InfiniteFuture());
  if (!block.has_value()) return std::nullopt;
  return Taken{places_++, *std::move(block)};
}

void EncodeWorkers::TakeMore(const DeviceEncoder* encoder, size_t count,
                             std::vector<Taken>* batch) {
  // Whoever has the lock takes a block or waits for one: there is none, or one
  // less.
  std::unique_lock lock(take_mutex_, std::try_to_lock);
  while (lock.owns_lock() && batch->size() < count) {
    std::optional<StagedBlock> block = queue_.PopIf(
        [&](const StagedBlock& next) { return next.encoder.get() == encoder; });
    if (!block.has_value()) return;
    batch->push_back({places_++, *std::move(block)});
  }
}

void EncodeWorkers::Prepare(Taken* taken) const {
  StagedBlock& block = taken->block;
  if (closing_) {
    taken->status = absl::CancelledError("the client was closed");
  } else if (!ledger_->Lost(block.behind)) {
    if (block.raw_complete != nullptr)
      taken->status = block.raw_complete->Wait();
    block.raw_complete.reset();
    taken->wanted = taken->status.ok();
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

void EncodeWorkers::EncodeOnDevice(DeviceEncoder::Turn* turn,
                                   absl::Span<Taken* const> batch) const try {
  std::vector<DeviceEncoder::Block> blocks;
  for (const Taken* taken : batch) {
    blocks.push_back({PlaceOf(taken->block), taken->block.raw.get(),
                      taken->block.loss_inherited});
  }
  std::vector<absl::StatusOr<Bytes>> frames = turn->Encode(blocks);
  for (size_t i = 0; i < batch.size(); ++i) {
    if (absl::IsResourceExhausted(frames[i].status())) continue;  // The CPU's.
    batch[i]->status = Keep(std::move(frames[i]), &batch[i]->block);
    batch[i]->block.on_device = batch[i]->status.ok();
  }
} catch (const std::exception&) {
  // No memory for frames: the CPU encodes them one at a time.
}

absl::Status EncodeWorkers::Encode(StagedBlock* block) const try {
  EncodeOptions options = options_;
  options.loss_inherited = block->loss_inherited;
  return Keep(
      codec_->Encode(PlaceOf(*block),
                     ByteSpan(block->raw.get(), block->raw_bytes), options),
      block);
} catch (const std::exception& error) {
  return absl::ResourceExhaustedError(error.what());
}

absl::Status EncodeWorkers::Keep(absl::StatusOr<Bytes> frame,
                                 StagedBlock* block) const {
  if (!frame.ok()) return frame.status();
  absl::StatusOr<FrameHeader> header = ParseFrameHeader(*frame, frame->size());
  if (!header.ok()) return header.status();
  block->exact = header->encoding.IsExact();
  const bool in_basis = codec_->basis_view() != nullptr;
  block->guarded =
      !options_.exact && (header->encoding.step != options_.step ||
                          codec_->IsInBasis(header->encoding) != in_basis);
  block->loss_chain = header->loss_chain;
  block->frame = std::make_shared<const Bytes>(*std::move(frame));
  block->raw.reset();
  block->share.Resize(block->frame->size());
  return absl::OkStatus();
}

}  // namespace latentkv
