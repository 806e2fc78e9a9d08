// The sending end of one transfer.
#ifndef LATENTKV_TRANSPORT_HANDOFF_SENDER_H_
#define LATENTKV_TRANSPORT_HANDOFF_SENDER_H_

#include <grpcpp/channel.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/peer_client.h"
#include "transport/wire_call.h"

namespace latentkv {

absl::Status CheckHandoff(const HandoffPlan& plan);

// One thread runs it; one of its own reads what the receiver answers, so that a
// receiver that dies ends a batch at once.
class HandoffSender {
 public:
  // `plan` outlives it, and has been checked.
  HandoffSender(std::shared_ptr<grpc::Channel> channel, const HandoffPlan& plan,
                const CallLimits& limits)
      : channel_(std::move(channel)), plan_(plan), limits_(limits) {}

  absl::StatusOr<HandoffReport> Run();

 private:
  absl::Status Attempt();
  absl::Status Converse(WireCall* call);
  bool Decided();
  void ReadAnswers(WireCall* call);
  void OnAnswer(const v1::HandOffResponse& response);
  bool LinkUsable() const;
  size_t BatchCount(size_t first) const;
  absl::Status SendBatch(WireCall* call, size_t first, size_t count);
  absl::Status Stream(WireCall* call, size_t index);
  void GiveUpLink(const absl::Status& why);
  template <typename Condition>
  bool Await(std::unique_lock<std::mutex>* lock, absl::Time deadline,
             Condition condition);

  const std::shared_ptr<grpc::Channel> channel_;
  const HandoffPlan& plan_;
  const CallLimits limits_;
  HandoffReport report_;

  std::mutex mutex_;  // Of everything below.
  std::condition_variable changed_;
  bool answered_ = false;  // This stream, at all.
  bool over_ = false;      // Nothing more is answered.
  bool batch_runs_ = false;
  uint64_t acknowledged_ = 0;
  uint64_t batch_bytes_max_ = 0;
  absl::Status refusal_;
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_HANDOFF_SENDER_H_
