// The daemon in this process, on a folder and a loopback port that outlast it.
#ifndef LATENTKV_TESTS_CLIENT_LOCAL_DAEMON_H_
#define LATENTKV_TESTS_CLIENT_LOCAL_DAEMON_H_

#include <memory>
#include <string>

#include "server/server.h"
#include "storage/block_store.h"
#include "transport/cache_channel.h"

namespace latentkv {

class LocalDaemon {
 public:
  static constexpr uint64_t kCapacityBytes = uint64_t{1} << 30;

  LocalDaemon();  // Started.
  ~LocalDaemon();

  // Again on the same port; frames are read from disk, not from memory.
  void Start();
  void Stop();
  const std::string& address() const { return address_; }
  const std::string& data() const { return data_; }
  BlockStore* store() const { return store_.get(); }
  // A new channel.
  std::unique_ptr<CacheChannel> Connect() const;

 private:
  std::string folder_, data_, address_ = "127.0.0.1:0";
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Server> server_;
};

}  // namespace latentkv

#endif  // LATENTKV_TESTS_CLIENT_LOCAL_DAEMON_H_
