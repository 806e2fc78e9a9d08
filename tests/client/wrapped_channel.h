// A channel to the real daemon on which a test looks at what passes, changes
// it, or holds it up.
#ifndef LATENTKV_TESTS_CLIENT_WRAPPED_CHANNEL_H_
#define LATENTKV_TESTS_CLIENT_WRAPPED_CHANNEL_H_

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

#include "transport/cache_channel.h"

namespace latentkv {

// Closed until it is opened.
class Gate {
 public:
  // Until it opens, or `cancel` (which may be null) is cancelled.
  void Wait(const CancelToken* cancel);
  void Open();
  // Somebody waits, or has waited.
  void AwaitVisitor();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false, visited_ = false;
};

// The hooks are set before the channel is used.
class WrappedChannel : public CacheChannel {
 public:
  explicit WrappedChannel(std::unique_ptr<CacheChannel> inner)
      : inner_(std::move(inner)) {}

  std::function<void(LookupQuery*)> on_lookup;
  // Before the client gets it.
  std::function<void(FetchedSection*, const CallLimits&)> on_section;
  std::function<void(const StoreItem&, const CallLimits&)> on_send;
  std::function<void(StoreAck*)> on_ack;

  absl::StatusOr<LookupAnswer> Lookup(const LookupQuery& query,
                                      const CallLimits& limits) override;
  absl::Status Fetch(absl::Span<const RemoteRecord> records, uint64_t lease_id,
                     const CallLimits& limits,
                     const FetchCallback& callback) override;
  std::unique_ptr<StoreStream> OpenStore(const CallLimits& limits) override;

  absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys,
                                  uint64_t lease_id,
                                  const CallLimits& limits) override {
    return inner_->Forget(keys, lease_id, limits);
  }
  absl::Status PutSession(const RemoteSession& session,
                          const CallLimits& limits) override {
    return inner_->PutSession(session, limits);
  }
  absl::StatusOr<RemoteSession> GetSession(absl::string_view name,
                                           const CallLimits& limits) override {
    return inner_->GetSession(name, limits);
  }
  absl::StatusOr<std::vector<RemoteSession>> ListSessions(
      const CallLimits& limits) override {
    return inner_->ListSessions(limits);
  }
  absl::Status DeleteSession(absl::string_view name,
                             const CallLimits& limits) override {
    return inner_->DeleteSession(name, limits);
  }
  absl::StatusOr<Digest> PutBasis(ByteSpan basis,
                                  const CallLimits& limits) override {
    return inner_->PutBasis(basis, limits);
  }
  absl::StatusOr<Bytes> GetBasis(const Digest& digest,
                                 const CallLimits& limits) override {
    return inner_->GetBasis(digest, limits);
  }
  absl::StatusOr<std::vector<RemoteBasis>> ListBases(
      const CallLimits& limits) override {
    return inner_->ListBases(limits);
  }
  absl::StatusOr<RemoteStats> Stats(const CallLimits& limits) override {
    return inner_->Stats(limits);
  }
  absl::Status Drain(const CallLimits& limits) override {
    return inner_->Drain(limits);
  }

 private:
  const std::unique_ptr<CacheChannel> inner_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_WRAPPED_CHANNEL_H_
