#include "tests/client/fake_device.h"

#include <algorithm>
#include <deque>
#include <map>

#include "codec/block_state.h"
#include "codec/group_codec.h"
#include "codec/latent_model.h"
#include "codec/rotary_tables.h"
#include "core/checksum.h"
#include "core/frame.h"
#include "core/limits.h"

namespace latentkv {
namespace {

class FakeEvent final : public DeviceEvent,
                        public std::enable_shared_from_this<FakeEvent> {
 public:
  absl::Status Wait() const override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return passed_; });
    return status_;
  }
  void Pass(absl::Status status) {
    std::lock_guard<std::mutex> lock(mutex_);
    passed_ = true;
    status_ = std::move(status);
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool passed_ = false;
  absl::Status status_;
};

class FakeLane final : public DeviceLane {
 public:
  FakeLane(const FakeDevices& devices, const Geometry& geometry)
      : devices_(devices), geometry_(geometry) {}

  absl::Status Await(const DeviceEvent& event) override {
    queue_.Await(event);
    return absl::OkStatus();
  }
  absl::StatusOr<DeviceEventPtr> Record() override { return queue_.Record(); }

  absl::StatusOr<DeviceEventPtr> Gather(
      const PagedCache& pages, absl::Span<const BlockCopy> blocks) override {
    if (devices_.on_queue_gather != nullptr) {
      absl::Status status = devices_.on_queue_gather();
      if (!status.ok()) return status;
    }
    for (const BlockCopy& block : blocks) {
      queue_.Add(
          [this, pages, slot = Slot(block), raw = block.raw]() -> absl::Status {
            absl::Status status = devices_.on_gather != nullptr
                                      ? devices_.on_gather()
                                      : absl::OkStatus();
            if (status.ok())
              GatherRaw(geometry_, pages, slot,
                        {raw, RawBytes(geometry_, kBlockTokens)});
            return status;
          });
    }
    return queue_.Record();
  }
  absl::Status Scatter(const PagedCache& pages, uint32_t first, uint32_t last,
                       const BlockCopy& block) override {
    queue_.Add([this, pages, first, last, slot = Slot(block),
                raw = block.raw]() -> absl::Status {
      absl::Status status = devices_.on_scatter != nullptr
                                ? devices_.on_scatter()
                                : absl::OkStatus();
      const uint64_t bytes = RawBytes(geometry_, first, last, kBlockTokens);
      if (status.ok())
        ScatterRaw(geometry_, first, last, {raw, bytes}, pages, slot);
      return status;
    });
    return absl::OkStatus();
  }

 private:
  static std::vector<TokenRun> Slot(const BlockCopy& block) {
    return {block.slot.begin(), block.slot.end()};
  }

  const FakeDevices& devices_;
  const Geometry geometry_;
  FakeQueue queue_;
};

// The codec's own arithmetic, where the pages lie.
class FakeGroupLane final : public GroupLane {
 public:
  FakeGroupLane(const FakeDevices& devices, absl::Span<const HeadRange> heads)
      : devices_(devices),
        heads_(heads.begin(), heads.end()),
        rotary_(devices.basis->geometry()) {
    for (const LayerGeometry& layer : devices.basis->geometry().layers) {
      if (heads.empty()) heads_.push_back({0, layer.kv_heads});
    }
    for (uint32_t g = 0; g < devices.basis->groups().size(); ++g) {
      codecs_.push_back(
          std::make_unique<GroupCodec>(*devices.basis, g, tables_, &rotary_));
    }
  }
  absl::Status Begin(const PagedCache& pages,
                     absl::Span<const GroupBlock> blocks,
                     const DeviceEvent* used) override {
    absl::Status status = queue_.Record()->Wait();
    if (!status.ok()) return status;
    pages_ = pages;
    blocks_.clear();
    for (const GroupBlock& block : blocks) {
      blocks_.push_back({{block.slot.begin(), block.slot.end()},
                         std::make_unique<BlockState>(
                             *devices_.basis, block.first_token, block.tokens),
                         absl::OkStatus()});
    }
    if (used != nullptr) queue_.Await(*used);
    return absl::OkStatus();
  }
  absl::StatusOr<DeviceEventPtr> Restore(
      uint32_t group, const uint8_t* pinned, uint64_t bytes,
      absl::Span<const GroupSection> sections) override {
    ++devices_.restored_groups;
    if (devices_.on_queue_group) {
      absl::Status status = devices_.on_queue_group(group);
      if (!status.ok()) return status;
    }
    queue_.Add(
        [this, group, payload = ByteSpan(pinned, bytes),
         own = std::vector<GroupSection>(sections.begin(), sections.end())] {
          std::vector<absl::Status> outcome;
          for (size_t b = 0; b < blocks_.size(); ++b) {
            absl::Status& status = blocks_[b].status;
            if (status.ok() && devices_.on_restore_block)
              status = devices_.on_restore_block(group, b);
            if (status.ok())
              status = RestoreOne(group, payload, own[b], &blocks_[b]);
            outcome.push_back(status);
          }
          std::lock_guard<std::mutex> lock(mutex_);
          outcomes_[group] = std::move(outcome);
          return absl::OkStatus();
        });
    return queue_.Record();
  }
  std::vector<absl::Status> Outcome(uint32_t group) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return outcomes_.at(group);
  }

 private:
  struct Block {
    std::vector<TokenRun> slot;
    std::unique_ptr<BlockState> state;
    absl::Status status;
  };
  absl::Status RestoreOne(uint32_t group, ByteSpan bytes,
                          const GroupSection& section, Block* block) {
    if (section.bytes == 0) return absl::ResourceExhaustedError("not given");
    const ByteSpan payload = bytes.subspan(section.offset, section.bytes);
    if (Crc32c(payload) != section.crc32c)
      return absl::DataLossError("checksum");
    const GroupCodec& codec = *codecs_[group];
    Bytes raw(codec.raw_bytes());
    absl::Status status = codec.Decode(payload, section.step,
                                       block->state.get(), absl::MakeSpan(raw));
    if (!status.ok()) return status;
    const Geometry& geometry = devices_.basis->geometry();
    const Geometry held = WithHeads(geometry, heads_);
    const uint32_t first = codec.group().first_layer,
                   last = codec.group().last_layer;
    Bytes part(RawBytes(held, first, last, kBlockTokens));
    TakeHeads(geometry, heads_, first, last, kBlockTokens, raw,
              absl::MakeSpan(part));
    ScatterRaw(held, first, last, part, pages_, block->slot);
    return absl::OkStatus();
  }

  const FakeDevices& devices_;
  std::vector<HeadRange> heads_;
  const LatentTables tables_ = MakeLatentTables();
  RotaryTables rotary_;
  std::vector<std::unique_ptr<GroupCodec>> codecs_;
  PagedCache pages_;
  std::vector<Block> blocks_;  // Of the queue, once begun.
  mutable std::mutex mutex_;
  std::map<uint32_t, std::vector<absl::Status>> outcomes_;
  FakeQueue queue_;  // Last: what is in it uses the others.
};

// The codec's own frames.
class FakeEncodeLane final : public EncodeLane {
 public:
  FakeEncodeLane(const FakeDevices& devices, uint64_t header_bytes)
      : devices_(devices), header_bytes_(header_bytes) {}
  uint32_t blocks_max() const override { return 4; }
  absl::StatusOr<std::vector<EncodedBlock>> Encode(
      absl::Span<const RawBlock> blocks, float step,
      LossChannels measured) override {
    ++devices_.encoded_batches;
    if (blocks.size() > blocks_max())
      return absl::InvalidArgumentError("too many blocks");
    if (devices_.on_encode != nullptr) {
      absl::Status status = devices_.on_encode(blocks.size());
      if (!status.ok()) return status;
    }
    frames_.clear();
    std::vector<EncodedBlock> encoded;
    for (const RawBlock& block : blocks)
      encoded.push_back(EncodeOne(block, step, measured));
    return encoded;
  }

 private:
  EncodedBlock EncodeOne(const RawBlock& block, float step,
                         LossChannels measured) {
    EncodedBlock encoded;
    if (devices_.on_encode_block != nullptr)
      encoded.status = devices_.on_encode_block(block.first_token);
    if (!encoded.status.ok()) return encoded;
    EncodeOptions options;
    options.exact = false;
    options.step = step;
    const Geometry& geometry = devices_.encoder->geometry();
    frames_.push_back(*devices_.encoder->Encode(
        {{}, block.first_token, block.tokens},
        {block.raw, RawBytes(geometry, kBlockTokens)}, options));
    Bytes& frame = frames_.back();
    const FrameHeader header = *ParseFrameHeader(frame, frame.size());
    for (const FrameSection& section : header.sections)
      encoded.section_bytes.push_back(section.bytes);
    // Of the header there is only room.
    std::fill_n(frame.begin(), header_bytes_, uint8_t{0});
    encoded.frame = frame.data();
    encoded.loss = FakeDevices::kSaidLoss;
    if (step < devices_.said_step) encoded.loss *= step / devices_.said_step;
    if (measured == LossChannels::kAll) encoded.loss *= devices_.whole_loss;
    ++devices_.encoded_blocks;
    return encoded;
  }

  const FakeDevices& devices_;
  const uint64_t header_bytes_;
  std::deque<Bytes> frames_;
};

class FakeDevice final : public Device {
 public:
  explicit FakeDevice(const FakeDevices& devices) : devices_(devices) {}

  absl::StatusOr<PinnedMemory> AllocatePinned(uint64_t bytes) override {
    devices_.pinned_bytes += bytes;
    return PinnedMemory(new uint8_t[bytes]);
  }
  absl::StatusOr<std::unique_ptr<DeviceLane>> OpenLane(const Geometry& geometry,
                                                       uint64_t) override {
    return std::make_unique<FakeLane>(devices_, geometry);
  }
  absl::StatusOr<std::unique_ptr<GroupLane>> OpenGroupLane(
      const BasisView&, absl::Span<const HeadRange> heads,
      const GroupLimits&) override {
    if (devices_.basis == nullptr)
      return absl::UnimplementedError("this device restores no groups");
    return std::make_unique<FakeGroupLane>(devices_, heads);
  }
  absl::StatusOr<std::unique_ptr<EncodeLane>> OpenEncodeLane(
      const BasisView&, uint64_t header_bytes,
      const std::function<bool()>& cancelled) override {
    if (devices_.encoder == nullptr)
      return absl::UnimplementedError("this device encodes nothing");
    ++devices_.encoders_opening;
    while (devices_.encoder_never_opens && !cancelled())
      absl::SleepFor(absl::Milliseconds(1));
    --devices_.encoders_opening;
    if (cancelled()) return absl::CancelledError("not wanted any more");
    return std::make_unique<FakeEncodeLane>(devices_, header_bytes);
  }
  absl::StatusOr<DeviceEventPtr> Record(EngineStream stream) override {
    if (stream == nullptr) return default_stream_.Record();
    return static_cast<FakeQueue*>(stream)->Record();
  }
  absl::Status Hold(EngineStream stream, const DeviceEvent& event) override {
    (stream == nullptr ? default_stream_ : *static_cast<FakeQueue*>(stream))
        .Await(event);
    return absl::OkStatus();
  }

 private:
  const FakeDevices& devices_;
  FakeQueue default_stream_;
};

}  // namespace

FakeQueue::~FakeQueue() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void FakeQueue::Add(std::function<absl::Status()> work) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.push_back(std::move(work));
  changed_.notify_all();
}

DeviceEventPtr FakeQueue::Record() {
  auto event = std::make_shared<FakeEvent>();
  Add([this, event] {
    event->Pass(status_);
    return absl::OkStatus();
  });
  return event;
}

void FakeQueue::Await(const DeviceEvent& event) {
  Add([kept = static_cast<const FakeEvent&>(event).shared_from_this()] {
    kept->Wait().IgnoreError();
    return absl::OkStatus();
  });
}

void FakeQueue::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const std::function<absl::Status()> work = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    status_.Update(work());
    lock.lock();
  }
}

std::optional<uint32_t> FakeDevices::HolderOf(const void* pointer) const {
  for (uint32_t device : {0, 1}) {
    for (const Range& range : ranges_[device]) {
      if (pointer >= range.first && pointer < range.second) return device;
    }
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<Device>> FakeDevices::Open(uint32_t) const {
  ++opened;
  return std::make_unique<FakeDevice>(*this);
}

}  // namespace latentkv
