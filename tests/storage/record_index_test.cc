#include "storage/record_index.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/frames.h"

namespace latentkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const absl::Time kNow = absl::FromUnixSeconds(1000);

IndexedRecord Record(uint32_t chain, uint32_t block, uint64_t bytes = 100,
                     Encoding encoding = Encoding::Exact(), float loss = 0) {
  IndexedRecord record;
  record.entry = {{KeyOf(chain, block), encoding}, bytes, 2, loss};
  record.first_token = block * kBlockTokens;
  return record;
}

void Add(RecordIndex* index, IndexedRecord record, const Digest& parent = {}) {
  record.sequence = index->NextSequence();
  index->Insert(index->Place(record, parent));
}

void AddBlock(RecordIndex* index, uint32_t chain, uint32_t block) {
  Add(index, Record(chain, block), ParentOf(chain, block));
}

void AddChain(RecordIndex* index, uint32_t chain, uint32_t count) {
  for (uint32_t block = 0; block < count; ++block)
    AddBlock(index, chain, block);
}

// "chain/block" of the victims for `records` records of 100 bytes.
std::vector<std::string> Victims(RecordIndex* index, uint32_t records,
                                 absl::Time now = kNow) {
  std::vector<std::string> names;
  auto victims = index->Victims(records * 100, now);
  if (!victims.has_value()) return {"none"};
  for (const IndexedRecord& victim : *victims) {
    for (uint32_t chain = 0; chain < 10; ++chain) {
      for (uint32_t block = 0; block < 10; ++block) {
        if (KeyOf(chain, block) == victim.entry.id.key)
          names.push_back(absl::StrCat(chain, "/", block));
      }
    }
  }
  return names;
}

TEST(RecordIndexTest, AChainThatWasStoredIsTakenFromItsEnd) {
  RecordIndex index;
  AddChain(&index, 1, 4);
  AddChain(&index, 2, 2);
  EXPECT_THAT(Victims(&index, 5),
              ElementsAre("1/3", "1/2", "1/1", "1/0", "2/1"));
}

TEST(RecordIndexTest,
     AChainThatRanksStoredTogetherIsTakenFromItsEndAlthoughOneWasAhead) {
  RecordIndex index;
  for (uint32_t block : {0, 2, 3, 1, 4}) AddBlock(&index, 1, block);
  AddChain(&index, 2, 2);
  EXPECT_THAT(Victims(&index, 6),
              ElementsAre("1/4", "1/3", "1/2", "1/1", "1/0", "2/1"));
}

TEST(RecordIndexTest, AChainThatWasFoundIsTakenLastAndFromItsEnd) {
  RecordIndex index;
  AddChain(&index, 1, 3);
  AddChain(&index, 2, 2);
  EXPECT_THAT(index.FindPrefix(ExactQuery(KeysOf(1, 3)), kNow).records,
              SizeIs(3));
  EXPECT_THAT(Victims(&index, 5),
              ElementsAre("2/1", "2/0", "1/2", "1/1", "1/0"));
}

TEST(RecordIndexTest, BlocksStoredBehindAFoundPrefixGoBeforeIt) {
  RecordIndex index;
  AddChain(&index, 1, 2);
  AddChain(&index, 2, 1);
  index.FindPrefix(ExactQuery(KeysOf(1, 4)), kNow);
  AddBlock(&index, 1, 2);
  AddBlock(&index, 1, 3);
  EXPECT_THAT(Victims(&index, 5),
              ElementsAre("2/0", "1/3", "1/2", "1/1", "1/0"));
}

TEST(RecordIndexTest, ChainsStoredSideBySideAreTakenOneAfterTheOther) {
  RecordIndex index;
  for (uint32_t block = 0; block < 3; ++block) {
    for (uint32_t chain : {1, 2}) AddBlock(&index, chain, block);
  }
  EXPECT_THAT(Victims(&index, 6),
              ElementsAre("1/2", "1/1", "1/0", "2/2", "2/1", "2/0"));
}

TEST(RecordIndexTest, BranchesOfAChainGoBeforeWhatTheyShare) {
  RecordIndex index;
  AddChain(&index, 1, 2);
  Add(&index, Record(2, 2), KeyOf(1, 1));
  AddBlock(&index, 1, 2);
  EXPECT_THAT(Victims(&index, 4), ElementsAre("2/2", "1/2", "1/1", "1/0"));
}

TEST(RecordIndexTest, PrefixEndsAtTheFirstHole) {
  RecordIndex index;
  for (uint32_t block : {0, 1, 3, 4}) Add(&index, Record(1, block));
  EXPECT_THAT(index.FindPrefix(ExactQuery(KeysOf(1, 5)), kNow).records,
              SizeIs(2));
  EXPECT_THAT(index.FindPrefix(ExactQuery({KeyOf(1, 2)}), kNow).records,
              IsEmpty());
  Add(&index, Record(1, 2));
  EXPECT_THAT(index.FindPrefix(ExactQuery(KeysOf(1, 5)), kNow).records,
              SizeIs(5));
}

TEST(RecordIndexTest, PrefixTakesTheAcceptableEncodingWithTheLeastLoss) {
  RecordIndex index;
  const Encoding fine{Sha256({AsBytes("fine")}), 0.1f},
      coarse{Sha256({AsBytes("coarse")}), 0.5f};
  Add(&index, Record(1, 0, 10, coarse, 0.02f));
  Add(&index, Record(1, 0, 50, fine, 0.01f));
  Add(&index, Record(1, 0, 400));
  PrefixQuery query;
  const std::vector<Digest> keys = KeysOf(1, 1);
  query.keys = keys;
  query.loss_chain_max = 1;
  EXPECT_THAT(index.FindPrefix(query, kNow).records, IsEmpty());
  query.accept_bases = {coarse.basis};
  EXPECT_EQ(index.FindPrefix(query, kNow).records.at(0).id.encoding, coarse);
  query.accept_bases = {coarse.basis, fine.basis};
  EXPECT_EQ(index.FindPrefix(query, kNow).records.at(0).id.encoding, fine);
  query.accept_exact = true;
  EXPECT_TRUE(
      index.FindPrefix(query, kNow).records.at(0).id.encoding.IsExact());
  query.accept_exact = false;
  query.loss_chain_max = 0.005f;
  EXPECT_THAT(index.FindPrefix(query, kNow).records, IsEmpty());
}

TEST(RecordIndexTest, LeasedRecordsStayUntilReleasedOrExpired) {
  RecordIndex index;
  AddChain(&index, 1, 2);
  const PrefixHit first =
      index.FindPrefix(ExactQuery(KeysOf(1, 2), 1000), kNow);
  const PrefixHit second =
      index.FindPrefix(ExactQuery(KeysOf(1, 1), 5000), kNow);
  EXPECT_THAT(Victims(&index, 1), ElementsAre("none"));
  index.ReleaseLease(first.lease_id);
  index.ReleaseLease(first.lease_id);
  EXPECT_THAT(Victims(&index, 1), ElementsAre("1/1"));
  EXPECT_THAT(Victims(&index, 2), ElementsAre("none"));
  EXPECT_NE(second.lease_id, first.lease_id);
  EXPECT_THAT(Victims(&index, 2, kNow + absl::Milliseconds(4999)),
              ElementsAre("none"));
  EXPECT_THAT(Victims(&index, 2, kNow + absl::Milliseconds(5000)),
              ElementsAre("1/1", "1/0"));
}

TEST(RecordIndexTest, NoLeaseLastsLongerThanTheLongest) {
  RecordIndex index;
  AddChain(&index, 1, 1);
  EXPECT_NE(
      index.FindPrefix(ExactQuery(KeysOf(1, 1), 4000000000u), kNow).lease_id,
      0u);
  EXPECT_THAT(Victims(&index, 1, kNow + kLeaseMax - absl::Milliseconds(1)),
              ElementsAre("none"));
  EXPECT_THAT(Victims(&index, 1, kNow + kLeaseMax), ElementsAre("1/0"));
}

TEST(RecordIndexTest, NoLeaseIsGivenWhileTheMostRecordsAreLeased) {
  RecordIndex index;
  AddChain(&index, 1, 1);
  // The same block again and again: what counts is the memory that leases take.
  const std::vector<Digest> keys(1024, KeyOf(1, 0));
  uint64_t last = 0;
  for (uint64_t leases = 0; leases < kLeasedRecordsMax / keys.size();
       ++leases) {
    last = index.FindPrefix(ExactQuery(keys, 60000), kNow).lease_id;
    ASSERT_NE(last, 0u);
  }
  const PrefixHit refused = index.FindPrefix(ExactQuery(keys, 60000), kNow);
  EXPECT_EQ(refused.lease_id, 0u);
  EXPECT_THAT(refused.records, SizeIs(keys.size()));
  index.ReleaseLease(last);
  EXPECT_NE(index.FindPrefix(ExactQuery(keys, 60000), kNow).lease_id, 0u);
}

TEST(RecordIndexTest, ALeaseOfARemovedRecordDoesNotCountForItsSuccessor) {
  RecordIndex index;
  AddChain(&index, 1, 1);
  const PrefixHit old = index.FindPrefix(ExactQuery(KeysOf(1, 1), 1000), kNow);
  EXPECT_TRUE(index.Erase(ExactId(1, 0)));
  AddChain(&index, 1, 1);
  const PrefixHit held = index.FindPrefix(ExactQuery(KeysOf(1, 1), 1000), kNow);
  index.ReleaseLease(old.lease_id);
  EXPECT_THAT(Victims(&index, 1), ElementsAre("none"));
  index.ReleaseLease(held.lease_id);
  EXPECT_THAT(Victims(&index, 1), ElementsAre("1/0"));
}

TEST(RecordIndexTest, BytesFollowWhatComesAndGoes) {
  RecordIndex index;
  AddChain(&index, 1, 3);
  EXPECT_EQ(index.bytes(), 300u);
  EXPECT_TRUE(index.Erase(ExactId(1, 1)));
  EXPECT_FALSE(index.Erase(ExactId(1, 1)));
  EXPECT_EQ(index.bytes(), 200u);
  EXPECT_EQ(index.records(), 2u);
  EXPECT_EQ(index.touched(), 0u);
}

TEST(RecordIndexTest, OrderOfUseSurvivesSerializing) {
  RecordIndex index;
  AddChain(&index, 1, 2);
  AddChain(&index, 2, 2);
  index.FindPrefix(ExactQuery(KeysOf(1, 2)), kNow);
  EXPECT_THAT(index.TakeTouched(1), SizeIs(1));
  EXPECT_THAT(index.TakeTouched(10), SizeIs(1));
  EXPECT_THAT(index.TakeTouched(10), IsEmpty());
  RecordIndex restored;
  for (const RecordId& id : index.Ids()) {
    const IndexedRecord& record = *index.Find(id);
    auto parsed =
        ParseRecord(AsBytes(SerializeRecordId(id)), SerializeRecord(record));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_TRUE(restored.Restore(*parsed));
    EXPECT_FALSE(restored.Restore(*parsed));
  }
  EXPECT_THAT(Victims(&restored, 4), ElementsAre("2/1", "2/0", "1/1", "1/0"));
  EXPECT_GT(restored.NextSequence(), 4u);
  AddChain(&restored, 3, 1);
  EXPECT_THAT(Victims(&restored, 5),
              ElementsAre("2/1", "2/0", "1/1", "1/0", "3/0"));
}

TEST(RecordIndexTest, EntriesOfAnyOtherLengthOrVersionAreRefused) {
  const IndexedRecord record = Record(1, 0);
  const std::string id = SerializeRecordId(record.entry.id);
  const Bytes value = SerializeRecord(record);
  for (size_t length = 0; length < value.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(
        ParseRecord(AsBytes(id), ByteSpan(value).subspan(0, length)).status()))
        << length;
  }
  for (size_t length = 0; length < id.size(); ++length) {
    EXPECT_TRUE(absl::IsDataLoss(
        ParseRecord(AsBytes(id).subspan(0, length), value).status()))
        << length;
  }
  Bytes longer = value, newer = value;
  longer.push_back(0);
  newer[0] = 2;
  EXPECT_TRUE(absl::IsDataLoss(ParseRecord(AsBytes(id), longer).status()));
  EXPECT_TRUE(absl::IsDataLoss(ParseRecord(AsBytes(id), newer).status()));
}

}  // namespace
}  // namespace latentkv
