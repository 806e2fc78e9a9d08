#include "client/client.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/breaker_channel.h"
#include "client/config.h"
#include "client/page_registry.h"
#include "client/store_pipeline.h"
#include "core/limits.h"

namespace latentkv {
namespace {

class ClientImpl final : public Client {
 public:
  explicit ClientImpl(ClientConfig config)
      : config_(std::move(config)),
        log_(config_.logger, config_.clock),
        breaker_(config_.clock, &log_),
        channel_(MakeBreakerChannel(config_.channel.get(), &breaker_)),
        pages_(*config_.share, *config_.devices, config_.staging_bytes_max,
               config_.thread_count,
               config_.codec->basis_view() == nullptr ? nullptr
                                                      : config_.codec.get(),
               config_.write, &log_),
        pool_(config_.thread_count),
        loads_({channel_.get(), config_.codec.get(), &pool_, &losses_,
                &counters_, &log_, config_.read}),
        stores_({channel_.get(), &breaker_, config_.codec.get(),
                 config_.share.get(), config_.ranks.get(), &losses_, &counters_,
                 &log_, config_.clock, config_.write, config_.staging_bytes_max,
                 config_.thread_count}) {}

  absl::Status RegisterPages(PagedCache pages) override {
    return pages_.Register(std::move(pages));
  }

  absl::StatusOr<uint64_t> Match(const Prompt& prompt, absl::Duration lease,
                                 absl::Time deadline) override {
    absl::StatusOr<std::vector<Digest>> keys =
        Keys(prompt, prompt.tokens.size());
    if (!keys.ok()) return keys.status();
    ++counters_.lookups;
    if (keys->empty()) return 0;
    LookupQuery query;
    query.keys = *std::move(keys);
    query.accept_bases = config_.read.bases;
    query.loss_chain_max = config_.read.loss_chain_max;
    query.lease_ms = absl::ToInt64Milliseconds(lease);
    absl::StatusOr<LookupAnswer> answer =
        channel_->Lookup(query, {deadline, nullptr});
    if (!answer.ok()) {
      // What opened the breaker has been said.
      if (!breaker_.open()) {
        log_.Warn(Failure::kLookup,
                  absl::StrCat("a lookup failed, which is a miss: ",
                               answer.status().message()));
      }
      return 0;
    }
    const uint64_t tokens = answer->records.size() * kBlockTokens;
    counters_.hit_tokens += tokens;
    return tokens;
  }

  absl::StatusOr<std::unique_ptr<Job>> Load(const Prompt& prompt,
                                            uint64_t first, uint64_t count,
                                            absl::Span<const uint64_t> page_ids,
                                            absl::Time deadline,
                                            EngineStream stream) override {
    if (first % kBlockTokens != 0 || count % kBlockTokens != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a load begins and ends on multiples of ", kBlockTokens));
    }
    absl::StatusOr<Range> range = Prepare(prompt, first, count, page_ids);
    if (!range.ok()) return range.status();
    LoadRequest request;
    request.keys.assign(range->keys.begin() + range->first_block,
                        range->keys.end());
    request.tokens =
        BlockTokens(prompt, request.keys.size() + range->first_block);
    request.first_token = first;
    absl::StatusOr<DeviceEventPtr> used = range->pages->UsedUntil(stream);
    if (!used.ok()) return used.status();
    request.pages = std::move(range->pages);
    request.pages_used = *std::move(used);
    request.slots = std::move(range->slots);
    request.deadline = deadline;
    return loads_.Start(std::move(request));
  }

  absl::StatusOr<std::unique_ptr<Job>> Store(
      const Prompt& prompt, uint64_t first, uint64_t count,
      absl::Span<const uint64_t> page_ids, EngineStream stream) override {
    const bool lacks = page_ids.empty() && !config_.share->whole();
    absl::StatusOr<Range> range =
        Prepare(prompt, first, count, page_ids, lacks);
    if (!range.ok()) return range.status();
    auto tokens = std::make_shared<const std::vector<uint32_t>>(
        BlockTokens(prompt, range->keys.size()));
    return stores_.Store({std::move(range->keys), std::move(tokens),
                          range->first_block, std::move(range->pages), stream,
                          std::move(range->slots), lacks});
  }

  absl::Status Flush(absl::Duration timeout) override {
    if (stores_.Flush(absl::Now() + timeout)) return absl::OkStatus();
    return absl::DeadlineExceededError("blocks are still being stored");
  }

  ClientStats Stats() const override {
    const ClientCounters& counters = counters_;
    return {counters.lookups,
            counters.hit_tokens,
            counters.loaded_tokens,
            counters.loaded_bytes,
            counters.load_failures,
            counters.stored_blocks,
            counters.stored_bytes,
            counters.stored_raw_bytes,
            counters.dropped_blocks,
            counters.store_failures,
            counters.device_encoded_blocks,
            breaker_.open(),
            counters.guarded_blocks};
  }

  absl::Status PutSession(absl::string_view name, ByteSpan record,
                          absl::Time deadline) override {
    RemoteSession session;
    session.name = std::string(name);
    session.record = std::string(AsText(record));
    return channel_->PutSession(session, {deadline, nullptr});
  }
  absl::StatusOr<std::string> GetSession(absl::string_view name,
                                         absl::Time deadline) override {
    absl::StatusOr<RemoteSession> session =
        channel_->GetSession(name, {deadline, nullptr});
    if (!session.ok()) return session.status();
    return std::move(session->record);
  }
  absl::Status DeleteSession(absl::string_view name,
                             absl::Time deadline) override {
    return channel_->DeleteSession(name, {deadline, nullptr});
  }

 private:
  // The whole blocks of a range of tokens, with where they lie.
  struct Range {
    std::vector<Digest> keys;  // From the chain's first block on.
    size_t first_block = 0;
    std::shared_ptr<EnginePages> pages;
    std::vector<std::vector<TokenRun>> slots;  // From first_block on.
  };

  static std::vector<uint32_t> BlockTokens(const Prompt& prompt,
                                           size_t blocks) {
    return {prompt.tokens.begin(),
            prompt.tokens.begin() + blocks * kBlockTokens};
  }

  const Geometry& geometry() const { return config_.codec->geometry(); }

  absl::StatusOr<std::vector<Digest>> Keys(const Prompt& prompt,
                                           uint64_t token_count) const {
    ChainScope scope = config_.scope;
    if (prompt.salt.has_value()) scope.salt = *prompt.salt;
    return ChainKeys(scope, prompt.tokens.first(token_count), prompt.extras);
  }

  // With `lacks`, its blocks lie nowhere.
  absl::StatusOr<Range> Prepare(const Prompt& prompt, uint64_t first,
                                uint64_t count,
                                absl::Span<const uint64_t> page_ids,
                                bool lacks = false) {
    if (first > prompt.tokens.size() || count > prompt.tokens.size() - first) {
      return absl::InvalidArgumentError(
          absl::StrCat(count, " tokens from ", first, " on, of a prompt of ",
                       prompt.tokens.size()));
    }
    Range range;
    range.pages = pages_.current();
    if (range.pages == nullptr)
      return absl::FailedPreconditionError("no pages are registered");
    absl::StatusOr<std::vector<Digest>> keys = Keys(prompt, first + count);
    if (!keys.ok()) return keys.status();
    range.keys = *std::move(keys);
    range.first_block = std::min<size_t>(
        (first + kBlockTokens - 1) / kBlockTokens, range.keys.size());
    if (lacks) range.slots.resize(range.keys.size() - range.first_block);
    for (size_t block = range.first_block; block < range.keys.size() && !lacks;
         ++block) {
      absl::Status status =
          RunsOfTokens(page_ids, range.pages->cache().page_tokens,
                       range.pages->cache().page_count, block * kBlockTokens,
                       kBlockTokens, &range.slots.emplace_back());
      if (!status.ok()) return status;
    }
    return range;
  }

  const ClientConfig config_;
  FailureLog log_;
  ClientCounters counters_;
  RestoredLosses losses_;
  CircuitBreaker breaker_;
  const std::unique_ptr<CacheChannel> channel_;
  PageRegistry pages_;  // Before those that use its pages are destroyed.
  WorkerPool pool_;
  LoadPipeline loads_;
  StorePipeline stores_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> MakeClient(ClientConfig config) try {
  if (config.share == nullptr) {
    absl::StatusOr<HeadShare> whole =
        HeadShare::Create(config.codec->geometry(), 0, 1);
    if (!whole.ok()) return whole.status();
    config.share = std::make_shared<const HeadShare>(*std::move(whole));
  }
  if (config.share->whole() != (config.ranks == nullptr)) {
    return absl::InvalidArgumentError(
        "several ranks, and those alone, exchange their heads");
  }
  return std::make_unique<ClientImpl>(std::move(config));
} catch (const std::exception& error) {
  return absl::ResourceExhaustedError(
      absl::StrCat("cannot start a client: ", error.what()));
}

absl::StatusOr<std::unique_ptr<Client>> Client::Open(
    const ClientOptions& options) {
  absl::StatusOr<ClientConfig> config = MakeClientConfig(options);
  if (!config.ok()) return config.status();
  return MakeClient(*std::move(config));
}

}  // namespace latentkv
