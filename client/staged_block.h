// A block on its way to the daemon.
#ifndef LATENTKV_CLIENT_STAGED_BLOCK_H_
#define LATENTKV_CLIENT_STAGED_BLOCK_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "client/device_encoder.h"
#include "client/raw_buffers.h"
#include "client/staging_budget.h"
#include "client/store_progress.h"
#include "core/bytes.h"
#include "core/digest.h"

namespace latentkv {

struct StagedBlock {
  uint64_t sequence = 0;  // Rising in the order of Store.
  Digest key, parent;     // Parent zero for the chain's first block.
  Digest behind;          // The block before it that this client stores, whose loss is its own; zero for the first.
  uint32_t first_token = 0;
  std::shared_ptr<const std::vector<uint32_t>> chain_tokens;  // Up to this block's last, and maybe more.
  float loss_inherited = 0;

  RawBuffers::Buffer raw;  // Until it is encoded.
  DeviceEventPtr raw_complete;  // When `raw` is; null: it is.
  uint64_t raw_bytes = 0;
  std::shared_ptr<DeviceEncoder> encoder;  // Of the device that its pages lie on; null: none.
  std::shared_ptr<const Bytes> frame;  // From then on.
  bool on_device = false;              // It was encoded there.
  bool exact = false;
  float loss_chain = 0;

  StagingBudget::Share share;
  std::shared_ptr<StoreProgress> progress;  // Of the job that it belongs to, as block `index`.
  uint32_t index = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STAGED_BLOCK_H_
