#include "server/cache_service.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "server/fetch_plan.h"
#include "spdlog/spdlog.h"
#include "transport/convert.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

// A reader has those of its one model: a few versions.
constexpr size_t kAcceptBasesMax = 16;

grpc::Status Invalid(const std::string& reason) {
  return {grpc::StatusCode::INVALID_ARGUMENT, reason};
}
grpc::Status Busy(const std::string& what) {
  return {grpc::StatusCode::RESOURCE_EXHAUSTED,
          absl::StrCat("too many ", what, " at once; try again later")};
}

template <typename Field>
absl::StatusOr<std::vector<Digest>> Digests(const Field& field,
                                            size_t count_max) {
  if (static_cast<size_t>(field.size()) > count_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(field.size(), " keys; at most ", count_max));
  }
  std::vector<Digest> digests;
  digests.reserve(field.size());
  for (const std::string& bytes : field) {
    absl::StatusOr<Digest> digest = DigestFromBytes(AsBytes(bytes));
    if (!digest.ok()) return digest.status();
    digests.push_back(*digest);
  }
  return digests;
}

// Releases a lease when a call ends, however it ends.
class LeaseHolder {
 public:
  LeaseHolder(BlockStore* store, uint64_t lease_id)
      : store_(store), lease_id_(lease_id) {}
  ~LeaseHolder() {
    if (lease_id_ != 0) store_->ReleaseLease(lease_id_);
  }
  LeaseHolder(const LeaseHolder&) = delete;
  LeaseHolder& operator=(const LeaseHolder&) = delete;

 private:
  BlockStore* store_;
  uint64_t lease_id_;
};

static_assert(v1::FetchChunk::kPayloadFieldNumber == kLargeField);

grpc::Status SendSections(FetchPlan* plan, const grpc::ServerContext& context,
                          FetchStream* stream) {
  v1::FetchChunk chunk;
  // The count grows once the first sections have been read, hence the call in
  // the condition.
  for (uint32_t section = 0; section < plan->MostSections(); ++section) {
    for (size_t record = 0; record < plan->size(); ++record) {
      if (section >= plan->section_count(record)) continue;
      if (context.IsCancelled())
        return {grpc::StatusCode::CANCELLED, "cancelled by the client"};
      absl::StatusOr<FetchPlan::Section> read = plan->Read(record, section);
      const bool gone =
          absl::IsNotFound(read.status()) || absl::IsDataLoss(read.status());
      if (!read.ok() && !gone) return ToGrpc(read.status());
      if (absl::IsDataLoss(read.status()))
        spdlog::warn("fetch: {}", read.status().ToString());
      chunk.Clear();
      chunk.set_record(record);
      chunk.set_section(section);
      chunk.set_missing(gone);
      if (gone) read = FetchPlan::Section{};
      chunk.set_header(read->header.data(), read->header.size());
      if (!stream->Write(LayOutMessage(chunk, read->payload, read->owner))) {
        return {grpc::StatusCode::CANCELLED, "the client went away"};
      }
    }
  }
  return grpc::Status::OK;
}

}  // namespace

CacheService::CacheService(BlockStore* store, const Clock* clock,
                           const ServiceLimits& limits)
    : store_(store),
      clock_(clock),
      limits_(limits),
      fetches_(limits.fetches),
      stores_(limits.stores),
      bases_(limits.bases),
      held_(limits.fetch_held_bytes) {
  CountSessions();
  // What the generated WithSplitStreamingMethod_Fetch does, but for the type of
  // the answers.
  const int fetch = v1::FetchRequest::descriptor()
                        ->file()
                        ->FindServiceByName("Cache")
                        ->FindMethodByName("Fetch")
                        ->index();
  MarkMethodStreamed(
      fetch, new grpc::internal::SplitServerStreamingHandler<v1::FetchRequest,
                                                             grpc::ByteBuffer>(
                 [this](grpc::ServerContext* context, FetchStream* stream) {
                   return StreamFetch(context, stream);
                 }));
}

grpc::Status CacheService::Lookup(grpc::ServerContext*,
                                  const v1::LookupRequest* request,
                                  v1::LookupResponse* response) {
  absl::StatusOr<std::vector<Digest>> keys =
      Digests(request->keys(), kChainBlocksMax);
  if (!keys.ok()) return ToGrpc(keys.status());
  absl::StatusOr<std::vector<Digest>> bases =
      Digests(request->accept_bases(), kAcceptBasesMax);
  if (!bases.ok()) return ToGrpc(bases.status());
  PrefixQuery query;
  query.keys = *keys;
  query.accept_exact = request->accept_exact();
  query.accept_bases = *std::move(bases);
  query.loss_chain_max = request->loss_chain_max();
  query.lease_ms = request->lease_ms();
  absl::StatusOr<PrefixHit> hit = store_->FindPrefix(query);
  if (!hit.ok()) return ToGrpc(hit.status());
  for (const RecordEntry& entry : hit->records) {
    v1::RecordInfo* info = response->add_records();
    FillRef(entry.id.key, entry.id.encoding, info->mutable_ref());
    info->set_frame_bytes(entry.frame_bytes);
    info->set_section_count(entry.section_count);
    info->set_loss_chain(entry.loss_chain);
  }
  response->set_lease_id(hit->lease_id);
  return grpc::Status::OK;
}

grpc::Status CacheService::StreamFetch(grpc::ServerContext* context,
                                       FetchStream* stream) {
  v1::FetchRequest request;
  if (!stream->Read(&request)) return Invalid("no request");
  LeaseHolder lease(store_, request.lease_id());
  Admission::Ticket ticket(&fetches_);
  if (!ticket.admitted()) return Busy("fetches");
  if (static_cast<size_t>(request.records_size()) > kChainBlocksMax)
    return Invalid("too many records in one fetch");
  std::vector<RecordId> ids;
  ids.reserve(request.records_size());
  for (const v1::RecordRef& ref : request.records()) {
    absl::StatusOr<RecordName> name = FromRef(ref);
    if (!name.ok()) return ToGrpc(name.status());
    ids.push_back({name->key, name->encoding});
  }
  FetchPlan plan(store_, std::move(ids), &held_);
  return SendSections(&plan, *context, stream);
}

absl::Status CacheService::StoreOne(const v1::StoreRequest& request) {
  std::shared_lock<std::shared_mutex> lock(drain_mutex_);
  if (draining_)
    return absl::UnavailableError("draining: no new blocks are taken");
  absl::StatusOr<Digest> parent = Digest{};
  if (!request.parent().empty())
    parent = DigestFromBytes(AsBytes(request.parent()));
  if (!parent.ok()) return parent.status();
  if (request.frame().size() > kFrameBytesMax)
    return absl::InvalidArgumentError("frame too large");
  return store_->Put(AsBytes(request.frame()), *parent, request.sync());
}

grpc::Status CacheService::Store(
    grpc::ServerContext*,
    grpc::ServerReaderWriter<v1::StoreResponse, v1::StoreRequest>* stream) {
  Admission::Ticket ticket(&stores_);
  if (!ticket.admitted()) return Busy("store streams");
  v1::StoreRequest request;
  v1::StoreResponse response;
  while (stream->Read(&request)) {
    absl::Status status = StoreOne(request);
    if (!status.ok()) spdlog::debug("store refused: {}", status.ToString());
    response.set_sequence(request.sequence());
    response.set_code(static_cast<uint32_t>(status.code()));
    response.set_message(std::string(status.message()));
    if (!stream->Write(response)) break;
  }
  return grpc::Status::OK;
}

grpc::Status CacheService::Forget(grpc::ServerContext*,
                                  const v1::ForgetRequest* request,
                                  v1::ForgetResponse* response) {
  absl::StatusOr<std::vector<Digest>> keys =
      Digests(request->keys(), kChainBlocksMax);
  if (!keys.ok()) return ToGrpc(keys.status());
  if (request->lease_id() != 0) store_->ReleaseLease(request->lease_id());
  absl::StatusOr<uint64_t> records = store_->Forget(*keys);
  if (!records.ok()) return ToGrpc(records.status());
  response->set_records(*records);
  return grpc::Status::OK;
}

void CacheService::Drain() {
  draining_ = true;
  // Whoever held the lock shared has finished its frame when this gets it;
  // whoever comes later sees draining_.
  std::unique_lock<std::shared_mutex> lock(drain_mutex_);
}

void CacheService::AwaitReads(absl::Time deadline) {
  fetches_.AwaitIdle(deadline);
  bases_.AwaitIdle(deadline);
}

grpc::Status AdminService::Stats(grpc::ServerContext*, const v1::StatsRequest*,
                                 v1::StatsResponse* response) {
  const StoreStats stats = store_->Stats();
  response->set_version(kVersion);
  response->set_records(stats.records);
  response->set_stored_bytes(stats.stored_bytes);
  response->set_disk_bytes(stats.disk_bytes);
  response->set_capacity_bytes(stats.capacity_bytes);
  response->set_memory_bytes(stats.memory_bytes);
  response->set_hits(stats.hits);
  response->set_misses(stats.misses);
  response->set_fetched_bytes(stats.fetched_bytes);
  response->set_evicted_records(stats.evicted_records);
  response->set_quarantined_records(stats.quarantined_records);
  response->set_sessions(cache_->sessions());
  response->set_uptime_ms(absl::ToInt64Milliseconds(clock_->Now() - started_));
  response->set_stores(stats.stores);
  response->set_stores_refused(stats.stores_refused);
  return grpc::Status::OK;
}

grpc::Status AdminService::Drain(grpc::ServerContext*, const v1::DrainRequest*,
                                 v1::DrainResponse*) {
  spdlog::info("draining: no new blocks are taken");
  cache_->Drain();
  return grpc::Status::OK;
}

}  // namespace latentkv
