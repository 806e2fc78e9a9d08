#include "client/part_exchanger.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/limits.h"
#include "kernels/pages.h"

namespace latentkv {

PartExchanger::PartExchanger(RankExchange* ranks, const HeadShare* share,
                             StoreLedger* ledger, FailureLog* log,
                             std::function<void(StagedBlock)> next)
    : ranks_(ranks),
      share_(*share),
      ledger_(ledger),
      log_(log),
      next_(std::move(next)),
      buffers_(std::make_shared<HostBuffers>(
          RawBytes(share->model(), kBlockTokens))),
      raw_bytes_(RawBytes(share->model(), kBlockTokens)),
      thread_([this] { Work(); }) {}

PartExchanger::~PartExchanger() {
  ranks_->Close();
  queue_.Close();
  thread_.join();
}

void PartExchanger::Work() {
  while (std::optional<StagedParts> parts =
             queue_.Pop(absl::InfiniteFuture())) {
    Exchange(&*parts);
    --waiting_;
  }
}

void PartExchanger::Exchange(StagedParts* parts) {
  const absl::StatusOr<RankAgreement> agreed = MakeWhole(parts);
  const uint32_t blocks = agreed.ok() ? agreed->blocks : 0;
  std::vector<bool> owned(parts->keys.size());
  for (StagedBlock& block : parts->own) {
    owned[block.index] = true;
    if (!agreed.ok()) {
      ledger_->Failed(block, agreed.status());
    } else if (block.index >= blocks) {
      ledger_->Unreachable(block);
    } else {
      block.loss_inherited = agreed->loss_inherited;
      next_(std::move(block));
    }
  }
  for (uint32_t i = 0; i < parts->keys.size(); ++i) {
    if (owned[i] ||
        (parts->batch.first_owner + i) % share_.ranks() == share_.rank())
      continue;
    if (i < blocks) {
      ledger_->StoredElsewhere(parts->keys[i]);
      parts->progress->StoredElsewhere(i);
    } else {
      ledger_->LostElsewhere(parts->keys[i]);
      parts->progress->Lost(i);
    }
  }
  if (!agreed.ok() && parts->own.empty() &&
      !absl::IsCancelled(agreed.status())) {
    log_->Warn(Failure::kStore, absl::StrCat("a block is not stored: ",
                                             agreed.status().message()));
  }
  SayHowPartsGo();
  ledger_->End(parts->sequence);
}

absl::StatusOr<RankAgreement> PartExchanger::MakeWhole(StagedParts* parts) {
  // Whatever happens here, the others must hear of it: without parts there is
  // nothing to agree on.
  absl::Status status;
  if (parts->complete != nullptr) status = parts->complete->Wait();
  std::vector<StagedBlock*> owner(parts->batch.parts.size());
  try {
    for (StagedBlock& block : parts->own) {
      block.raw = buffers_->Take();
      block.raw_bytes = raw_bytes_;
      owner[block.index] = &block;
    }
  } catch (const std::exception& error) {
    status = absl::ResourceExhaustedError(error.what());
  }
  if (!status.ok()) parts->batch.parts.clear();
  try {
    absl::StatusOr<RankAgreement> agreed = ranks_->Exchange(
        parts->batch, [&](uint32_t block, uint32_t from, ByteSpan part) {
          PutHeads(share_.model(), share_.heads_of(from), 0,
                   share_.model().layers.size(), kBlockTokens, part,
                   {owner[block]->raw.get(), raw_bytes_});
        });
    if (!status.ok()) return status;
    return agreed;
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(error.what());
  }
}

void PartExchanger::SayHowPartsGo() {
  const absl::Status status = ranks_->link_status();
  if (status == link_status_) return;
  link_status_ = status;
  if (!status.ok())
    log_->Info(absl::StrCat("ranks exchange their heads by way of the host: ",
                            status.message()));
}

}  // namespace latentkv
