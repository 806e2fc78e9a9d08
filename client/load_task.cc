#include "client/load_task.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/limits.h"

namespace latentkv {
namespace {

// Received and not yet decoded: what four threads decode in about 20 ms, so
// that none of them waits for the stream.
constexpr uint64_t kBacklogBytesMax = 32u << 20;
// What a damaged record's removal may add to a load.
constexpr absl::Duration kForgetDuration = absl::Seconds(1);
// A lease must only last until the load ends; the daemon keeps none for longer.
constexpr absl::Duration kLeaseMax = absl::Minutes(10);

}  // namespace

LoadTask::LoadTask(const LoadPipeline::Parts& parts, LoadRequest request)
    : parts_(parts),
      request_(std::move(request)),
      layers_(parts.codec->geometry().layers.size()),
      progress_(request_.keys.size(), layers_),
      backlog_(kBacklogBytesMax) {}

void LoadTask::Run() {
  absl::Status status;
  try {
    status = Receive();
  } catch (const std::exception& error) {
    status = absl::ResourceExhaustedError(error.what());
  }
  backlog_.WaitUntilEmpty();
  run_.reset();
  const uint32_t good = progress_.Settle();
  // Of an unavailable daemon the breaker has told.
  if (!status.ok() && !absl::IsCancelled(status) &&
      !absl::IsUnavailable(status)) {
    parts_.log->Warn(
        Failure::kFetch,
        absl::StrCat("a load ended after ", good, " of ", request_.keys.size(),
                     " blocks: ", status.message()));
  }
  // Before the job is over: the engine then recomputes the blocks and stores
  // them, which must find no old record.
  ForgetDamaged();
  Account(good);
  progress_.Finish();
}

absl::Status LoadTask::Receive() {
  if (request_.keys.empty()) return absl::OkStatus();
  const CallLimits limits{request_.deadline, &cancel_};
  LookupQuery query;
  query.keys = request_.keys;
  query.accept_bases = parts_.policy.bases;
  query.loss_chain_max = parts_.policy.loss_chain_max;
  query.lease_ms = absl::ToInt64Milliseconds(std::clamp(
      request_.deadline - absl::Now(), absl::Milliseconds(1), kLeaseMax));
  absl::StatusOr<LookupAnswer> answer = parts_.channel->Lookup(query, limits);
  if (!answer.ok()) return answer.status();
  if (answer->records.size() < request_.keys.size()) {
    progress_.Fail(answer->records.size());
    parts_.log->Warn(
        Failure::kRecordGone,
        absl::StrCat(request_.keys.size() - answer->records.size(), " of ",
                     request_.keys.size(), " blocks of a load are not stored"));
  }
  if (answer->records.empty()) return absl::OkStatus();
  for (const RemoteRecord& record : answer->records) {
    blocks_.push_back(std::make_unique<Block>());
    blocks_.back()->record = record;
  }
  absl::Status status;
  const uint32_t count = blocks_.size();
  bool leased = true;
  for (uint32_t first = 0, last = 0;
       first < std::min(count, progress_.good()) && status.ok(); first = last) {
    last = BeginRun(first);
    // The lease ends with the call that names it.
    leased = last < count;
    status = parts_.channel->Fetch(
        absl::MakeSpan(answer->records).subspan(first, last - first),
        last == count ? answer->lease_id : 0, limits,
        [&](FetchedSection section) {
          section.record += first;
          return Take(section);
        });
    if (run_ == nullptr) continue;
    // What is concluded may refuse blocks that others wait for.
    do {
      backlog_.WaitUntilEmpty();
    } while (QueueCompleted());
    run_.reset();
  }
  if (leased)
    parts_.channel->Forget({}, answer->lease_id, limits).IgnoreError();
  return status;
}

uint32_t LoadTask::BeginRun(uint32_t first) {
  const uint32_t count = blocks_.size();
  const auto in_basis = [&](uint32_t i) {
    return parts_.codec->IsInBasis(blocks_[i]->record.encoding);
  };
  uint32_t last = first;
  while (last < count && !in_basis(last)) ++last;
  if (last == count) return count;
  std::unique_ptr<GroupRestore> restore = request_.pages->TryGroupRestore();
  if (restore == nullptr) return count;
  run_ = std::make_unique<GroupRun>(std::move(restore));
  run_blocks_.clear();
  std::vector<GroupBlock> blocks;
  for (last = first; last < count; ++last) {
    Block& block = *blocks_[last];
    if (!in_basis(last)) continue;
    if (blocks.size() == kGroupBlocksMax) break;
    if (!run_->Reserve(block.record.frame_bytes, block.record.section_count)) {
      if (!blocks.empty()) break;
      continue;  // Larger than any run: decoded here.
    }
    block.place_in_run = blocks.size();
    run_blocks_.push_back(last);
    const uint32_t first_token = FirstTokenOf(last);
    blocks.push_back(
        {first_token,
         absl::MakeConstSpan(request_.tokens).first(first_token + kBlockTokens),
         request_.slots[last]});
  }
  absl::Status status = run_->Begin(request_.pages->cache(), std::move(blocks),
                                    request_.pages_used.get());
  if (status.ok()) return last;
  parts_.log->Warn(
      Failure::kFetch,
      absl::StrCat("blocks are restored on the CPU: ", status.message()));
  for (uint32_t i : run_blocks_) blocks_[i]->place_in_run.reset();
  run_.reset();
  return last;
}

bool LoadTask::Take(const FetchedSection& section) {
  if (cancel_.cancelled()) return false;
  const uint32_t index = section.record;
  if (progress_.Wanted(index)) {
    absl::Status status = Check(section);
    if (status.ok()) status = Deliver(index, section);
    if (!status.ok()) Refuse(index, status);
    if (run_ != nullptr) QueueCompleted();
  }
  return progress_.Wanted(0);
}

absl::Status LoadTask::Deliver(uint32_t index, const FetchedSection& section) {
  Block& block = *blocks_[index];
  {
    std::lock_guard<std::mutex> lock(run_mutex_);
    if (block.place_in_run.has_value()) {
      return run_->Add(*block.place_in_run, section.payload,
                       block.header.sections[section.section],
                       block.header.encoding.step);
    }
  }
  backlog_.Add(section.payload.size());
  if (block.received.Add({section.section, section.payload, section.owner})) {
    parts_.pool->Add([this, index] { DecodeReceived(index); });
  }
  return absl::OkStatus();
}

bool LoadTask::QueueCompleted() {
  bool any = false;
  while (!cancel_.cancelled() && absl::Now() < request_.deadline) {
    const uint32_t wanted =
        std::lower_bound(run_blocks_.begin(), run_blocks_.end(),
                         progress_.good()) -
        run_blocks_.begin();
    std::unique_lock<std::mutex> lock(run_mutex_);
    if (!run_->Complete(wanted)) break;
    any = true;
    QueuedGroup next = {run_->next_group(), wanted, nullptr};
    absl::StatusOr<DeviceEventPtr> over = run_->Restore(wanted);
    if (!over.ok()) {
      lock.unlock();
      Conclude(next, over.status());
      continue;
    }
    next.over = *std::move(over);
    queued_.push_back(std::move(next));
    backlog_.AddItem();
    if (queued_.size() == 1) parts_.pool->Add([this] { ConcludeQueued(); });
  }
  return any;
}

void LoadTask::ConcludeQueued() {
  for (bool more = true; more;) {
    std::unique_lock<std::mutex> lock(run_mutex_);
    const QueuedGroup first = queued_.front();
    lock.unlock();
    try {
      absl::Status status = first.over->Wait();
      if (status.ok()) {
        Conclude(first, run_->Outcome(first.group));
      } else {
        Conclude(first, status);
      }
    } catch (const std::exception& error) {
      Conclude(first, absl::ResourceExhaustedError(error.what()));
    }
    lock.lock();
    queued_.pop_front();
    more = !queued_.empty();
    lock.unlock();
    // Last: when nothing is left the task may be over, and gone.
    backlog_.Remove(0);
  }
}

void LoadTask::Conclude(
    const QueuedGroup& queued,
    const absl::StatusOr<std::vector<absl::Status>>& restored) {
  std::lock_guard<std::mutex> lock(run_mutex_);
  for (uint32_t place = 0; place < queued.wanted; ++place) {
    const uint32_t index = run_blocks_[place];
    if (!blocks_[index]->place_in_run.has_value()) continue;
    absl::Status status =
        restored.ok() ? (*restored)[place] : restored.status();
    if (restored.ok() && absl::IsResourceExhausted(status)) {
      status = TakeOutOfRun(index);
      if (status.ok()) continue;
    }
    // And with it all behind it.
    if (!status.ok()) return Refuse(index, status);
    const auto [first, last] = parts_.codec->SectionLayers(
        blocks_[index]->header.encoding, queued.group);
    progress_.LayersDone(index, first, last);
  }
}

absl::Status LoadTask::TakeOutOfRun(uint32_t index) {
  Block& block = *blocks_[index];
  const uint32_t place = *block.place_in_run, first_token = FirstTokenOf(index);
  const auto chain =
      absl::MakeConstSpan(request_.tokens).first(first_token + kBlockTokens);
  absl::StatusOr<std::unique_ptr<BlockReader>> reader = parts_.codec->Open(
      block.header, {request_.keys[index], first_token, chain});
  if (!reader.ok()) return reader.status();
  for (uint32_t s = 0; s < run_->SectionsOf(place); ++s) {
    const auto [first, last] =
        parts_.codec->SectionLayers(block.header.encoding, s);
    absl::Status status = request_.pages->Fill(
        first, last, request_.slots[index], request_.pages_used.get(),
        [&](absl::Span<uint8_t> raw) {
          return (*reader)->ReadSection(s, run_->Payload(place, s), raw);
        });
    if (!status.ok()) return status;
    progress_.LayersDone(index, first, last);
  }
  run_->Drop(place);
  block.place_in_run.reset();
  block.reader = *std::move(reader);
  return absl::OkStatus();
}

absl::Status LoadTask::Check(const FetchedSection& section) {
  if (section.missing) return absl::NotFoundError("the daemon has it no more");
  Block& block = *blocks_[section.record];
  if (section.section != block.next_section)
    return absl::InternalError("a section came out of order");
  ++block.next_section;
  if (section.section == 0) {
    absl::Status status = CheckHeader(section.record, section.header);
    if (!status.ok()) return status;
  }
  if (section.section >= block.header.sections.size())
    return absl::InternalError("a section too many came");
  return absl::OkStatus();
}

absl::Status LoadTask::CheckHeader(uint32_t index, ByteSpan bytes) {
  Block& block = *blocks_[index];
  absl::StatusOr<FrameHeader> header =
      ParseFrameHeader(bytes, block.record.frame_bytes);
  if (!header.ok()) return header.status();
  const uint32_t first_token = FirstTokenOf(index);
  const absl::Span<const uint32_t> tokens(request_.tokens.data(),
                                          first_token + kBlockTokens);
  absl::StatusOr<std::unique_ptr<BlockReader>> reader =
      parts_.codec->Open(*header, {request_.keys[index], first_token, tokens});
  if (!reader.ok()) return reader.status();
  if (!(header->encoding == block.record.encoding)) {
    return absl::FailedPreconditionError(
        absl::StrCat("its frame is of encoding ", header->encoding.ToString()));
  }
  if (!(header->loss_chain <= parts_.policy.loss_chain_max)) {
    return absl::FailedPreconditionError(
        absl::StrCat("its loss of ", header->loss_chain, " is over the limit"));
  }
  block.header = *std::move(header);
  if (!block.place_in_run.has_value()) block.reader = *std::move(reader);
  return absl::OkStatus();
}

void LoadTask::DecodeReceived(uint32_t index) {
  SectionQueue& received = blocks_[index]->received;
  for (std::optional<ReceivedSection> section = received.Take();
       section.has_value();) {
    Decode(index, *section);
    const uint64_t bytes = section->payload.size();
    section = received.Take();
    // Last: when nothing is left the task may be over, and gone.
    backlog_.Remove(bytes);
  }
}

void LoadTask::Decode(uint32_t index, const ReceivedSection& section) {
  Block& block = *blocks_[index];
  if (cancel_.cancelled() || !progress_.Wanted(index) ||
      absl::Now() >= request_.deadline)
    return;
  const auto [first, last] =
      parts_.codec->SectionLayers(block.header.encoding, section.number);
  absl::Status status;
  try {
    status = request_.pages->Fill(first, last, request_.slots[index],
                                  request_.pages_used.get(),
                                  [&](absl::Span<uint8_t> raw) {
                                    return block.reader->ReadSection(
                                        section.number, section.payload, raw);
                                  });
  } catch (const std::exception& error) {
    status = absl::ResourceExhaustedError(error.what());
  }
  if (!status.ok()) return Refuse(index, status);
  if (section.number + 1 == block.header.sections.size()) block.reader.reset();
  progress_.LayersDone(index, first, last);
}

void LoadTask::Refuse(uint32_t index, const absl::Status& status) {
  progress_.Fail(index);
  if (absl::IsDataLoss(status)) {
    std::lock_guard<std::mutex> lock(mutex_);
    damaged_.push_back(request_.keys[index]);
  }
  parts_.log->Warn(
      absl::IsNotFound(status) ? Failure::kRecordGone : Failure::kRecordRefused,
      absl::StrCat("the block of tokens ", FirstTokenOf(index), " to ",
                   FirstTokenOf(index) + kBlockTokens - 1,
                   " is not restored: ", status.message()));
}

void LoadTask::ForgetDamaged() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (damaged_.empty()) return;
  const CallLimits limits{
      std::min(request_.deadline, absl::Now() + kForgetDuration), &cancel_};
  absl::Status status = parts_.channel->Forget(damaged_, 0, limits).status();
  if (!status.ok()) {
    parts_.log->Warn(
        Failure::kForget,
        absl::StrCat("damaged records stay in the daemon: ", status.message()));
  }
}

void LoadTask::Account(uint32_t good) {
  for (uint32_t i = 0; i < good; ++i)
    parts_.losses->Restored(request_.keys[i], blocks_[i]->header.loss_chain);
  const TransferResult result = ResultOf(good);
  parts_.counters->loaded_tokens += result.token_count;
  parts_.counters->loaded_bytes += result.frame_bytes;
  if (!cancel_.cancelled())
    parts_.counters->load_failures += request_.keys.size() - good;
}

absl::StatusOr<TransferResult> LoadTask::Wait(int32_t layer,
                                              absl::Time deadline) const {
  if (layer >= static_cast<int64_t>(layers_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " of a model with ", layers_));
  }
  std::optional<uint32_t> good = progress_.Wait(layer, deadline);
  if (!good.has_value())
    return absl::DeadlineExceededError("the load has not come so far yet");
  return ResultOf(*good);
}

TransferResult LoadTask::ResultOf(uint32_t good) const {
  TransferResult result;
  result.token_count = uint64_t{good} * kBlockTokens;
  for (uint32_t i = 0; i < good; ++i) {
    result.frame_bytes += blocks_[i]->record.frame_bytes;
    result.exact_blocks += blocks_[i]->record.encoding.IsExact();
  }
  if (good > 0) result.loss_chain = blocks_[good - 1]->header.loss_chain;
  return result;
}

uint32_t LoadTask::FirstTokenOf(uint32_t index) const {
  return request_.first_token + index * kBlockTokens;
}

}  // namespace latentkv
