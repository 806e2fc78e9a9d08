// The lifetime of gRPC itself.
#ifndef LATENTKV_TRANSPORT_GRPC_LIBRARY_H_
#define LATENTKV_TRANSPORT_GRPC_LIBRARY_H_

namespace latentkv {

// Keeps the library up until the process ends. Otherwise it shuts down with the last channel or server of the process,
// and whoever let go of that waits, up to ten seconds, for a thread that polls sockets on behalf of large writes.
void KeepGrpcUp();

}  // namespace latentkv

#endif  // LATENTKV_TRANSPORT_GRPC_LIBRARY_H_
