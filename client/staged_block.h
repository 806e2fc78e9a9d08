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
  // The block before it that this client stores, whose loss is its own; zero
  // for the first.
  Digest behind;
  uint32_t first_token = 0;
  // Up to this block's last, and maybe more.
  std::shared_ptr<const std::vector<uint32_t>> chain_tokens;
  float loss_inherited = 0;

  RawBuffers::Buffer raw;       // Until it is encoded.
  DeviceEventPtr raw_complete;  // When `raw` is; null: it is.
  uint64_t raw_bytes = 0;
  // Of the device that its pages lie on; null: none.
  std::shared_ptr<DeviceEncoder> encoder;
  std::shared_ptr<const Bytes> frame;  // From then on.
  bool on_device = false;              // It was encoded there.
  bool guarded = false;                // Not as the options ask.
  bool exact = false;
  float loss_chain = 0;

  StagingBudget::Share share;
  // Of the job that it belongs to, as block `index`.
  std::shared_ptr<StoreProgress> progress;
  uint32_t index = 0;
};

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_STAGED_BLOCK_H_
