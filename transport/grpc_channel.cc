#include "transport/grpc_channel.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "latentkv/v1/admin.pb.h"
#include "latentkv/v1/cache.pb.h"
#include "transport/convert.h"
#include "transport/grpc_store_stream.h"
#include "transport/message_layout.h"
#include "transport/wire_call.h"
#include "transport/wire_channel.h"

namespace latentkv {
namespace {

constexpr size_t kBasisChunkBytes = 1u << 20;

absl::StatusOr<LookupAnswer> FromLookup(const LookupQuery& query,
                                        const v1::LookupResponse& response) {
  if (static_cast<size_t>(response.records_size()) > query.keys.size()) {
    return absl::InternalError(
        "the daemon answered more records than keys were asked for");
  }
  LookupAnswer answer;
  answer.lease_id = response.lease_id();
  for (int i = 0; i < response.records_size(); ++i) {
    const v1::RecordInfo& info = response.records(i);
    absl::StatusOr<RecordName> name = FromRef(info.ref());
    if (!name.ok()) return name.status();
    if (name->key != query.keys[i])
      return absl::InternalError("the daemon answered a record of another key");
    answer.records.push_back({name->key, name->encoding, info.frame_bytes(),
                              info.section_count(), info.loss_chain()});
  }
  return answer;
}

// One message there, one back.
template <typename Response>
absl::StatusOr<Response> Ask(const std::shared_ptr<grpc::Channel>& channel,
                             const char* method,
                             const google::protobuf::MessageLite& request,
                             const CallLimits& limits) {
  WireCall call(channel, method, limits);
  call.Send(SerializeMessage(request));
  call.SendDone();
  Response response;
  grpc::ByteBuffer message;
  bool parsed = false;
  while (call.Receive(&message)) parsed = ParseMessage(message, &response);
  absl::Status status = call.Finish();
  if (!status.ok()) return status;
  if (!parsed) return absl::InternalError("the daemon's answer cannot be read");
  return response;
}

class GrpcChannel final : public CacheChannel {
 public:
  explicit GrpcChannel(std::shared_ptr<grpc::Channel> channel)
      : channel_(std::move(channel)) {}

  absl::StatusOr<LookupAnswer> Lookup(const LookupQuery& query,
                                      const CallLimits& limits) override {
    v1::LookupRequest request;
    for (const Digest& key : query.keys) request.add_keys(DigestBytes(key));
    request.set_accept_exact(query.accept_exact);
    for (const Digest& basis : query.accept_bases)
      request.add_accept_bases(DigestBytes(basis));
    request.set_loss_chain_max(query.loss_chain_max);
    request.set_lease_ms(query.lease_ms);
    auto response = Ask<v1::LookupResponse>(
        channel_, "/latentkv.v1.Cache/Lookup", request, limits);
    if (!response.ok()) return response.status();
    return FromLookup(query, *response);
  }

  absl::Status Fetch(absl::Span<const RemoteRecord> records, uint64_t lease_id,
                     const CallLimits& limits,
                     const FetchCallback& callback) override {
    v1::FetchRequest request;
    for (const RemoteRecord& record : records)
      FillRef(record.key, record.encoding, request.add_records());
    request.set_lease_id(lease_id);
    WireCall call(channel_, "/latentkv.v1.Cache/Fetch", limits);
    call.Send(SerializeMessage(request));
    call.SendDone();
    grpc::ByteBuffer message;
    while (call.Receive(&message)) {
      // A message of its own for each section, so that it can be kept instead
      // of copied.
      auto chunk = std::make_shared<v1::FetchChunk>();
      if (!ParseMessage(message, chunk.get()))
        return absl::InternalError("the daemon's answer cannot be read");
      if (chunk->record() >= records.size()) {
        return absl::InternalError(
            "the daemon answered a record that was not asked for");
      }
      if (!callback({chunk->record(), chunk->section(), chunk->missing(),
                     AsBytes(chunk->header()), AsBytes(chunk->payload()),
                     chunk})) {
        return absl::CancelledError("stopped by the receiver");
      }
    }
    return call.Finish();
  }

  std::unique_ptr<StoreStream> OpenStore(const CallLimits& limits) override {
    return OpenGrpcStore(channel_, limits);
  }

  absl::StatusOr<uint64_t> Forget(absl::Span<const Digest> keys,
                                  uint64_t lease_id,
                                  const CallLimits& limits) override {
    v1::ForgetRequest request;
    for (const Digest& key : keys) request.add_keys(DigestBytes(key));
    request.set_lease_id(lease_id);
    auto response = Ask<v1::ForgetResponse>(
        channel_, "/latentkv.v1.Cache/Forget", request, limits);
    if (!response.ok()) return response.status();
    return response->records();
  }

  absl::Status PutSession(const RemoteSession& session,
                          const CallLimits& limits) override {
    v1::PutSessionRequest request;
    FillSession(session, request.mutable_session());
    return Ask<v1::PutSessionResponse>(
               channel_, "/latentkv.v1.Cache/PutSession", request, limits)
        .status();
  }
  absl::StatusOr<RemoteSession> GetSession(absl::string_view name,
                                           const CallLimits& limits) override {
    v1::GetSessionRequest request;
    request.set_name(name.data(), name.size());
    auto response = Ask<v1::Session>(channel_, "/latentkv.v1.Cache/GetSession",
                                     request, limits);
    if (!response.ok()) return response.status();
    return FromSession(*response);
  }
  absl::StatusOr<std::vector<RemoteSession>> ListSessions(
      const CallLimits& limits) override {
    auto response = Ask<v1::ListSessionsResponse>(
        channel_, "/latentkv.v1.Cache/ListSessions", v1::ListSessionsRequest(),
        limits);
    if (!response.ok()) return response.status();
    std::vector<RemoteSession> sessions;
    for (const v1::Session& message : response->sessions()) {
      absl::StatusOr<RemoteSession> session = FromSession(message);
      if (!session.ok()) return session.status();
      sessions.push_back(*std::move(session));
    }
    return sessions;
  }
  absl::Status DeleteSession(absl::string_view name,
                             const CallLimits& limits) override {
    v1::DeleteSessionRequest request;
    request.set_name(name.data(), name.size());
    return Ask<v1::DeleteSessionResponse>(
               channel_, "/latentkv.v1.Cache/DeleteSession", request, limits)
        .status();
  }

  absl::StatusOr<Digest> PutBasis(ByteSpan basis,
                                  const CallLimits& limits) override {
    const Digest digest = Sha256({basis});
    WireCall call(channel_, "/latentkv.v1.Cache/PutBasis", limits);
    v1::BasisChunk chunk;
    chunk.set_digest(DigestBytes(digest));
    for (size_t at = 0; at < basis.size(); at += kBasisChunkBytes) {
      ByteSpan part = basis.subspan(at, kBasisChunkBytes);
      chunk.set_data(part.data(), part.size());
      if (!call.Send(SerializeMessage(chunk))) break;
      chunk.clear_digest();
    }
    call.SendDone();
    grpc::ByteBuffer message;
    while (call.Receive(&message)) {
    }
    absl::Status status = call.Finish();
    if (!status.ok()) return status;
    return digest;
  }
  absl::StatusOr<Bytes> GetBasis(const Digest& digest,
                                 const CallLimits& limits) override {
    v1::GetBasisRequest request;
    request.set_digest(DigestBytes(digest));
    WireCall call(channel_, "/latentkv.v1.Cache/GetBasis", limits);
    call.Send(SerializeMessage(request));
    call.SendDone();
    Bytes basis;
    v1::BasisChunk chunk;
    grpc::ByteBuffer message;
    while (call.Receive(&message)) {
      if (!ParseMessage(message, &chunk))
        return absl::InternalError("the daemon's answer cannot be read");
      if (chunk.data().size() > kBasisBytesMax - basis.size()) {
        return absl::InternalError(
            "the daemon sent more than a basis may hold");
      }
      basis.insert(basis.end(), chunk.data().begin(), chunk.data().end());
    }
    absl::Status status = call.Finish();
    if (!status.ok()) return status;
    if (Sha256({basis}) != digest)
      return absl::DataLossError(
          absl::StrCat("basis ", digest.Hex(), " does not verify"));
    return basis;
  }
  absl::StatusOr<std::vector<RemoteBasis>> ListBases(
      const CallLimits& limits) override {
    auto response =
        Ask<v1::ListBasesResponse>(channel_, "/latentkv.v1.Cache/ListBases",
                                   v1::ListBasesRequest(), limits);
    if (!response.ok()) return response.status();
    std::vector<RemoteBasis> bases;
    for (int i = 0;
         i < std::min(response->digests_size(), response->bytes_size()); ++i) {
      absl::StatusOr<Digest> digest =
          DigestFromBytes(AsBytes(response->digests(i)));
      if (!digest.ok()) return digest.status();
      bases.push_back({*digest, response->bytes(i)});
    }
    return bases;
  }

  absl::StatusOr<RemoteStats> Stats(const CallLimits& limits) override {
    auto r = Ask<v1::StatsResponse>(channel_, "/latentkv.v1.Admin/Stats",
                                    v1::StatsRequest(), limits);
    if (!r.ok()) return r.status();
    RemoteStats stats;
    stats.version = r->version();
    stats.records = r->records();
    stats.stored_bytes = r->stored_bytes();
    stats.disk_bytes = r->disk_bytes();
    stats.capacity_bytes = r->capacity_bytes();
    stats.memory_bytes = r->memory_bytes();
    stats.hits = r->hits();
    stats.misses = r->misses();
    stats.fetched_bytes = r->fetched_bytes();
    stats.evicted_records = r->evicted_records();
    stats.quarantined_records = r->quarantined_records();
    stats.sessions = r->sessions();
    stats.uptime_ms = r->uptime_ms();
    stats.stores = r->stores();
    stats.stores_refused = r->stores_refused();
    return stats;
  }
  absl::Status Drain(const CallLimits& limits) override {
    return Ask<v1::DrainResponse>(channel_, "/latentkv.v1.Admin/Drain",
                                  v1::DrainRequest(), limits)
        .status();
  }

 private:
  const std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CacheChannel>> MakeGrpcChannel(
    absl::string_view address) {
  absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      OpenWireChannel(address);
  if (!channel.ok()) return channel.status();
  return std::make_unique<GrpcChannel>(*std::move(channel));
}

}  // namespace latentkv
