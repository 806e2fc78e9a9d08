// RankExchange between processes of one machine: they agree over gRPC, and
// parts go over it too where there is no link between their devices.
#ifndef LATENTKV_TRANSPORT_RANK_MESH_H_
#define LATENTKV_TRANSPORT_RANK_MESH_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "transport/rank_exchange.h"

namespace latentkv {

// How long a rank waits for the others to come to a batch. They compute in
// step, so that this is far beyond any of their steps, and short beside the
// minutes after which engines give up a rank themselves.
inline constexpr absl::Duration kRankPatience = absl::Seconds(5);
// Making a link takes NCCL a second or two, and more on a host that is busy
// loading a model.
inline constexpr absl::Duration kLinkPatience = absl::Seconds(20);

struct RankMeshOptions {
  uint32_t rank = 0;
  uint32_t ranks = 0;  // 2 to kRanksMax.
  // Path; rank r listens on the unix socket "<meeting>.r". Of this engine
  // alone, on every rank.
  std::string meeting;
  absl::Duration patience = kRankPatience;
  RankLinkFactory make_link;  // Null: there is none.
};

// Listens; connects when it is used. InvalidArgument, Unavailable if it cannot
// listen.
absl::StatusOr<std::unique_ptr<RankExchange>> OpenRankMesh(
    const RankMeshOptions& options);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RANK_MESH_H_
