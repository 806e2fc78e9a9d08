// Frames for the tests of this folder.
#ifndef LATENTKV_TESTS_SERVER_BLOCKS_H_
#define LATENTKV_TESTS_SERVER_BLOCKS_H_

#include <memory>
#include <string>
#include <vector>

#include "core/bytes.h"
#include "core/digest.h"
#include "core/frame.h"
#include "core/limits.h"
#include "transport/cache_channel.h"

namespace latentkv {

inline Digest TestKey(uint32_t block, uint32_t chain = 0) {
  return Sha256({AsBytes(std::to_string(chain) + "/" + std::to_string(block))});
}

// An exact frame of block `block` with sections of different lengths and
// pseudorandom bytes.
inline std::shared_ptr<const Bytes> TestFrame(uint32_t block,
                                              uint32_t section_count,
                                              size_t section_bytes,
                                              uint32_t chain = 0) {
  FrameHeader header;
  header.key = TestKey(block, chain);
  header.geometry = Sha256({AsBytes("geometry")});
  header.first_token = block * kBlockTokens;
  header.token_count = kBlockTokens;
  std::vector<Bytes> sections;
  uint32_t state = block * 7919 + chain * 104729 + 1;
  for (uint32_t s = 0; s < section_count; ++s) {
    Bytes section(section_bytes + s);
    for (uint8_t& byte : section)
      byte = (state = state * 1664525 + 1013904223) >> 24;
    sections.push_back(std::move(section));
  }
  return std::make_shared<const Bytes>(*WriteFrame(header, sections));
}

inline std::vector<Digest> TestKeys(uint32_t count, uint32_t chain = 0) {
  std::vector<Digest> keys;
  for (uint32_t i = 0; i < count; ++i) keys.push_back(TestKey(i, chain));
  return keys;
}

// Stores the frames in one stream, without naming parents; the status of each,
// in order, as far as the stream came.
inline std::vector<absl::Status> StoreFrames(
    CacheChannel* channel,
    const std::vector<std::shared_ptr<const Bytes>>& frames,
    absl::Status* finish = nullptr) {
  auto stream = channel->OpenStore(CallLimits::In(absl::Seconds(20)));
  std::vector<absl::Status> statuses;
  uint64_t sequence = 100;
  for (const auto& frame : frames) {
    StoreAck ack;
    if (!stream->Send({++sequence, Digest{}, false, frame}) ||
        !stream->ReadAck(&ack))
      break;
    statuses.push_back(ack.sequence == sequence
                           ? ack.status
                           : absl::InternalError("acknowledged out of order"));
  }
  stream->SendDone();
  StoreAck rest;
  while (stream->ReadAck(&rest))
    statuses.push_back(
        absl::InternalError("more acknowledgements than frames"));
  absl::Status status = stream->Finish();
  if (finish != nullptr) *finish = status;
  return statuses;
}

struct FetchedFrames {
  absl::Status status;
  std::vector<Bytes> frames;  // Put together from header and sections.
  std::vector<bool> missing;
  // (section, record) as they came.
  std::vector<std::pair<uint32_t, uint32_t>> order;
};

inline FetchedFrames FetchFrames(CacheChannel* channel,
                                 const std::vector<RemoteRecord>& records,
                                 uint64_t lease_id = 0) {
  FetchedFrames fetched;
  fetched.frames.resize(records.size());
  fetched.missing.resize(records.size());
  fetched.status = channel->Fetch(
      records, lease_id, CallLimits::In(absl::Seconds(20)),
      [&](const FetchedSection& s) {
        fetched.order.emplace_back(s.section, s.record);
        if (s.missing) fetched.missing[s.record] = true;
        Bytes& frame = fetched.frames[s.record];
        frame.insert(frame.end(), s.header.begin(), s.header.end());
        frame.insert(frame.end(), s.payload.begin(), s.payload.end());
        return true;
      });
  return fetched;
}

}  // namespace latentkv

#endif  // LATENTKV_TESTS_SERVER_BLOCKS_H_
