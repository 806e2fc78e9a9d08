// Time as a parameter, so that tests own it.
#ifndef LATENTKV_CORE_CLOCK_H_
#define LATENTKV_CORE_CLOCK_H_

#include "absl/time/time.h"

namespace latentkv {

class Clock {
 public:
  virtual ~Clock() = default;
  // Any thread.
  virtual absl::Time Now() const = 0;
};

// The process's clock; lives for ever.
const Clock& SystemClock();

}  // namespace latentkv

#endif  // LATENTKV_CORE_CLOCK_H_
