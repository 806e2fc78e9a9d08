#include "client/breaker_channel.h"

#include <type_traits>
#include <utility>

namespace latentkv {
namespace {

absl::Status Away() {
  return absl::UnavailableError(
      "the daemon counts as away; it is tried again soon");
}

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

class BreakerStream final : public StoreStream {
 public:
  BreakerStream(CircuitBreaker::Attempt attempt,
                std::unique_ptr<StoreStream> inner)
      : attempt_(std::move(attempt)), inner_(std::move(inner)) {}

  bool Send(const StoreItem& item) override {
    return inner_ != nullptr && inner_->Send(item);
  }
  void SendDone() override {
    if (inner_ != nullptr) inner_->SendDone();
  }
  bool ReadAck(StoreAck* ack) override {
    return inner_ != nullptr && inner_->ReadAck(ack);
  }
  absl::Status Finish() override {
    if (inner_ == nullptr) return Away();
    absl::Status status = inner_->Finish();
    attempt_.Report(status);
    return status;
  }

 private:
  CircuitBreaker::Attempt attempt_;
  std::unique_ptr<StoreStream> inner_;  // Null when the call may not go.
};

class BreakerChannel final : public CacheChannel {
 public:
  BreakerChannel(CacheChannel* inner, CircuitBreaker* breaker)
      : inner_(inner), breaker_(breaker) {}

  absl::StatusOr<LookupAnswer> Lookup(const LookupQuery& query,
                                      const CallLimits& limits) override {
    return Guard([&] { return inner_->Lookup(query, limits); });
  }
  absl::Status Fetch(absl::Span<const RemoteRecord> records, uint64_t lease_id,
                     const CallLimits& limits,
                     const FetchCallback& callback) override {
    return Guard(
        [&] { return inner_->Fetch(records, lease_id, limits, callback); });
  }
  std::unique_ptr<StoreStream> OpenStore(const CallLimits& limits) override {
    CircuitBreaker::Attempt attempt = breaker_->Enter();
    std::unique_ptr<StoreStream> inner =
        attempt ? inner_->OpenStore(limits) : nullptr;
    return std::make_unique<BreakerStream>(std::move(attempt),
                                           std::move(inner));
  }
  absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys,
                                  uint64_t lease_id,
                                  const CallLimits& limits) override {
    return Guard([&] { return inner_->Forget(keys, lease_id, limits); });
  }
  absl::Status PutSession(const RemoteSession& session,
                          const CallLimits& limits) override {
    return Guard([&] { return inner_->PutSession(session, limits); });
  }
  absl::StatusOr<RemoteSession> GetSession(absl::string_view name,
                                           const CallLimits& limits) override {
    return Guard([&] { return inner_->GetSession(name, limits); });
  }
  absl::StatusOr<std::vector<RemoteSession>> ListSessions(
      const CallLimits& limits) override {
    return Guard([&] { return inner_->ListSessions(limits); });
  }
  absl::Status DeleteSession(absl::string_view name,
                             const CallLimits& limits) override {
    return Guard([&] { return inner_->DeleteSession(name, limits); });
  }
  absl::StatusOr<Digest> PutBasis(ByteSpan basis,
                                  const CallLimits& limits) override {
    return Guard([&] { return inner_->PutBasis(basis, limits); });
  }
  absl::StatusOr<Bytes> GetBasis(const Digest& digest,
                                 const CallLimits& limits) override {
    return Guard([&] { return inner_->GetBasis(digest, limits); });
  }
  absl::StatusOr<std::vector<RemoteBasis>> ListBases(
      const CallLimits& limits) override {
    return Guard([&] { return inner_->ListBases(limits); });
  }
  absl::StatusOr<RemoteStats> Stats(const CallLimits& limits) override {
    return Guard([&] { return inner_->Stats(limits); });
  }
  absl::Status Drain(const CallLimits& limits) override {
    return Guard([&] { return inner_->Drain(limits); });
  }

 private:
  template <typename Call>
  std::invoke_result_t<Call> Guard(const Call& call) {
    CircuitBreaker::Attempt attempt = breaker_->Enter();
    if (!attempt) return Away();
    std::invoke_result_t<Call> result = call();
    attempt.Report(StatusOf(result));
    return result;
  }

  CacheChannel* const inner_;
  CircuitBreaker* const breaker_;
};

}  // namespace

std::unique_ptr<CacheChannel> MakeBreakerChannel(CacheChannel* inner,
                                                 CircuitBreaker* breaker) {
  return std::make_unique<BreakerChannel>(inner, breaker);
}

}  // namespace latentkv
