#include "transport/message_layout.h"

#include "gtest/gtest.h"
#include "latentkv/v1/cache.pb.h"

namespace latentkv {
namespace {

std::string Sent(grpc::ByteBuffer buffer) {
  grpc::Slice slice;
  EXPECT_TRUE(buffer.DumpToSingleSlice(&slice).ok());
  return std::string(reinterpret_cast<const char*>(slice.begin()),
                     slice.size());
}

v1::StoreRequest Head() {
  v1::StoreRequest head;
  head.set_sequence(300);
  head.set_parent(std::string(32, 'p'));
  head.set_sync(true);
  return head;
}

TEST(MessageLayoutTest, EqualsTheSerializedMessage) {
  // Lengths whose varints have one to four bytes.
  for (size_t bytes : {1, 127, 128, 16383, 16384, 3000000}) {
    auto frame = std::make_shared<const Bytes>(bytes, 7);
    v1::StoreRequest whole = Head();
    whole.set_frame(std::string(bytes, '\7'));
    EXPECT_EQ(Sent(LayOutMessage(Head(), *frame, frame)),
              whole.SerializeAsString())
        << bytes;
  }
}

TEST(MessageLayoutTest, NoBytesAreAnEmptyField) {
  v1::StoreRequest read;
  ASSERT_TRUE(read.ParseFromString(Sent(LayOutMessage(Head(), {}, nullptr))));
  EXPECT_EQ(read.sequence(), 300u);
  EXPECT_EQ(read.frame(), "");
}

TEST(MessageLayoutTest, HoldsTheBytesUntilTheMessageIsGone) {
  auto frame = std::make_shared<const Bytes>(100000, 7);
  const std::weak_ptr<const Bytes> watched = frame;
  {
    const grpc::ByteBuffer buffer = LayOutMessage(Head(), *frame, frame);
    frame.reset();
    EXPECT_FALSE(watched.expired());
  }
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace latentkv
