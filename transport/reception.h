// The receiving end of one transfer.
#ifndef LATENTKV_TRANSPORT_RECEPTION_H_
#define LATENTKV_TRANSPORT_RECEPTION_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/handoff.h"

namespace latentkv {

using HandoffStream =
    grpc::ServerReaderWriter<v1::HandOffResponse, v1::HandOffRequest>;

struct ReceptionPlan {
  // 1 to kTransferNameBytesMax bytes; what the sender calls it.
  std::string transfer;
  // Of an earlier reception: those below are not sent again.
  uint64_t frames_held = 0;
  FrameSink* sink = nullptr;  // Outlives the reception.
  // Null: gRPC alone. Outlives the reception, and serves no other meanwhile.
  DeviceLink* link = nullptr;
  absl::Duration batch_patience = kBatchPatience;
};

// What was taken stays taken when a stream breaks, whichever side died; the
// sender, or one that was started in its place, goes on from there. Any thread.
class Reception {
 public:
  explicit Reception(ReceptionPlan plan)
      : plan_(std::move(plan)), next_(plan_.frames_held) {}
  Reception(const Reception&) = delete;
  Reception& operator=(const Reception&) = delete;

  // OK when the sink has every frame; what the sink answered if it refused one;
  // DeadlineExceeded says how many came.
  absl::Status Await(absl::Time deadline);
  uint64_t taken() const;
  // How many the transfer has, once all of them are taken; 0 before.
  uint64_t frames_complete() const;
  uint64_t taken_over_link() const;
  // Why the link was given up; OK if it was not.
  absl::Status link_status() const;

  // Serves one stream, from its `begin` on. A later one takes over from an
  // earlier, which may hang.
  grpc::Status Serve(grpc::ServerContext* context, HandoffStream* stream,
                     const v1::HandOffBegin& begin);
  // Ends what is served. From its return on neither sink nor link is used.
  void Close();

 private:
  // Under mutex_.
  bool Complete() const { return frames_ > 0 && next_ == frames_; }
  absl::Status Admit(grpc::ServerContext* context,
                     const v1::HandOffBegin& begin);
  absl::Status TakeStreamed(const v1::HandOffRequest& request);
  absl::Status CheckBatch(const v1::HandOffRequest& request) const;
  absl::Status StartBatch(const v1::HandOffRequest& request,
                          HandoffStream* stream);
  void TakeBatch(const std::vector<uint64_t>& frame_bytes,
                 HandoffStream* stream);
  void EndBatch();
  absl::Status TakeFrame(const HandoffFrame& frame, bool over_link);
  void GiveUpLink(const absl::Status& why);
  uint64_t LinkBytesMax() const;
  void Answer(HandoffStream* stream, const absl::Status& refusal);

  const ReceptionPlan plan_;
  // Of the stream that is served, as are frames_ and generation_ while it is.
  std::thread batch_;

  mutable std::mutex mutex_;  // Of everything below.
  std::condition_variable changed_;
  grpc::ServerContext* served_ = nullptr;
  uint64_t last_turn_ = 0;
  uint64_t frames_ = 0;  // In all; 0 before the first stream.
  uint64_t next_;
  uint64_t over_link_ = 0;
  uint64_t generation_ = 0;  // Of the sender's link.
  bool batch_runs_ = false;
  bool link_failed_ = false;
  bool closed_ = false;
  absl::Status link_status_;
  absl::Status refusal_;  // Of the sink.
};

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RECEPTION_H_
