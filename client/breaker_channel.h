// A channel that asks a circuit breaker before each call and tells it the
// outcome.
#ifndef LATENTKV_CLIENT_BREAKER_CHANNEL_H_
#define LATENTKV_CLIENT_BREAKER_CHANNEL_H_

#include <memory>

#include "client/circuit_breaker.h"
#include "transport/cache_channel.h"

namespace latentkv {

// Calls that may not go are Unavailable at once; a store stream breaks at its
// first Send. All outlive the channel.
std::unique_ptr<CacheChannel> MakeBreakerChannel(CacheChannel* inner,
                                                 CircuitBreaker* breaker);

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_BREAKER_CHANNEL_H_
