#include "tests/client/local_daemon.h"

#include <cstdlib>
#include <filesystem>

#include "gtest/gtest.h"
#include "storage/rocksdb_block_store.h"
#include "transport/grpc_channel.h"

namespace latentkv {

LocalDaemon::LocalDaemon() {
  folder_ = ::testing::TempDir() + "latentkv-client-XXXXXX";
  if (mkdtemp(folder_.data()) == nullptr) std::abort();
  data_ = folder_ + "/data";
  Start();
}

LocalDaemon::~LocalDaemon() {
  Stop();
  std::filesystem::remove_all(folder_);
}

void LocalDaemon::Start() {
  auto store = RocksDbBlockStore::Open(
      {.path = data_, .capacity_bytes = kCapacityBytes});
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  ServerConfig config;
  config.listen = {address_};
  auto server = Server::Start(config, store_.get());
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  address_ = server_->addresses()[0];
}

void LocalDaemon::Stop() {
  if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
  server_.reset();
  store_.reset();
}

std::unique_ptr<CacheChannel> LocalDaemon::Connect() const {
  return *MakeGrpcChannel(address_);
}

}  // namespace latentkv
