// What the daemon holds and has done.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/daemon.h"
#include "tools/text.h"
#include "tools/verb.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr char kHelp[] = R"(usage: latentkv stats [flags]

What the daemon holds, and what it has done since it started.

With --json: one object, whose members bear the names of StatsResponse in proto/latentkv/v1/admin.proto.
)";

std::string StatsAsJson(const RemoteStats& stats) {
  JsonObject object;
  object.AddText("version", stats.version)
      .AddNumber("uptime_ms", stats.uptime_ms)
      .AddNumber("records", stats.records)
      .AddNumber("stored_bytes", stats.stored_bytes)
      .AddNumber("disk_bytes", stats.disk_bytes)
      .AddNumber("capacity_bytes", stats.capacity_bytes)
      .AddNumber("memory_bytes", stats.memory_bytes)
      .AddNumber("hits", stats.hits)
      .AddNumber("misses", stats.misses)
      .AddNumber("fetched_bytes", stats.fetched_bytes)
      .AddNumber("stores", stats.stores)
      .AddNumber("stores_refused", stats.stores_refused)
      .AddNumber("evicted_records", stats.evicted_records)
      .AddNumber("quarantined_records", stats.quarantined_records)
      .AddNumber("sessions", stats.sessions);
  return object.text() + "\n";
}

double Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : 100.0 * part / whole;
}

std::string StatsAsText(const RemoteStats& stats, absl::string_view address) {
  const absl::Duration uptime =
      absl::Trunc(absl::Milliseconds(stats.uptime_ms), absl::Seconds(1));
  std::string text =
      absl::StrFormat("latentkvd %s at %s, up %s\n", stats.version, address,
                      absl::FormatDuration(uptime));
  absl::StrAppendFormat(&text,
                        "  blocks       %d held; %d stored, %d refused, %d "
                        "evicted for room, %d damaged\n",
                        stats.records, stats.stores, stats.stores_refused,
                        stats.evicted_records, stats.quarantined_records);
  absl::StrAppendFormat(
      &text, "  capacity     %s of %s (%.1f %%); %s on disk, %s in memory\n",
      HumanBytes(stats.stored_bytes), HumanBytes(stats.capacity_bytes),
      Percent(stats.stored_bytes, stats.capacity_bytes),
      HumanBytes(stats.disk_bytes), HumanBytes(stats.memory_bytes));
  absl::StrAppendFormat(
      &text,
      "  lookups      %d blocks found, %d not (%.1f %%); %s given back\n",
      stats.hits, stats.misses, Percent(stats.hits, stats.hits + stats.misses),
      HumanBytes(stats.fetched_bytes));
  absl::StrAppendFormat(&text, "  sessions     %d\n", stats.sessions);
  return text;
}

Outcome RunStats(const Invocation& invocation) {
  if (!invocation.operands.empty()) {
    return Outcome::Misused(absl::StrCat("stats takes no operand, but \"",
                                         invocation.operands[0],
                                         "\" was given"));
  }
  auto channel = MakeGrpcChannel(invocation.address);
  if (!channel.ok()) return DaemonFailure(channel.status(), invocation.address);
  absl::StatusOr<RemoteStats> stats = (*channel)->Stats(DaemonLimits());
  if (!stats.ok()) return DaemonFailure(stats.status(), invocation.address);
  return Outcome::Done(invocation.json
                           ? StatsAsJson(*stats)
                           : StatsAsText(*stats, invocation.address));
}

}  // namespace

Verb StatsVerb() {
  return {"stats", "what the daemon holds and has done", kHelp, true, RunStats};
}

}  // namespace latentkv
