// The parts that a client is wired from.
#ifndef LATENTKV_CLIENT_CONFIG_H_
#define LATENTKV_CLIENT_CONFIG_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "client/failure_log.h"
#include "client/head_share.h"
#include "client/load_pipeline.h"
#include "codec/codec.h"
#include "core/chain_key.h"
#include "core/clock.h"
#include "kernels/device.h"
#include "transport/cache_channel.h"
#include "transport/rank_exchange.h"

namespace latentkv {

struct ClientConfig {
  std::shared_ptr<CacheChannel> channel;
  std::shared_ptr<const Codec> codec;
  ChainScope scope;
  ReadPolicy read;
  EncodeOptions write;
  uint64_t staging_bytes_max = uint64_t{256} << 20;
  uint32_t thread_count = 1;
  // Of one rank of several; null: all heads.
  std::shared_ptr<const HeadShare> share;
  // Then how they exchange them, for this client alone.
  std::shared_ptr<RankExchange> ranks;
  std::shared_ptr<spdlog::logger> logger = MakeClientLogger();
  const Devices* devices = &SystemDevices();  // Outlives the client.
  // Of the breaker and the log; deadlines are the system's. Outlives the
  // client.
  const Clock* clock = &SystemClock();
};

// Reads the basis; the channel is over gRPC. Errors as Client::Open.
absl::StatusOr<ClientConfig> MakeClientConfig(const ClientOptions& options);

// ResourceExhausted if the threads cannot be had.
absl::StatusOr<std::unique_ptr<Client>> MakeClient(ClientConfig config);

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_CONFIG_H_
