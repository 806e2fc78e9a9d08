#include "client/store_pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/limits.h"

namespace latentkv {

StorePipeline::StorePipeline(const Parts& parts)
    : parts_(parts),
      raw_bytes_(RawBytes(parts.share->model(), kBlockTokens)),
      part_bytes_(RawBytes(parts.share->held(), kBlockTokens)),
      budget_(parts.staging_bytes_max),
      ledger_(parts.counters, parts.log, parts.clock),
      sender_(parts.channel, &ledger_),
      encoders_(parts.codec, parts.options, &ledger_, parts.thread_count,
                [this](StagedBlock block) { sender_.Push(std::move(block)); }) {
  if (parts.ranks == nullptr) return;
  exchanger_ = std::make_unique<PartExchanger>(
      parts.ranks, parts.share, &ledger_, parts.log,
      [this](StagedBlock block) { encoders_.Push(std::move(block)); });
}

std::unique_ptr<Job> StorePipeline::Store(StoreRequest request) {
  auto progress = std::make_shared<StoreProgress>(request.slots.size());
  std::vector<Room> rooms = Stage(request);
  absl::StatusOr<DeviceEventPtr> complete = Gather(request, rooms);
  if (!complete.ok()) {
    parts_.log->Warn(
        Failure::kStore,
        absl::StrCat(
            "blocks are not stored, since their pages cannot be read: ",
            complete.status().message()));
    rooms.clear();
    complete = DeviceEventPtr();
  }
  const absl::Span<const Digest> keys =
      absl::MakeConstSpan(request.keys).subspan(request.first_block);
  for (size_t i = 0; i < rooms.size(); ++i) parts_.losses->Computed(keys[i]);
  if (exchanger_ == nullptr) {
    StoreWhole(&request, std::move(rooms), *std::move(complete), progress);
  } else if (!keys.empty()) {
    StoreParts(&request, std::move(rooms), *std::move(complete), progress);
  }
  return MakeStoreJob(std::move(progress));
}

bool StorePipeline::BehindLoss(absl::Span<const Digest> keys,
                               size_t block) const {
  for (size_t back = 1; back <= std::min<size_t>(block, parts_.share->ranks());
       ++back) {
    if (ledger_.Lost(keys[block - back])) return true;
  }
  return false;
}

std::vector<StorePipeline::Room> StorePipeline::Stage(
    const StoreRequest& request) {
  std::vector<Room> rooms;
  if (request.lacks || parts_.breaker->refuses() ||
      BehindLoss(request.keys, request.first_block))
    return rooms;
  for (size_t i = 0; i < request.slots.size(); ++i) {
    Room room;
    // Of a block that becomes whole here, that takes room as well.
    const bool grows = exchanger_ != nullptr && Owns(request.first_block + i);
    room.share = budget_.Take(part_bytes_ + (grows ? raw_bytes_ : 0));
    if (room.share) room.raw = request.pages->TakeBuffer();
    if (room.raw == nullptr) {
      parts_.log->Warn(
          Failure::kQueueFull,
          "too much waits to be sent: the rest of a chain is dropped");
      break;
    }
    rooms.push_back(std::move(room));
  }
  return rooms;
}

absl::StatusOr<DeviceEventPtr> StorePipeline::Gather(
    const StoreRequest& request, absl::Span<const Room> rooms) {
  if (rooms.empty()) return DeviceEventPtr();
  std::vector<BlockCopy> copies;
  for (size_t i = 0; i < rooms.size(); ++i)
    copies.push_back({request.slots[i], rooms[i].raw.get()});
  return request.pages->Gather(copies, request.stream);
}

StagedBlock StorePipeline::MakeBlock(
    const StoreRequest& request, uint32_t index,
    const std::shared_ptr<StoreProgress>& progress) {
  const size_t at = request.first_block + index, ranks = parts_.share->ranks();
  StagedBlock block;
  block.key = request.keys[at];
  if (at > 0) block.parent = request.keys[at - 1];
  if (at >= ranks) block.behind = request.keys[at - ranks];
  block.first_token = at * kBlockTokens;
  block.chain_tokens = request.tokens;
  if (!request.lacks) block.encoder = request.pages->encoder();
  block.progress = progress;
  block.index = index;
  return block;
}

void StorePipeline::StoreWhole(StoreRequest* request, std::vector<Room> rooms,
                               DeviceEventPtr complete,
                               const std::shared_ptr<StoreProgress>& progress) {
  const float inherited = parts_.losses->Inherited(
      absl::MakeConstSpan(request->keys).first(request->first_block));
  for (size_t i = 0; i < request->slots.size(); ++i) {
    if (i >= rooms.size()) {
      Drop(request->keys[request->first_block + i], progress.get(), i);
      continue;
    }
    StagedBlock block = MakeBlock(*request, i, progress);
    block.loss_inherited = inherited;
    block.raw = std::move(rooms[i].raw);
    block.raw_bytes = raw_bytes_;
    block.raw_complete = complete;
    block.share = std::move(rooms[i].share);
    ledger_.Admit(&block);
    encoders_.Push(std::move(block));
  }
}

void StorePipeline::StoreParts(StoreRequest* request, std::vector<Room> rooms,
                               DeviceEventPtr complete,
                               const std::shared_ptr<StoreProgress>& progress) {
  if (rooms.empty() && exchanger_->full()) {
    for (size_t i = 0; i < request->slots.size(); ++i) {
      const Digest& key = request->keys[request->first_block + i];
      if (Owns(request->first_block + i)) {
        Drop(key, progress.get(), i);
      } else {
        ledger_.LostElsewhere(key);
        progress->Lost(i);
      }
    }
    return;
  }
  StagedParts staged;
  staged.sequence = ledger_.Begin();
  staged.complete = std::move(complete);
  staged.progress = progress;
  const absl::Span<const Digest> keys =
      absl::MakeConstSpan(request->keys).subspan(request->first_block);
  staged.keys.assign(keys.begin(), keys.end());
  // The same on all ranks, whatever each of them has been through: what came of
  // an earlier attempt is of the same tokens.
  staged.batch.id = Sha256({AsBytes("latentkv batch of ranks"),
                            keys.front().span(), keys.back().span()});
  staged.batch.stored = absl::Now();
  staged.batch.first_owner = request->first_block % parts_.share->ranks();
  staged.batch.part_bytes = part_bytes_;
  staged.batch.device = request->pages->device();
  staged.batch.loss_inherited = parts_.losses->Inherited(
      absl::MakeConstSpan(request->keys).first(request->first_block));
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool own = Owns(request->first_block + i);
    if (i >= rooms.size()) {
      if (own) Drop(keys[i], progress.get(), i);
      continue;
    }
    const std::shared_ptr<uint8_t[]> part = std::move(rooms[i].raw);
    staged.batch.parts.push_back(
        {ByteSpan(part.get(), part_bytes_),
         std::shared_ptr<const void>(part, part.get())});
    if (own) {
      StagedBlock block = MakeBlock(*request, i, progress);
      block.share = std::move(rooms[i].share);
      ledger_.Admit(&block);
      staged.own.push_back(std::move(block));
    } else {
      staged.shares.push_back(std::move(rooms[i].share));
    }
  }
  exchanger_->Push(std::move(staged));
}

void StorePipeline::Drop(const Digest& key, StoreProgress* progress,
                         uint32_t index) {
  ledger_.Dropped(key);
  progress->Lost(index);
}

}  // namespace latentkv
