#include "transport/rank_mesh.h"

#include <grpcpp/channel.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "latentkv/v1/peer.pb.h"
#include "transport/cache_channel.h"
#include "transport/message_layout.h"
#include "transport/peer_client.h"
#include "transport/peer_service.h"
#include "transport/rank_inbox.h"
#include "transport/rank_round.h"
#include "transport/wire_call.h"
#include "transport/wire_channel.h"

namespace latentkv {
namespace {

// Parts move no slower than this, over whatever: a tenth of what gRPC moves
// between two busy processes.
constexpr double kBytesPerSecondMin = 64 << 20;
// How long a rank is waited for that did not come to the batch before, and
// longer once something came of it again: ranks that are well come within a
// part of it. The others wait for rank 0 so, too: one that comes behind them to
// batches that they gave up would otherwise wait for each, and never catch up.
constexpr absl::Duration kAwayPatience = absl::Milliseconds(100),
                         kBackPatience = absl::Milliseconds(500);
// Telling the others that a batch is given up is worth no more: they find out
// themselves.
constexpr absl::Duration kStopDuration = absl::Milliseconds(200);
// Between attempts to make a link; twice as long after each that failed.
constexpr absl::Duration kLinkPauseMin = absl::Seconds(30),
                         kLinkPauseMax = absl::Minutes(10);
constexpr char kGroup[] = "ranks";  // Of the meeting at rank 0.

std::string AddressOf(const std::string& meeting, uint32_t rank) {
  return absl::StrCat("unix:", meeting, ".", rank);
}

// One call that delivers messages to a rank.
class Delivery {
 public:
  Delivery(const std::shared_ptr<grpc::Channel>& channel,
           const CallLimits& limits)
      : call_(channel, "/latentkv.v1.Peer/Deliver", limits) {}
  bool Send(const v1::RankMessage& head, const RankPart* part = nullptr) {
    return call_.Send(part == nullptr
                          ? SerializeMessage(head)
                          : LayOutMessage(head, part->bytes, part->owner));
  }
  absl::Status Finish() {
    call_.SendDone();
    grpc::ByteBuffer receipt;
    while (call_.Receive(&receipt)) {
    }
    return call_.Finish();
  }

 private:
  WireCall call_;
};

class RankMesh final : public RankExchange {
 public:
  explicit RankMesh(const RankMeshOptions& options)
      : options_(options),
        inbox_(options.ranks),
        service_(&inbox_),
        away_(options.ranks) {}

  absl::Status Open() {
    for (uint32_t rank = 0; rank < options_.ranks; ++rank) {
      absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
          OpenWireChannel(AddressOf(options_.meeting, rank));
      if (!channel.ok()) return channel.status();
      channels_.push_back(*std::move(channel));
    }
    absl::StatusOr<std::unique_ptr<PeerServer>> server = PeerServer::Start(
        AddressOf(options_.meeting, options_.rank), &service_);
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    return absl::OkStatus();
  }
  ~RankMesh() override { Close(); }

  uint32_t rank() const override { return options_.rank; }
  uint32_t ranks() const override { return options_.ranks; }
  uint64_t batches_over_link() const override { return batches_over_link_; }
  absl::Status link_status() const override { return link_status_; }

  void Close() override {
    cancel_.Cancel();
    inbox_.StopAll("the client was closed");
  }

  absl::StatusOr<RankAgreement> Exchange(const RankBatch& batch,
                                         const TakePart& take) override {
    // Not behind the batch that said so, whose blocks would wait for it.
    if (std::exchange(joins_, false) && batch.device.has_value() &&
        !cancel_.cancelled())
      MakeLink(batch);
    v1::RankGo go;
    absl::Status status;
    {
      const auto round =
          std::make_shared<RankRound>(rank(), ranks(), batch, take);
      // Also when something throws: nobody may give a part to a batch that is
      // gone.
      const absl::Cleanup close = [&] {
        round->Close();
        inbox_.Close(batch.id);
      };
      inbox_.Open(batch.id, absl::ToUnixMillis(batch.stored), round);
      status = cancel_.cancelled()
                   ? absl::CancelledError("the client was closed")
                   : Run(batch, round.get(), &go);
    }
    if (!status.ok() && !cancel_.cancelled()) TellStop(batch, status.message());
    if (cancel_.cancelled())
      return absl::CancelledError("the client was closed");
    joins_ = go.join();
    if (!status.ok()) return status;
    return RankAgreement{go.blocks(), go.loss_inherited()};
  }

 private:
  absl::Status Run(const RankBatch& batch, RankRound* round, v1::RankGo* go) {
    const absl::Time deadline = absl::Now() + options_.patience;
    v1::RankReady ready;
    ready.set_blocks(batch.parts.size());
    ready.set_loss_inherited(batch.loss_inherited);
    ready.set_joins(options_.make_link != nullptr && batch.device.has_value() &&
                    !absl::IsFailedPrecondition(link_status_));
    if (link_ != nullptr && batch.part_bytes <= link_->bytes_max())
      ready.set_generation(link_->generation());
    absl::StatusOr<v1::RankGo> agreed =
        rank() == 0 ? Lead(batch, ready, round, deadline)
                    : Follow(batch, ready, round, deadline);
    if (!agreed.ok()) return agreed.status();
    *go = *std::move(agreed);
    const double bytes =
        static_cast<double>(batch.part_bytes) * batch.parts.size();
    const absl::Time moved = absl::Now() + options_.patience +
                             absl::Seconds(bytes / kBytesPerSecondMin);
    for (uint32_t block = 0; block < go->blocks(); ++block) {
      if (!round->Owns(block)) continue;
      absl::Status status =
          round->Part(rank(), block, batch.parts[block].bytes);
      if (!status.ok()) return status;
    }
    if (go->generation() != 0) return MoveOverLink(batch, *go, round, moved);
    absl::Status status = SendParts(batch, *go, round, moved);
    return status.ok() ? round->AwaitParts(go->blocks(), moved) : status;
  }

  // Rank 0. One that did not come to a batch is not waited for as long again
  // before something came of it.
  absl::StatusOr<v1::RankGo> Lead(const RankBatch& batch,
                                  const v1::RankReady& own, RankRound* round,
                                  absl::Time deadline) {
    std::vector<bool> came;
    absl::Duration patience = absl::InfiniteDuration();
    for (uint32_t other = 1; other < ranks(); ++other)
      patience = std::min(patience, PatienceWith(other));
    absl::StatusOr<std::vector<v1::RankReady>> ready = round->AwaitReady(
        own, std::min(deadline, absl::Now() + patience), &came);
    if (ready.ok()) away_.assign(ranks(), false);
    if (absl::IsDeadlineExceeded(ready.status())) {
      for (uint32_t other = 1; other < ranks(); ++other)
        SetAway(other, !came[other]);
    }
    if (!ready.ok()) return ready.status();
    v1::RankGo go;
    go.set_blocks(own.blocks());
    go.set_generation(own.generation());
    bool join = true;
    for (const v1::RankReady& one : *ready) {
      go.set_blocks(std::min(go.blocks(), one.blocks()));
      go.set_loss_inherited(
          std::max(go.loss_inherited(), one.loss_inherited()));
      if (one.generation() != go.generation()) go.set_generation(0);
      join &= one.joins();
    }
    go.set_join(join && go.generation() == 0 && absl::Now() >= next_join_);
    v1::RankMessage message = Message(batch);
    *message.mutable_go() = go;
    for (uint32_t other = 1; other < ranks(); ++other) {
      absl::Status status = Deliver(other, message, deadline);
      if (status.ok()) continue;
      SetAway(other,
              absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status));
      return status;
    }
    return go;
  }

  absl::StatusOr<v1::RankGo> Follow(const RankBatch& batch,
                                    const v1::RankReady& own, RankRound* round,
                                    absl::Time deadline) {
    v1::RankMessage message = Message(batch);
    *message.mutable_ready() = own;
    // Rank 0 may have begun to wait when this rank did, and its word takes a
    // moment.
    const absl::Time patient =
        std::min(deadline, absl::Now() + PatienceWith(0)) + kStopDuration;
    absl::Status status = Deliver(0, message, patient);
    SetAway(0, absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status));
    if (!status.ok()) return status;
    absl::StatusOr<v1::RankGo> go = round->AwaitGo(patient);
    if (go.ok()) away_[0] = false;
    SetAway(0, absl::IsDeadlineExceeded(go.status()));
    return go;
  }

  absl::Status SendParts(const RankBatch& batch, const v1::RankGo& go,
                         RankRound* round, absl::Time deadline) {
    std::vector<std::unique_ptr<Delivery>> deliveries(ranks());
    v1::RankMessage message = Message(batch);
    for (uint32_t block = 0; block < go.blocks(); ++block) {
      const uint32_t owner = round->OwnerOf(block);
      if (owner == rank()) continue;
      if (deliveries[owner] == nullptr) {
        deliveries[owner] = std::make_unique<Delivery>(
            channels_[owner], CallLimits{deadline, &cancel_});
      }
      message.set_block(block);
      if (deliveries[owner]->Send(message, &batch.parts[block])) continue;
      absl::Status status = OfRank(owner, deliveries[owner]->Finish());
      return status.ok() ? absl::UnavailableError(
                               absl::StrCat("rank ", owner, " takes no more"))
                         : status;
    }
    for (uint32_t other = 0; other < ranks(); ++other) {
      if (deliveries[other] == nullptr) continue;
      absl::Status status = OfRank(other, deliveries[other]->Finish());
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status MoveOverLink(const RankBatch& batch, const v1::RankGo& go,
                            RankRound* round, absl::Time deadline) {
    // As many blocks of each rank as one message has room for.
    const uint32_t stretch = link_->bytes_max() / batch.part_bytes * ranks();
    for (uint32_t first = 0; first < go.blocks(); first += stretch) {
      const uint32_t last = std::min(go.blocks(), first + stretch);
      std::vector<std::vector<RankPart>> to(ranks());
      std::vector<uint32_t> own;
      for (uint32_t block = first; block < last; ++block) {
        if (round->Owns(block)) {
          own.push_back(block);
        } else {
          to[round->OwnerOf(block)].push_back(batch.parts[block]);
        }
      }
      std::vector<uint64_t> from_bytes(ranks(), own.size() * batch.part_bytes);
      from_bytes[rank()] = 0;
      absl::Status taken;
      absl::Status status = link_->Exchange(
          to, from_bytes,
          [&](uint32_t from, ByteSpan bytes) {
            for (size_t i = 0; i < own.size(); ++i) {
              taken.Update(round->Part(
                  from, own[i],
                  bytes.subspan(i * batch.part_bytes, batch.part_bytes)));
            }
          },
          deadline);
      if (!status.ok()) {
        link_.reset();
        link_status_ = status;
        return status;
      }
      if (!taken.ok()) return taken;
    }
    ++batches_over_link_;
    return absl::OkStatus();
  }

  // All ranks come here before the batch that follows the one that rank 0 said
  // so of.
  void MakeLink(const RankBatch& batch) {
    link_.reset();
    const absl::Time deadline = absl::Now() + kLinkPatience;
    const GroupPlace place = {kGroup, rank(), ranks()};
    const RankJoin join = [&](ByteSpan id) -> absl::StatusOr<Meeting> {
      if (rank() == 0)
        return service_.meetings()->Join(place, id, deadline,
                                         [&] { return cancel_.cancelled(); });
      absl::StatusOr<std::unique_ptr<PeerClient>> client =
          PeerClient::Open(AddressOf(options_.meeting, 0));
      if (!client.ok()) return client.status();
      return (*client)->Join(place, id, {deadline, &cancel_});
    };
    absl::StatusOr<std::unique_ptr<RankLink>> link =
        options_.make_link(*batch.device, place, join, deadline);
    link_status_ = link.status();
    if (link.ok()) {
      link_ = *std::move(link);
      link_pause_ = kLinkPauseMin;
    } else {
      link_pause_ = std::min(2 * link_pause_, kLinkPauseMax);
    }
    next_join_ = absl::Now() + link_pause_;
  }

  v1::RankMessage Message(const RankBatch& batch) const {
    v1::RankMessage message;
    message.set_batch(batch.id.bytes.data(), batch.id.bytes.size());
    message.set_stored_ms(absl::ToUnixMillis(batch.stored));
    message.set_from(rank());
    return message;
  }
  absl::Status Deliver(uint32_t to, const v1::RankMessage& message,
                       absl::Time deadline) {
    Delivery delivery(channels_[to], {deadline, &cancel_});
    delivery.Send(message);
    return OfRank(to, delivery.Finish());
  }
  static absl::Status OfRank(uint32_t rank, const absl::Status& status) {
    if (status.ok()) return status;
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", rank, " did not answer in time"));
    }
    return absl::Status(status.code(),
                        absl::StrCat("rank ", rank, ": ", status.message()));
  }
  void TellStop(const RankBatch& batch, absl::string_view why) {
    v1::RankMessage message = Message(batch);
    message.set_stop(why.data(), why.size());
    for (uint32_t other = 0; other < ranks(); ++other) {
      if (other != rank())
        Deliver(other, message, absl::Now() + kStopDuration).IgnoreError();
    }
  }
  absl::Duration PatienceWith(uint32_t other) const {
    if (!away_[other]) return absl::InfiniteDuration();
    return inbox_.heard(other) ? kBackPatience : kAwayPatience;
  }
  void SetAway(uint32_t other, bool away) {
    if (!away) return;
    away_[other] = true;
    inbox_.SetAway(other);
  }

  const RankMeshOptions options_;
  CancelToken cancel_;
  RankInbox inbox_;
  PeerService service_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;  // By rank.
  std::unique_ptr<PeerServer> server_;
  std::atomic<uint64_t> batches_over_link_{0};
  // Of the thread that exchanges.
  std::unique_ptr<RankLink> link_;  // Null: none.
  absl::Status link_status_;
  bool joins_ = false;  // Before the next batch.
  // By rank: of rank 0 all others, of those rank 0.
  std::vector<bool> away_;
  absl::Duration link_pause_ = kLinkPauseMin;
  absl::Time next_join_ = absl::InfinitePast();
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankExchange>> OpenRankMesh(
    const RankMeshOptions& options) {
  if (options.ranks < 2 || options.ranks > kRanksMax ||
      options.rank >= options.ranks || options.meeting.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " of ", options.ranks, " at \"",
                     options.meeting, "\": an engine has 2 to ", kRanksMax,
                     " ranks that exchange, and a path at which they meet"));
  }
  auto mesh = std::make_unique<RankMesh>(options);
  absl::Status status = mesh->Open();
  if (!status.ok()) return status;
  return mesh;
}

}  // namespace latentkv
