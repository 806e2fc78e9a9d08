#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <prometheus/exposer.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/metrics.h"
#include "transport/grpc_library.h"
#include "transport/listen_address.h"
#include "transport/message_layout.h"

namespace latentkv {
namespace {

// For answers that are on their way out.
constexpr absl::Duration kLastWrites = absl::Milliseconds(100);
// Every stream holds one; above it gRPC itself answers RESOURCE_EXHAUSTED.
constexpr int kThreadsMax = 256;

class GrpcServer final : public Server {
 public:
  GrpcServer(const ServerConfig& config, BlockStore* store)
      : cache_(store, config.clock, config.limits),
        admin_(store, &cache_, config.clock) {}
  ~GrpcServer() override { Stop(absl::ZeroDuration()); }

  absl::Status Listen(const ServerConfig& config) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(kMessageBytesMax)
        .SetMaxSendMessageSize(kMessageBytesMax);
    builder.SetResourceQuota(
        grpc::ResourceQuota("latentkvd").SetMaxThreads(kThreadsMax));
    // Or a second daemon on the same port would take half of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.RegisterService(&cache_).RegisterService(&admin_);
    std::vector<int> ports(config.listen.size());
    for (size_t i = 0; i < config.listen.size(); ++i) {
      absl::Status status = CheckListenAddress(config.listen[i]);
      if (!status.ok()) return status;
      builder.AddListeningPort(config.listen[i],
                               grpc::InsecureServerCredentials(), &ports[i]);
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr)
      return absl::UnavailableError(
          "cannot listen: is an address taken already?");
    for (size_t i = 0; i < config.listen.size(); ++i) {
      const std::string& address = config.listen[i];
      addresses_.push_back(
          absl::StartsWith(address, "unix:")
              ? address
              : absl::StrCat(address.substr(0, address.rfind(':')), ":",
                             ports[i]));
    }
    return absl::OkStatus();
  }

  absl::Status Expose(const std::string& address, BlockStore* store) {
    absl::Status status = CheckListenAddress(address);
    if (!status.ok()) return status;
    // The exposer's constructor throws when it cannot bind: one of the few
    // places where an exception can come to us.
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(address, 1);
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          absl::StrCat("metrics on ", address, ": ", error.what()));
    }
    metrics_ = std::make_shared<DaemonMetrics>(store, &cache_);
    exposer_->RegisterCollectable(metrics_);
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const override {
    return addresses_;
  }

  void Stop(absl::Duration grace) override {
    if (server_ == nullptr) return;
    if (grpc::HealthCheckServiceInterface* health =
            server_->GetHealthCheckService())
      health->SetServingStatus(false);
    cache_.Drain();
    cache_.AwaitReads(absl::Now() + grace);
    // What is left are streams and connections that clients hold open, for
    // which Shutdown would wait.
    server_->Shutdown(
        absl::ToChronoTime(absl::Now() + std::min(grace, kLastWrites)));
    server_->Wait();
    server_.reset();
    exposer_.reset();
  }

 private:
  CacheService cache_;
  AdminService admin_;
  std::vector<std::string> addresses_;
  std::shared_ptr<DaemonMetrics> metrics_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerConfig& config, BlockStore* store) {
  if (config.listen.empty())
    return absl::InvalidArgumentError("no address to listen on");
  KeepGrpcUp();
  // Both are process-wide, read when a server is built.
  grpc::EnableDefaultHealthCheckService(true);
  static const bool reflected =
      (grpc::reflection::InitProtoReflectionServerBuilderPlugin(), true);
  static_cast<void>(reflected);
  auto server = std::make_unique<GrpcServer>(config, store);
  absl::Status status = server->Listen(config);
  if (status.ok() && !config.metrics_address.empty())
    status = server->Expose(config.metrics_address, store);
  if (!status.ok()) return status;
  return server;
}

}  // namespace latentkv
