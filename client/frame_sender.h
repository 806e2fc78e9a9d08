// The thread that sends frames, and reads their acknowledgements.
#ifndef LATENTKV_CLIENT_FRAME_SENDER_H_
#define LATENTKV_CLIENT_FRAME_SENDER_H_

#include <deque>
#include <thread>

#include "client/blocking_queue.h"
#include "client/staged_block.h"
#include "client/store_ledger.h"
#include "transport/cache_channel.h"

namespace latentkv {

class FrameSender {
 public:
  // Both outlive the sender.
  FrameSender(CacheChannel* channel, StoreLedger* ledger);
  // Gives up what is not acknowledged yet.
  ~FrameSender();

  void Push(StagedBlock block) { queue_.Push(std::move(block)); }

 private:
  void Work();
  // Sends what there is over one stream.
  void SendBurst();
  bool Send(StoreStream* stream, StagedBlock block);
  bool ReadAck(StoreStream* stream);

  CacheChannel* const channel_;
  StoreLedger* const ledger_;
  BlockingQueue<StagedBlock> queue_;
  CancelToken cancel_;
  std::deque<StagedBlock> unacknowledged_;  // Of the sender's thread.
  std::thread thread_;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_FRAME_SENDER_H_
