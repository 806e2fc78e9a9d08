// What comes to a rank from the others, batch by batch, whether it has come to
// the batch or not.
#ifndef LATENTKV_TRANSPORT_RANK_INBOX_H_
#define LATENTKV_TRANSPORT_RANK_INBOX_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/digest.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/peer_service.h"
#include "transport/rank_round.h"

namespace latentkv {

// Batches that were given up, or that some rank is ready for, before this rank
// came to them: an engine that runs ahead of one rank by so many stores has
// lost that rank.
inline constexpr size_t kEarlyMax = 1024;
// Ranks store in step. What was stored so much earlier than a batch, and is the
// same blocks, is an earlier attempt.
inline constexpr int64_t kAttemptMs = 1000;
// Thread-safe.
class RankInbox final : public RankSink {
 public:
  explicit RankInbox(uint32_t ranks) : ranks_(ranks), heard_(ranks) {}

  absl::Status Take(const v1::RankMessage& message) override {
    absl::StatusOr<Digest> id = DigestFromBytes(AsBytes(message.batch()));
    if (!id.ok()) return id.status();
    if (message.from() >= ranks_)
      return absl::InvalidArgumentError(
          absl::StrCat("there is no rank ", message.from()));
    std::shared_ptr<RankRound> round;
    {
      std::lock_guard lock(mutex_);
      heard_[message.from()] = true;
      auto found = rounds_.find(*id);
      if (found != rounds_.end()) {
        // A part is as good whatever attempt it is of: the same heads of the
        // same tokens.
        const bool earlier =
            message.stored_ms() < found->second.stored_ms - kAttemptMs &&
            message.part().empty();
        if (earlier)
          return absl::FailedPreconditionError(
              "this rank is at a later attempt");
        round = found->second.round;
      } else if (message.has_ready() || !message.stop().empty()) {
        Keep(*id, message);
        return absl::OkStatus();
      }
    }
    if (round == nullptr)
      return absl::FailedPreconditionError("this rank is not at that batch");
    return Give(message, round.get());
  }

  void Open(const Digest& id, int64_t stored_ms,
            const std::shared_ptr<RankRound>& round) {
    std::lock_guard lock(mutex_);
    rounds_[id] = {stored_ms, round};
    auto early = early_.find(id);
    if (early == early_.end()) return;
    for (const v1::RankMessage& message : early->second) {
      if (message.stored_ms() >= stored_ms - kAttemptMs)
        Give(message, round.get()).IgnoreError();
    }
    early_.erase(early);
  }
  void Close(const Digest& id) {
    std::lock_guard lock(mutex_);
    rounds_.erase(id);
  }
  void StopAll(absl::string_view why) {
    std::lock_guard lock(mutex_);
    for (auto& [id, open] : rounds_) open.round->Stop(why);
  }

  // Whether anything came of the rank since it was taken to be away.
  bool heard(uint32_t rank) const {
    std::lock_guard lock(mutex_);
    return heard_[rank];
  }
  void SetAway(uint32_t rank) {
    std::lock_guard lock(mutex_);
    heard_[rank] = false;
  }

 private:
  struct OpenRound {
    int64_t stored_ms;
    std::shared_ptr<RankRound> round;
  };
  static absl::Status Give(const v1::RankMessage& message, RankRound* round) {
    if (message.has_ready()) {
      round->Ready(message.from(), message.ready());
    } else if (message.has_go()) {
      round->Go(message.go());
    } else if (!message.stop().empty()) {
      round->Stop(message.stop());
    } else {
      return round->Part(message.from(), message.block(),
                         AsBytes(message.part()));
    }
    return absl::OkStatus();
  }
  void Keep(const Digest& id, const v1::RankMessage& message) {
    auto [found, fresh] = early_.try_emplace(id);
    std::vector<v1::RankMessage>& kept = found->second;
    std::erase_if(kept, [&](const v1::RankMessage& one) {
      return one.stored_ms() < message.stored_ms() - kAttemptMs;
    });
    if (kept.size() < 2 * ranks_) kept.push_back(message);
    if (fresh) early_order_.push_back(id);
    if (early_order_.size() > kEarlyMax) {
      early_.erase(early_order_.front());
      early_order_.pop_front();
    }
  }

  const uint32_t ranks_;
  mutable std::mutex mutex_;
  absl::flat_hash_map<Digest, OpenRound> rounds_;
  absl::flat_hash_map<Digest, std::vector<v1::RankMessage>> early_;
  std::deque<Digest> early_order_;
  std::vector<bool> heard_;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RANK_INBOX_H_
