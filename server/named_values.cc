// The part of CacheService about sessions and bases: values under names.
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "server/cache_service.h"
#include "spdlog/spdlog.h"
#include "transport/convert.h"

namespace latentkv {
namespace {

constexpr char kSessionSpace[] = "session";
constexpr char kBasisSpace[] = "basis";
// Sizes apart from the bytes, so that listing does not read those.
constexpr char kBasisSizeSpace[] = "basis_size";
constexpr size_t kChunkBytes = 1u << 20;

absl::Status CheckSession(const v1::Session& session) {
  if (session.name().empty() || session.name().size() > kSessionNameBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a session's name has 1 to ", kSessionNameBytesMax, " bytes"));
  }
  if (session.record().size() > kSessionRecordBytesMax ||
      static_cast<size_t>(session.tokens_size()) >
          size_t{kChainBlocksMax} * kBlockTokens) {
    return absl::InvalidArgumentError("session too large");
  }
  return FromSession(session).status();
}

absl::StatusOr<v1::Session> LoadSession(BlockStore* store,
                                        absl::string_view name) {
  absl::StatusOr<Bytes> value = store->GetNamed(kSessionSpace, name);
  if (!value.ok()) return value.status();
  v1::Session session;
  if (!session.ParseFromArray(value->data(), static_cast<int>(value->size()))) {
    return absl::DataLossError(
        absl::StrCat("session ", name, " cannot be read"));
  }
  return session;
}

}  // namespace

void CacheService::CountSessions() {
  absl::StatusOr<std::vector<std::string>> names =
      store_->ListNamed(kSessionSpace);
  sessions_ = names.ok() ? names->size() : 0;
}

grpc::Status CacheService::PutSession(grpc::ServerContext*,
                                      const v1::PutSessionRequest* request,
                                      v1::PutSessionResponse*) {
  absl::Status status = CheckSession(request->session());
  if (!status.ok()) return ToGrpc(status);
  std::lock_guard<std::mutex> lock(sessions_mutex_);
  v1::Session session = request->session();
  absl::StatusOr<v1::Session> before = LoadSession(store_, session.name());
  const bool added = absl::IsNotFound(before.status());
  if (added && sessions_ >= limits_.sessions) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            absl::StrCat(limits_.sessions, " sessions are kept; delete some")};
  }
  const int64_t now = absl::ToUnixMillis(clock_->Now());
  if (before.ok()) {
    session.set_created_ms(before->created_ms());
  } else if (session.created_ms() == 0) {
    session.set_created_ms(now);
  }
  session.set_updated_ms(now);
  status = store_->PutNamed(kSessionSpace, session.name(),
                            AsBytes(session.SerializeAsString()));
  if (status.ok() && added) ++sessions_;
  return ToGrpc(status);
}

grpc::Status CacheService::GetSession(grpc::ServerContext*,
                                      const v1::GetSessionRequest* request,
                                      v1::Session* response) {
  absl::StatusOr<v1::Session> session = LoadSession(store_, request->name());
  if (!session.ok()) return ToGrpc(session.status());
  *response = *std::move(session);
  return grpc::Status::OK;
}

grpc::Status CacheService::ListSessions(grpc::ServerContext*,
                                        const v1::ListSessionsRequest*,
                                        v1::ListSessionsResponse* response) {
  absl::StatusOr<std::vector<std::string>> names =
      store_->ListNamed(kSessionSpace);
  if (!names.ok()) return ToGrpc(names.status());
  for (const std::string& name : *names) {
    absl::StatusOr<v1::Session> session = LoadSession(store_, name);
    if (absl::IsNotFound(session.status())) continue;  // Deleted since.
    if (absl::IsDataLoss(session.status())) {
      spdlog::warn("sessions: {}", session.status().ToString());
      continue;
    }
    if (!session.ok()) return ToGrpc(session.status());
    session->clear_tokens();
    session->clear_record();
    *response->add_sessions() = *std::move(session);
  }
  return grpc::Status::OK;
}

grpc::Status CacheService::DeleteSession(
    grpc::ServerContext*, const v1::DeleteSessionRequest* request,
    v1::DeleteSessionResponse*) {
  std::lock_guard<std::mutex> lock(sessions_mutex_);
  const bool there = !absl::IsNotFound(
      store_->GetNamed(kSessionSpace, request->name()).status());
  absl::Status status = store_->DeleteNamed(kSessionSpace, request->name());
  if (status.ok() && there) --sessions_;
  return ToGrpc(status);
}

absl::StatusOr<Bytes> CacheService::ReceiveBasis(
    grpc::ServerReader<v1::BasisChunk>* reader, Digest* digest) const {
  Bytes basis;
  v1::BasisChunk chunk;
  bool named = false;
  while (reader->Read(&chunk)) {
    if (!named) {
      absl::StatusOr<Digest> first = DigestFromBytes(AsBytes(chunk.digest()));
      if (!first.ok()) return first.status();
      *digest = *first;
      named = true;
    }
    if (chunk.data().size() > limits_.basis_bytes_max - basis.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a basis has at most ", limits_.basis_bytes_max, " bytes"));
    }
    basis.insert(basis.end(), chunk.data().begin(), chunk.data().end());
  }
  if (basis.empty()) return absl::InvalidArgumentError("empty basis");
  if (Sha256({basis}) != *digest)
    return absl::InvalidArgumentError(
        "the basis's bytes do not have its digest");
  return basis;
}

absl::Status CacheService::KeepBasis(const Digest& digest, const Bytes& basis) {
  std::lock_guard<std::mutex> lock(bases_mutex_);
  const std::string name = digest.Hex();
  absl::Status status = store_->PutNamed(kBasisSpace, name, basis);
  if (!status.ok()) return status;
  // The size comes last: what is listed is there.
  Bytes size;
  ByteWriter(&size).Put<uint64_t>(basis.size());
  return store_->PutNamed(kBasisSizeSpace, name, size);
}

grpc::Status CacheService::PutBasis(grpc::ServerContext*,
                                    grpc::ServerReader<v1::BasisChunk>* reader,
                                    v1::PutBasisResponse* response) {
  Admission::Ticket ticket(&bases_);
  if (!ticket.admitted())
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            "too many bases at once; try again later"};
  Digest digest;
  absl::StatusOr<Bytes> basis = ReceiveBasis(reader, &digest);
  if (!basis.ok()) return ToGrpc(basis.status());
  // Stored under its own digest, writing it again changes nothing.
  absl::Status status = KeepBasis(digest, *basis);
  response->set_digest(DigestBytes(digest));
  return ToGrpc(status);
}

grpc::Status CacheService::GetBasis(
    grpc::ServerContext*, const v1::GetBasisRequest* request,
    grpc::ServerWriter<v1::BasisChunk>* writer) {
  Admission::Ticket ticket(&bases_);
  if (!ticket.admitted())
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            "too many bases at once; try again later"};
  absl::StatusOr<Digest> digest = DigestFromBytes(AsBytes(request->digest()));
  if (!digest.ok()) return ToGrpc(digest.status());
  absl::StatusOr<Bytes> basis = store_->GetNamed(kBasisSpace, digest->Hex());
  if (!basis.ok()) return ToGrpc(basis.status());
  if (Sha256({*basis}) != *digest)
    return {grpc::StatusCode::DATA_LOSS, "the stored basis does not verify"};
  v1::BasisChunk chunk;
  chunk.set_digest(request->digest());
  for (size_t at = 0; at < basis->size(); at += kChunkBytes) {
    const ByteSpan part = ByteSpan(*basis).subspan(at, kChunkBytes);
    chunk.set_data(part.data(), part.size());
    if (!writer->Write(chunk))
      return {grpc::StatusCode::CANCELLED, "the client went away"};
    chunk.clear_digest();
  }
  return grpc::Status::OK;
}

grpc::Status CacheService::ListBases(grpc::ServerContext*,
                                     const v1::ListBasesRequest*,
                                     v1::ListBasesResponse* response) {
  absl::StatusOr<std::vector<std::string>> names =
      store_->ListNamed(kBasisSizeSpace);
  if (!names.ok()) return ToGrpc(names.status());
  for (const std::string& name : *names) {
    absl::StatusOr<Digest> digest = DigestFromHex(name);
    absl::StatusOr<Bytes> size = store_->GetNamed(kBasisSizeSpace, name);
    if (!digest.ok() || !size.ok() || size->size() != sizeof(uint64_t))
      continue;
    response->add_digests(DigestBytes(*digest));
    response->add_bytes(ByteReader(*size).Get<uint64_t>());
  }
  return grpc::Status::OK;
}

}  // namespace latentkv
