// What the killed writer stores and its judge expects.
#ifndef LATENTKV_TESTS_STORAGE_KILL_FRAMES_H_
#define LATENTKV_TESTS_STORAGE_KILL_FRAMES_H_

#include "tests/storage/frames.h"

namespace latentkv {

// Of many sizes, so that records of the log begin and end everywhere in its blocks.
inline Bytes KillFrame(uint32_t chain, uint32_t block) {
  return MakeFrame(chain, block, 1000 + (block * 7919u + chain * 104729u) % 120000);
}

}  // namespace latentkv

#endif  // LATENTKV_TESTS_STORAGE_KILL_FRAMES_H_
