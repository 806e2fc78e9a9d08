// How threads that compute beside an engine give way to it.
#ifndef LATENTKV_CLIENT_NICENESS_H_
#define LATENTKV_CLIENT_NICENESS_H_

#include <sys/resource.h>

namespace latentkv {

// The engine's threads wait for each other, so that taking a core from one of
// them stops all. With a tenth of a core, which this leaves the encoder beside
// a busy engine, it still encodes 1000 tokens of SmolLM2 a second: more than
// that engine computes on two cores.
inline constexpr int kNiceness = 10;

// Of the calling thread alone, and of those that it starts, on Linux.
inline void GiveWayToTheEngine() { setpriority(PRIO_PROCESS, 0, kNiceness); }

}  // namespace latentkv

#endif  // LATENTKV_CLIENT_NICENESS_H_
