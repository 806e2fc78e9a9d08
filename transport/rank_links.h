// The links between devices that this build has.
#ifndef LATENTKV_TRANSPORT_RANK_LINKS_H_
#define LATENTKV_TRANSPORT_RANK_LINKS_H_

#include "transport/rank_exchange.h"

namespace latentkv {

// Over NCCL, or null in a build without it.
RankLinkFactory DeviceRankLinks();

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_RANK_LINKS_H_
