#include "server/options.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "transport/listen_address.h"

namespace latentkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ByteSize, ReadsBinaryAndDecimalUnits) {
  EXPECT_EQ(*ParseByteSize("4096"), 4096u);
  EXPECT_EQ(*ParseByteSize("10GiB"), uint64_t{10} << 30);
  EXPECT_EQ(*ParseByteSize("1.5 KiB"), 1536u);
  EXPECT_EQ(*ParseByteSize("2TB"), 2'000'000'000'000u);
}

TEST(ByteSize, RefusesWhatIsNoSize) {
  for (const char* text :
       {"", "GiB", "-1", "10GiBs", "nan", "inf", "9e30", "ten"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseByteSize(text).status())) << text;
  }
}

TEST(ListenAddress, AcceptsThisMachineAlone) {
  for (const char* address : {"127.0.0.1:7430", "127.8.0.1:1", "localhost:0",
                              "[::1]:7430", "unix:/tmp/socket"}) {
    EXPECT_TRUE(CheckListenAddress(address).ok()) << address;
  }
}

TEST(ListenAddress, RefusesAddressesThatOthersReach) {
  for (const char* address :
       {"0.0.0.0:7430", "[::]:7430", "10.0.0.1:7430", "127.example.org:7430",
        ":7430", "localhost", "127.0.0.1:65536",
        "127.0.0.1:", "unix:", "example.org:80"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckListenAddress(address)))
        << address;
  }
  EXPECT_THAT(std::string(CheckListenAddress("0.0.0.0:7430").message()),
              HasSubstr("credentials"));
}

TEST(DaemonFlags, TakeBothFormsAndLists) {
  auto options = ParseDaemonOptions(
      std::vector<std::string>{"--data", "/d", "--listen=127.0.0.1:1,unix:/s",
                               "--listen", "[::1]:2", "--capacity-bytes=1GiB"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_THAT(options->listen,
              ElementsAre("127.0.0.1:1", "unix:/s", "[::1]:2"));
  EXPECT_EQ(options->data, "/d");
  EXPECT_EQ(options->capacity_bytes, uint64_t{1} << 30);
}

TEST(DaemonFlags, ListenOnLoopbackByDefault) {
  EXPECT_THAT(ParseDaemonOptions(std::vector<std::string>{"--data=/d"})->listen,
              ElementsAre("127.0.0.1:7430"));
}

TEST(DaemonFlags, NameWhatIsWrong) {
  auto message = [](std::vector<std::string> arguments) {
    return std::string(ParseDaemonOptions(arguments).status().message());
  };
  EXPECT_THAT(message({}), HasSubstr("--data"));
  EXPECT_THAT(message({"--data"}), HasSubstr("needs a value"));
  EXPECT_THAT(message({"--data=/d", "--memory-bytes=much"}),
              HasSubstr("--memory-bytes"));
  EXPECT_THAT(message({"--data=/d", "--colour=red"}), HasSubstr("--colour"));
  EXPECT_THAT(message({"--data=/d", "--metrics-address=0.0.0.0:9464"}),
              HasSubstr("0.0.0.0"));
}

}  // namespace
}  // namespace latentkv
