#include "transport/rank_round.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace latentkv {

RankRound::RankRound(uint32_t rank, uint32_t ranks, const RankBatch& batch,
                     const TakePart& take)
    : rank_(rank),
      ranks_(ranks),
      batch_(batch),
      take_(take),
      taken_(batch.parts.size() * ranks) {
  for (uint32_t block = 0; block < batch.parts.size(); ++block)
    missing_.push_back(Owns(block) ? ranks : 0);
}

void RankRound::Ready(uint32_t from, const v1::RankReady& ready) {
  std::lock_guard lock(mutex_);
  ready_[from] = ready;
  changed_.notify_all();
}

void RankRound::Go(const v1::RankGo& go) {
  std::lock_guard lock(mutex_);
  go_ = go;
  changed_.notify_all();
}

void RankRound::Stop(absl::string_view why) {
  std::lock_guard lock(mutex_);
  if (!stopped_.has_value()) stopped_ = std::string(why);
  changed_.notify_all();
}

absl::Status RankRound::Part(uint32_t from, uint32_t block, ByteSpan bytes) {
  std::lock_guard lock(mutex_);
  if (closed_) return absl::CancelledError("the batch is over");
  if (from >= ranks_ || block >= batch_.parts.size() || !Owns(block) ||
      bytes.size() != batch_.part_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a part of rank ", from, ", block ", block, " with ", bytes.size(),
        " bytes is none of this batch: are all ranks of one model?"));
  }
  // Of an attempt before, as good as this one's: the same heads of the same
  // tokens.
  if (taken_[block * ranks_ + from]) return absl::OkStatus();
  taken_[block * ranks_ + from] = true;
  take_(block, from, bytes);
  if (--missing_[block] == 0) changed_.notify_all();
  return absl::OkStatus();
}

template <typename Done, typename Missing>
absl::Status RankRound::Await(std::unique_lock<std::mutex>* lock,
                              absl::Time deadline, const Done& done,
                              const Missing& missing) {
  const bool over =
      changed_.wait_until(*lock, absl::ToChronoTime(deadline),
                          [&] { return stopped_.has_value() || done(); });
  if (stopped_.has_value()) return absl::UnavailableError(*stopped_);
  if (over) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("rank ", rank_, " waited in vain for ", missing()));
}

absl::StatusOr<std::vector<v1::RankReady>> RankRound::AwaitReady(
    const v1::RankReady& own, absl::Time deadline, std::vector<bool>* came) {
  std::unique_lock lock(mutex_);
  ready_[rank_] = own;
  absl::Status status = Await(
      &lock, deadline, [&] { return ready_.size() == ranks_; },
      [&] {
        std::vector<uint32_t> missing;
        for (uint32_t rank = 0; rank < ranks_; ++rank) {
          if (!ready_.contains(rank)) missing.push_back(rank);
        }
        return absl::StrCat("rank ", absl::StrJoin(missing, " and "));
      });
  came->assign(ranks_, false);
  for (const auto& [rank, ready] : ready_) (*came)[rank] = true;
  if (!status.ok()) return status;
  std::vector<v1::RankReady> all;
  for (const auto& [rank, ready] : ready_) all.push_back(ready);
  return all;
}

absl::StatusOr<v1::RankGo> RankRound::AwaitGo(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  absl::Status status = Await(
      &lock, deadline, [&] { return go_.has_value(); },
      [] { return "rank 0, which waits for the others"; });
  if (!status.ok()) return status;
  if (go_->blocks() > batch_.parts.size())
    return absl::InternalError("rank 0 says go for blocks that are not here");
  return *go_;
}

absl::Status RankRound::AwaitParts(uint32_t blocks, absl::Time deadline) {
  std::unique_lock lock(mutex_);
  return Await(
      &lock, deadline,
      [&] {
        return std::all_of(missing_.begin(), missing_.begin() + blocks,
                           [](uint32_t some) { return some == 0; });
      },
      [&] { return MissingParts(blocks); });
}

std::string RankRound::MissingParts(uint32_t blocks) const {
  for (uint32_t rank = 0; rank < ranks_; ++rank) {
    for (uint32_t block = 0; block < blocks; ++block) {
      if (Owns(block) && !taken_[block * ranks_ + rank])
        return absl::StrCat("parts of rank ", rank);
    }
  }
  return "nobody";
}

void RankRound::Close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

}  // namespace latentkv
