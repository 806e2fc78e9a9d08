#include "client/c/latentkv.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/c/boundary.h"
#include "client/client.h"
#include "core/limits.h"
#include "kernels/device.h"

struct latentkv_client {
  std::unique_ptr<latentkv::Client> client;
};
struct latentkv_job {
  std::unique_ptr<latentkv::Job> job;
};

namespace latentkv::c_api {
namespace {

absl::Time After(uint32_t milliseconds) {
  return absl::Now() + absl::Milliseconds(milliseconds);
}

absl::StatusOr<ClientOptions> OptionsOf(const latentkv_options* from) {
  absl::Status status = NotNull(from, "options");
  if (status.ok())
    status = CheckStructBytes(from->struct_bytes, sizeof(*from), "options");
  if (status.ok()) status = NotNull(from->address, "options.address");
  if (status.ok()) status = NotNull(from->model_digest, "options.model_digest");
  if (!status.ok()) return status;
  absl::StatusOr<Geometry> geometry =
      GeometryOf(from->layers, from->layer_count);
  if (!geometry.ok()) return geometry.status();
  ClientOptions options;
  options.address = from->address;
  options.scope.tenant = TextOr(from->tenant, "");
  options.scope.salt = TextOr(from->salt, "");
  options.scope.model = DigestAt(from->model_digest);
  if (from->adapter_digest != nullptr)
    options.scope.adapter = DigestAt(from->adapter_digest);
  options.geometry = *std::move(geometry);
  options.basis_path = TextOr(from->basis_path, "");
  options.profile = TextOr(from->profile, "exact");
  options.step = from->step;
  options.loss_chain_max = from->loss_chain_max;
  if (from->staging_bytes_max > 0)
    options.staging_bytes_max = from->staging_bytes_max;
  options.thread_count = from->thread_count;
  options.tensor_parallel = {from->tensor_parallel_rank,
                             std::max(1u, from->tensor_parallel_ranks),
                             TextOr(from->tensor_parallel_meeting, "")};
  return options;
}

// With the memory that the prompt's spans need beyond the caller's.
struct HeldPrompt {
  std::vector<BlockExtra> extras;
  Prompt prompt;
};

absl::Status ReadPrompt(const latentkv_prompt* from, HeldPrompt* held) {
  absl::Status status = NotNull(from, "prompt");
  if (status.ok())
    status = CheckStructBytes(from->struct_bytes, sizeof(*from), "prompt");
  if (status.ok() && from->token_count > 0)
    status = NotNull(from->tokens, "prompt.tokens");
  if (status.ok() && from->extra_count > 0)
    status = NotNull(from->extras, "prompt.extras");
  if (!status.ok()) return status;
  if (from->extra_count > kChainBlocksMax)
    return absl::InvalidArgumentError("prompt.extra_count is too large");
  for (size_t i = 0; i < from->extra_count; ++i) {
    const latentkv_extra& extra = from->extras[i];
    if (extra.byte_count > kExtraBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the extra of block ", extra.block, " has ",
                       extra.byte_count, " bytes, more than ", kExtraBytesMax));
    }
    if (extra.byte_count > 0)
      status = NotNull(extra.bytes, "prompt.extras.bytes");
    if (!status.ok()) return status;
    held->extras.push_back(
        {extra.block, Bytes(extra.bytes, extra.bytes + extra.byte_count)});
  }
  held->prompt.tokens = absl::MakeConstSpan(from->tokens, from->token_count);
  held->prompt.extras = held->extras;
  if (from->salt != nullptr) held->prompt.salt = from->salt;
  return absl::OkStatus();
}

// What load and store have in common: `begin` is called with the prompt and the
// page ids.
template <typename Begin>
absl::Status BeginJob(latentkv_client* client, const latentkv_prompt* prompt,
                      const uint64_t* page_ids, size_t page_id_count,
                      latentkv_job** job, const Begin& begin) {
  HeldPrompt held;
  absl::Status status = NotNull(client, "client");
  if (status.ok()) status = ReadPrompt(prompt, &held);
  if (status.ok() && page_id_count > 0) status = NotNull(page_ids, "page_ids");
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Job>> begun =
      begin(client->client.get(), held.prompt,
            absl::MakeConstSpan(page_ids, page_id_count));
  if (!begun.ok()) return begun.status();
  if (job != nullptr) *job = new latentkv_job{*std::move(begun)};
  return absl::OkStatus();
}

absl::Status ReadPages(const latentkv_page_layer* layers, uint32_t layer_count,
                       PagedCache* pages) {
  absl::Status status = NotNull(layers, "layers");
  if (!status.ok()) return status;
  if (layer_count > kLayersMax)
    return absl::InvalidArgumentError(absl::StrCat(layer_count, " layers"));
  const auto strides = [](const latentkv_strides& s) {
    return PageStrides{s.page, s.token, s.head, s.dim};
  };
  for (uint32_t i = 0; i < layer_count; ++i) {
    pages->layers.push_back({static_cast<uint8_t*>(layers[i].key),
                             static_cast<uint8_t*>(layers[i].value),
                             strides(layers[i].key_strides),
                             strides(layers[i].value_strides)});
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace latentkv::c_api

using latentkv::ByteSpan;
using latentkv::c_api::After;
using latentkv::c_api::Guarded;
using latentkv::c_api::NotNull;

const char* latentkv_error(void) { return latentkv::c_api::LastError(); }

const char* latentkv_version(void) { return LATENTKV_VERSION; }

latentkv_code latentkv_open(const latentkv_options* options,
                            latentkv_client** client) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(client, "client");
    if (!status.ok()) return status;
    *client = nullptr;
    absl::StatusOr<latentkv::ClientOptions> read =
        latentkv::c_api::OptionsOf(options);
    if (!read.ok()) return read.status();
    absl::StatusOr<std::unique_ptr<latentkv::Client>> opened =
        latentkv::Client::Open(*read);
    if (!opened.ok()) return opened.status();
    *client = new latentkv_client{*std::move(opened)};
    return absl::OkStatus();
  });
}

void latentkv_close(latentkv_client* client) { delete client; }

int latentkv_supports_devices(void) {
  return latentkv::HasDeviceBackend() ? 1 : 0;
}

latentkv_code latentkv_register_pages(latentkv_client* client,
                                      const latentkv_page_layer* layers,
                                      uint32_t layer_count,
                                      uint32_t page_tokens,
                                      uint64_t page_count) {
  return Guarded([&]() -> absl::Status {
    latentkv::PagedCache pages;
    absl::Status status = NotNull(client, "client");
    if (status.ok())
      status = latentkv::c_api::ReadPages(layers, layer_count, &pages);
    if (!status.ok()) return status;
    pages.page_tokens = page_tokens;
    pages.page_count = page_count;
    return client->client->RegisterPages(std::move(pages));
  });
}

latentkv_code latentkv_match(latentkv_client* client,
                             const latentkv_prompt* prompt, uint32_t lease_ms,
                             uint32_t deadline_ms, uint64_t* token_count) {
  return Guarded([&]() -> absl::Status {
    const absl::Time deadline = After(deadline_ms);
    latentkv::c_api::HeldPrompt held;
    absl::Status status = NotNull(client, "client");
    if (status.ok()) status = NotNull(token_count, "token_count");
    if (status.ok()) status = latentkv::c_api::ReadPrompt(prompt, &held);
    if (!status.ok()) return status;
    absl::StatusOr<uint64_t> tokens = client->client->Match(
        held.prompt, absl::Milliseconds(lease_ms), deadline);
    *token_count = tokens.ok() ? *tokens : 0;
    return tokens.status();
  });
}

latentkv_code latentkv_load(latentkv_client* client,
                            const latentkv_prompt* prompt, uint64_t first,
                            uint64_t count, const uint64_t* page_ids,
                            size_t page_id_count, uint32_t deadline_ms,
                            void* stream, latentkv_job** job) {
  return Guarded([&]() -> absl::Status {
    const absl::Time deadline = After(deadline_ms);
    absl::Status status = NotNull(job, "job");
    if (!status.ok()) return status;
    *job = nullptr;
    return latentkv::c_api::BeginJob(
        client, prompt, page_ids, page_id_count, job,
        [&](latentkv::Client* to, const latentkv::Prompt& what, auto pages) {
          return to->Load(what, first, count, pages, deadline, stream);
        });
  });
}

latentkv_code latentkv_store(latentkv_client* client,
                             const latentkv_prompt* prompt, uint64_t first,
                             uint64_t count, const uint64_t* page_ids,
                             size_t page_id_count, void* stream,
                             latentkv_job** job) {
  return Guarded([&]() -> absl::Status {
    if (job != nullptr) *job = nullptr;
    return latentkv::c_api::BeginJob(
        client, prompt, page_ids, page_id_count, job,
        [&](latentkv::Client* to, const latentkv::Prompt& what, auto pages) {
          return to->Store(what, first, count, pages, stream);
        });
  });
}

latentkv_code latentkv_wait(latentkv_job* job, int32_t layer,
                            uint32_t timeout_ms, latentkv_result* result) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(job, "job");
    if (!status.ok()) return status;
    absl::StatusOr<latentkv::TransferResult> good =
        job->job->Wait(layer, absl::Milliseconds(timeout_ms));
    if (!good.ok()) return good.status();
    if (result != nullptr)
      *result = {good->token_count, good->frame_bytes, good->exact_blocks,
                 good->loss_chain};
    return absl::OkStatus();
  });
}

void latentkv_job_free(latentkv_job* job) { delete job; }

latentkv_code latentkv_flush(latentkv_client* client, uint32_t timeout_ms) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(client, "client");
    return status.ok() ? client->client->Flush(absl::Milliseconds(timeout_ms))
                       : status;
  });
}

void latentkv_get_stats(latentkv_client* client, latentkv_stats* stats) {
  if (client == nullptr || stats == nullptr) return;
  const latentkv::ClientStats from = client->client->Stats();
  *stats = {from.lookups,
            from.hit_tokens,
            from.loaded_tokens,
            from.loaded_bytes,
            from.load_failures,
            from.stored_blocks,
            from.stored_bytes,
            from.stored_raw_bytes,
            from.dropped_blocks,
            from.store_failures,
            from.device_encoded_blocks,
            from.breaker_open,
            from.guarded_blocks};
}

latentkv_code latentkv_session_put(latentkv_client* client, const char* name,
                                   const uint8_t* record, size_t record_bytes,
                                   uint32_t deadline_ms) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(client, "client");
    if (status.ok()) status = NotNull(name, "name");
    if (status.ok() && record_bytes > 0) status = NotNull(record, "record");
    if (!status.ok()) return status;
    return client->client->PutSession(name, ByteSpan(record, record_bytes),
                                      After(deadline_ms));
  });
}

latentkv_code latentkv_session_get(latentkv_client* client, const char* name,
                                   uint8_t** record, size_t* record_bytes,
                                   uint32_t deadline_ms) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(client, "client");
    if (status.ok()) status = NotNull(name, "name");
    if (status.ok()) status = NotNull(record, "record");
    if (status.ok()) status = NotNull(record_bytes, "record_bytes");
    if (!status.ok()) return status;
    *record = nullptr;
    *record_bytes = 0;
    absl::StatusOr<std::string> kept =
        client->client->GetSession(name, After(deadline_ms));
    if (!kept.ok()) return kept.status();
    return latentkv::c_api::CopyOut(kept->data(), kept->size(), record,
                                    record_bytes);
  });
}

latentkv_code latentkv_session_delete(latentkv_client* client, const char* name,
                                      uint32_t deadline_ms) {
  return Guarded([&]() -> absl::Status {
    absl::Status status = NotNull(client, "client");
    if (status.ok()) status = NotNull(name, "name");
    if (!status.ok()) return status;
    return client->client->DeleteSession(name, After(deadline_ms));
  });
}

void latentkv_free(void* memory) { std::free(memory); }
