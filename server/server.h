// The daemon as an object: listens, serves a BlockStore, stops.
#ifndef LATENTKV_SERVER_SERVER_H_
#define LATENTKV_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/clock.h"
#include "server/cache_service.h"
#include "storage/block_store.h"

namespace latentkv {

struct ServerConfig {
  // As CheckListenAddress accepts; port 0 takes a free one.
  std::vector<std::string> listen;
  std::string metrics_address;  // Empty: none.
  ServiceLimits limits;
  const Clock* clock = &SystemClock();
};

class Server {
 public:
  // Listens and serves. InvalidArgument for an address that is not of this
  // machine alone, Unavailable when one cannot be bound. `store` outlives the
  // server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerConfig& config, BlockStore* store);

  virtual ~Server() = default;  // Stops at once.
  // As bound, with real ports.
  virtual const std::vector<std::string>& addresses() const = 0;
  // Refuses new frames, ends those under way, waits for fetches for `grace` at
  // most, and cancels what is left. Once.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_SERVER_SERVER_H_
