// Command line, and the verbs that ask a daemon.
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <memory>

#include "core/digest.h"
#include "core/frame.h"
#include "core/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latentkv/v1/admin.pb.h"
#include "tests/tools/process.h"

namespace latentkv {
namespace {

using ::google::protobuf::util::JsonStringToMessage;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

CallLimits Limits() { return CallLimits::In(absl::Seconds(20)); }

std::shared_ptr<const Bytes> TestFrame(uint32_t block) {
  FrameHeader header;
  header.key = Sha256({AsBytes("block " + std::to_string(block))});
  header.first_token = block * kBlockTokens;
  header.token_count = kBlockTokens;
  return std::make_shared<const Bytes>(
      *WriteFrame(header, {Bytes(5000 + block, 7)}));
}

// Stores blocks [0, count); the bytes of their frames.
uint64_t StoreBlocks(CacheChannel* channel, uint32_t count) {
  auto stream = channel->OpenStore(Limits());
  uint64_t bytes = 0;
  for (uint32_t block = 0; block < count; ++block) {
    auto frame = TestFrame(block);
    StoreAck ack;
    EXPECT_TRUE(stream->Send({block, Digest{}, false, frame}) &&
                stream->ReadAck(&ack) && ack.status.ok());
    bytes += frame->size();
  }
  stream->SendDone();
  return bytes;
}

void PutSession(CacheChannel* channel, const std::string& name,
                const std::string& record) {
  RemoteSession session;
  session.name = name;
  session.record = record;
  ASSERT_TRUE(channel->PutSession(session, Limits()).ok());
}

TEST(CommandTest, HelpOfEveryVerbGoesToStandardOutput) {
  EXPECT_THAT(
      RunCommand({"--help"}).output,
      AllOf(HasSubstr("stats"), HasSubstr("sessions"), HasSubstr("inspect")));
  for (const std::string verb : {"stats", "sessions", "inspect"}) {
    const Ran ran = RunCommand({verb, "--help"});
    EXPECT_EQ(ran.exit_status, 0) << verb;
    EXPECT_THAT(ran.output, HasSubstr("usage: latentkv " + verb));
    EXPECT_THAT(ran.error, IsEmpty());
  }
}

TEST(CommandTest, VersionIsPrinted) {
  const Ran ran = RunCommand({"--version"});
  EXPECT_EQ(ran.exit_status, 0);
  EXPECT_THAT(ran.output,
              testing::MatchesRegex("latentkv [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(CommandTest, WhatIsAskedForWronglyIsNamedAndExitsWithTwo) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "a command is missing"},
      {{"stat"}, "\"stat\""},
      {{"stats", "--adress=x"}, "--adress=x"},
      {{"stats", "--address"}, "--address needs a value"},
      {{"stats", "--address", "nowhere"},
       "\"nowhere\" is neither host:port nor unix:PATH"},
      {{"stats", "now"}, "\"now\""},
      {{"sessions", "remove", "x"}, "\"remove\""},
      {{"sessions", "show"}, "needs a NAME"},
      {{"sessions", "delete", "a", "b"}, "\"b\""},
      {{"inspect"}, "one FILE"},
      {{"inspect", "--json", "x"}, "--json"},
  };
  for (const auto& [arguments, named] : cases) {
    const Ran ran = RunCommand(arguments);
    EXPECT_EQ(ran.exit_status, 2) << named;
    EXPECT_THAT(ran.error, AllOf(HasSubstr(named), HasSubstr("--help")))
        << named;
    EXPECT_THAT(ran.output, IsEmpty()) << named;
  }
}

TEST(CommandTest, DaemonThatIsAwayIsNamedWithWhatToDo) {
  for (const std::string verb : {"stats", "sessions"}) {
    const Ran ran = RunCommand({verb, "--address", "unix:/nowhere/socket"});
    EXPECT_EQ(ran.exit_status, 1);
    EXPECT_THAT(ran.error,
                AllOf(HasSubstr("no daemon answers at unix:/nowhere/socket"),
                      HasSubstr("latentkvd --data")));
    EXPECT_THAT(ran.output, IsEmpty());
  }
}

TEST(CommandTest, FlagWinsOverTheVariable) {
  EXPECT_THAT(RunCommand({"stats"}, "unix:/nowhere/a").error,
              HasSubstr("unix:/nowhere/a"));
  EXPECT_THAT(
      RunCommand({"stats", "--address=unix:/nowhere/b"}, "unix:/nowhere/a")
          .error,
      HasSubstr("unix:/nowhere/b"));
}

TEST(CommandTest, OutputThatCannotBeWrittenFails) {
  const std::string line =
      std::string(LATENTKV_PATH) + " --help >/dev/full 2>/dev/null";
  EXPECT_NE(std::system(line.c_str()), 0);
}

TEST(CommandTest, StatsAreTheDaemonsOwn) {
  TestDaemon daemon;
  ASSERT_NE(daemon.channel(), nullptr);
  const uint64_t stored_bytes = StoreBlocks(daemon.channel(), 3);

  const Ran json = RunCommand({"stats", "--json"}, daemon.address());
  ASSERT_EQ(json.exit_status, 0) << json.error;
  v1::StatsResponse said;
  ASSERT_TRUE(JsonStringToMessage(json.output, &said).ok()) << json.output;
  EXPECT_EQ(said.records(), 3);
  EXPECT_EQ(said.stores(), 3);
  EXPECT_EQ(said.stored_bytes(), stored_bytes);
  EXPECT_EQ(said.capacity_bytes(), uint64_t{1} << 30);

  const Ran text = RunCommand({"stats", "--address", daemon.address()});
  EXPECT_EQ(text.exit_status, 0);
  EXPECT_THAT(text.output,
              AllOf(HasSubstr("at " + daemon.address()),
                    HasSubstr("3 held; 3 stored"), HasSubstr("of 1.07 GB")));
}

TEST(CommandTest, SessionsAreListedShownAndDeleted) {
  TestDaemon daemon;
  ASSERT_NE(daemon.channel(), nullptr);
  EXPECT_EQ(RunCommand({"sessions"}, daemon.address()).output, "no sessions\n");
  PutSession(daemon.channel(), "first", "{\"said\": \"hello\"}");
  PutSession(daemon.channel(), "sec\"ond", "other");

  const Ran list = RunCommand({"sessions"}, daemon.address());
  EXPECT_EQ(list.exit_status, 0);
  EXPECT_THAT(list.output,
              AllOf(HasSubstr("\nfirst "), HasSubstr("\nsec\"ond ")));
  google::protobuf::ListValue listed;
  const Ran json = RunCommand({"sessions", "list", "--json"}, daemon.address());
  ASSERT_TRUE(JsonStringToMessage(json.output, &listed).ok()) << json.output;
  ASSERT_THAT(listed.values(), SizeIs(2));

  EXPECT_THAT(
      RunCommand({"sessions", "show", "first"}, daemon.address()).output,
      HasSubstr("{\"said\": \"hello\"}"));
  google::protobuf::Struct shown;
  const Ran show =
      RunCommand({"sessions", "show", "sec\"ond", "--json"}, daemon.address());
  ASSERT_TRUE(JsonStringToMessage(show.output, &shown).ok()) << show.output;
  EXPECT_EQ(shown.fields().at("name").string_value(), "sec\"ond");
  EXPECT_EQ(shown.fields().at("record_base64").string_value(), "b3RoZXI=");

  EXPECT_EQ(
      RunCommand({"sessions", "delete", "first"}, daemon.address()).exit_status,
      0);
  EXPECT_TRUE(absl::IsNotFound(
      daemon.channel()->GetSession("first", Limits()).status()));
  EXPECT_TRUE(daemon.channel()->GetSession("sec\"ond", Limits()).ok());
}

TEST(CommandTest, SessionThatIsNotThereIsAnError) {
  TestDaemon daemon;
  ASSERT_NE(daemon.channel(), nullptr);
  for (const std::string action : {"show", "delete"}) {
    const Ran ran =
        RunCommand({"sessions", action, "nobody"}, daemon.address());
    EXPECT_EQ(ran.exit_status, 1);
    EXPECT_THAT(ran.error, HasSubstr("there is no session \"nobody\""));
  }
}

TEST(CommandTest, SomebodyElsesTextCannotSteerTheTerminal) {
  TestDaemon daemon;
  ASSERT_NE(daemon.channel(), nullptr);
  PutSession(daemon.channel(), "\033[2Jname", "\033]0;title\007 line\nnext");
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"sessions"},
        {"sessions", "show", "\033[2Jname"},
        {"sessions", "--json"}}) {
    const Ran ran = RunCommand(arguments, daemon.address());
    EXPECT_EQ(ran.exit_status, 0);
    EXPECT_EQ(ran.output.find('\033'), std::string::npos) << ran.output;
  }
  EXPECT_THAT(
      RunCommand({"sessions", "show", "\033[2Jname"}, daemon.address()).output,
      HasSubstr("line\nnext"));
}

}  // namespace
}  // namespace latentkv
