#include "client/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/basis.h"
#include "codec/scalar_codec.h"
#include "transport/grpc_channel.h"
#include "transport/rank_links.h"
#include "transport/rank_mesh.h"

namespace latentkv {
namespace {

// Beyond, one stream brings less than the threads decode.
constexpr uint32_t kThreadsDefaultMax = 4;
constexpr uint32_t kThreadsMax = 256;
// What is restored, computed on, stored and restored again adds up; after three
// such rounds it is recomputed.
constexpr float kLossRounds = 4;

absl::Status CheckOptions(const ClientOptions& options) {
  absl::Status status = options.geometry.Validate();
  if (!status.ok()) return status;
  if (!(options.step >= 0) || !std::isfinite(options.step)) {
    return absl::InvalidArgumentError(absl::StrCat("a step of ", options.step));
  }
  if (!(options.loss_chain_max >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a largest loss of ", options.loss_chain_max));
  }
  if (options.thread_count > kThreadsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.thread_count, " threads; at most ", kThreadsMax));
  }
  if (options.scope.model.IsZero())
    return absl::InvalidArgumentError("no digest of the model");
  return absl::OkStatus();
}

uint32_t ThreadCount(uint32_t asked) {
  if (asked > 0) return asked;
  return std::clamp(std::thread::hardware_concurrency(), 1u,
                    kThreadsDefaultMax);
}

// What is written and read with `basis`.
absl::Status ChooseQuality(const ClientOptions& options, const Basis& basis,
                           ClientConfig* config) {
  Profile profile;
  if (options.profile != "exact" && !options.profile.empty()) {
    absl::StatusOr<Profile> found = basis.FindProfile(options.profile);
    if (!found.ok()) return found.status();
    profile = *std::move(found);
  }
  if (options.step > 0) profile.step = options.step;
  if (profile.step == 0) return absl::OkStatus();
  config->write.exact = false;
  config->write.step = profile.step;
  config->write.loss_own_max = profile.loss_own_max;
  config->read.bases = {basis.digest()};
  // What a guard writes where the basis does not hold a block.
  if (profile.loss_own_max > 0) config->read.bases.push_back(ScalarQuantizer());
  // Without a bound for one block there is none for a chain either: whoever
  // gives a step by hand wants what it gives.
  config->read.loss_chain_max = profile.loss_own_max > 0
                                    ? kLossRounds * profile.loss_own_max
                                    : std::numeric_limits<float>::max();
  return absl::OkStatus();
}

// The same without a basis.
void ChooseScalar(const ClientOptions& options, ClientConfig* config) {
  config->write.exact = false;
  config->write.step = options.step > 0 ? options.step : kScalarStep;
  config->read.bases = {ScalarQuantizer()};
  config->read.loss_chain_max = kLossRounds * ScalarLoss(config->write.step);
}

// Of one rank of several.
absl::Status JoinRanks(const ClientOptions& options, ClientConfig* config) {
  const TensorParallel& place = options.tensor_parallel;
  absl::StatusOr<HeadShare> share =
      HeadShare::Create(options.geometry, place.rank, place.ranks);
  if (!share.ok()) return share.status();
  config->share = std::make_shared<const HeadShare>(*std::move(share));
  if (place.ranks == 1) return absl::OkStatus();
  RankMeshOptions mesh;
  mesh.rank = place.rank;
  mesh.ranks = place.ranks;
  mesh.meeting = place.meeting;
  mesh.make_link = DeviceRankLinks();
  absl::StatusOr<std::unique_ptr<RankExchange>> ranks = OpenRankMesh(mesh);
  if (!ranks.ok()) return ranks.status();
  config->ranks = *std::move(ranks);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ClientConfig> MakeClientConfig(const ClientOptions& options) {
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  ClientConfig config;
  absl::StatusOr<std::unique_ptr<CacheChannel>> channel =
      MakeGrpcChannel(options.address);
  if (!channel.ok()) return channel.status();
  config.channel = *std::move(channel);
  config.scope = options.scope;
  config.staging_bytes_max = options.staging_bytes_max;
  config.thread_count = ThreadCount(options.thread_count);
  std::shared_ptr<const Basis> basis;
  if (!options.basis_path.empty()) {
    absl::StatusOr<std::shared_ptr<const Basis>> loaded =
        Basis::Load(options.basis_path);
    if (!loaded.ok()) return loaded.status();
    basis = *std::move(loaded);
    status = ChooseQuality(options, *basis, &config);
    if (!status.ok()) return status;
  } else if (options.step > 0 || options.profile == kScalarProfile) {
    ChooseScalar(options, &config);
  } else if (options.profile != "exact" && !options.profile.empty()) {
    config.logger->warn(
        "no basis is given for profile \"{}\": blocks are stored exact; \"{}\" "
        "needs none",
        options.profile, kScalarProfile);
  }
  if (options.loss_chain_max > 0)
    config.read.loss_chain_max = options.loss_chain_max;
  absl::StatusOr<std::unique_ptr<Codec>> codec =
      Codec::Create(options.geometry, std::move(basis));
  if (!codec.ok()) return codec.status();
  config.codec = *std::move(codec);
  status = JoinRanks(options, &config);
  if (!status.ok()) return status;
  return config;
}

}  // namespace latentkv
