// The Store call as a stream.
#ifndef LATENTKV_TRANSPORT_GRPC_STORE_STREAM_H_
#define LATENTKV_TRANSPORT_GRPC_STORE_STREAM_H_

#include <grpcpp/channel.h>

#include <memory>

#include "transport/cache_channel.h"

namespace latentkv {

std::unique_ptr<StoreStream> OpenGrpcStore(
    const std::shared_ptr<grpc::Channel>& channel, const CallLimits& limits);

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_GRPC_STORE_STREAM_H_
