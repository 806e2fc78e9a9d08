// Conversations that the daemon keeps by name.
#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/daemon.h"
#include "tools/text.h"
#include "tools/verb.h"
#include "transport/grpc_channel.h"

namespace latentkv {
namespace {

constexpr char kHelp[] = R"(usage: latentkv sessions [list] [flags]
       latentkv sessions show NAME [flags]
       latentkv sessions delete NAME [flags]

Conversations that the daemon keeps by name.

  list          names and times, the one last written first
  show NAME     one of them, with its record as the client wrote it
  delete NAME   forgets the record; blocks of the conversation stay until they are evicted

With --json: list prints an array of objects, show one object whose record is in base64, delete nothing.
)";

JsonObject SessionAsJson(const RemoteSession& session) {
  JsonObject object;
  object.AddText("name", session.name)
      .AddNumber("created_ms", session.created_ms)
      .AddNumber("updated_ms", session.updated_ms)
      .AddFlag("pinned", session.pinned)
      .AddText("last_key",
               session.last_key.IsZero() ? "" : session.last_key.Hex());
  return object;
}

Outcome List(CacheChannel* channel, const Invocation& invocation) {
  absl::StatusOr<std::vector<RemoteSession>> sessions =
      channel->ListSessions(DaemonLimits());
  if (!sessions.ok())
    return DaemonFailure(sessions.status(), invocation.address);
  std::sort(sessions->begin(), sessions->end(),
            [](const RemoteSession& a, const RemoteSession& b) {
              return a.updated_ms != b.updated_ms ? a.updated_ms > b.updated_ms
                                                  : a.name < b.name;
            });
  if (invocation.json) {
    std::string text = "[";
    for (const RemoteSession& session : *sessions) {
      absl::StrAppend(&text, text.size() > 1 ? ",\n " : "",
                      SessionAsJson(session).text());
    }
    return Outcome::Done(text + "]\n");
  }
  if (sessions->empty()) return Outcome::Done("no sessions\n");
  size_t width = 4;
  for (const RemoteSession& session : *sessions)
    width = std::max(width, Printable(session.name).size());
  std::string text = absl::StrFormat("%-*s  %-19s  %-19s\n", width, "name",
                                     "last written", "created");
  for (const RemoteSession& session : *sessions) {
    absl::StrAppendFormat(
        &text, "%-*s  %s  %s%s\n", width, Printable(session.name),
        HumanTime(session.updated_ms), HumanTime(session.created_ms),
        session.pinned ? "  pinned" : "");
  }
  return Outcome::Done(std::move(text));
}

std::string SessionAsText(const RemoteSession& session) {
  std::string text = absl::StrFormat(
      "%s%s\n  created        %s\n  last written   %s\n",
      Printable(session.name), session.pinned ? ", pinned" : "",
      HumanTime(session.created_ms), HumanTime(session.updated_ms));
  if (!session.last_key.IsZero())
    absl::StrAppend(&text, "  last block     ", session.last_key.Hex(), "\n");
  if (!session.tokens.empty())
    absl::StrAppend(&text, "  tokens         ", session.tokens.size(), "\n");
  absl::StrAppend(&text, "  record         ", HumanBytes(session.record.size()),
                  "\n");
  if (!session.record.empty())
    absl::StrAppend(&text, "\n", PrintableLines(session.record), "\n");
  return text;
}

Outcome SessionFailure(const absl::Status& status,
                       const Invocation& invocation) {
  if (!absl::IsNotFound(status))
    return DaemonFailure(status, invocation.address);
  return Outcome::Failed(absl::StrCat(
      "there is no session \"", Printable(invocation.operands[1]), "\" at ",
      invocation.address, " (latentkv sessions lists them)"));
}

Outcome Show(CacheChannel* channel, const Invocation& invocation) {
  absl::StatusOr<RemoteSession> session =
      channel->GetSession(invocation.operands[1], DaemonLimits());
  if (!session.ok()) return SessionFailure(session.status(), invocation);
  if (!invocation.json) return Outcome::Done(SessionAsText(*session));
  JsonObject object = SessionAsJson(*session);
  object.AddNumber("tokens", session->tokens.size())
      .AddText("record_base64", absl::Base64Escape(session->record));
  return Outcome::Done(object.text() + "\n");
}

Outcome Delete(CacheChannel* channel, const Invocation& invocation) {
  // To the daemon, deleting what is not there is no error; to a person it is a
  // name mistyped.
  absl::Status status =
      channel->GetSession(invocation.operands[1], DaemonLimits()).status();
  if (status.ok())
    status = channel->DeleteSession(invocation.operands[1], DaemonLimits());
  if (!status.ok()) return SessionFailure(status, invocation);
  return Outcome::Done(
      invocation.json
          ? ""
          : absl::StrCat("deleted ", Printable(invocation.operands[1]), "\n"));
}

Outcome RunSessions(const Invocation& invocation) {
  const std::vector<std::string>& operands = invocation.operands;
  const std::string action = operands.empty() ? "list" : operands[0];
  const bool named = action == "show" || action == "delete";
  if (!named && action != "list") {
    return Outcome::Misused(
        absl::StrCat("sessions does not know \"", action,
                     "\": it is list, show NAME or delete NAME"));
  }
  if (named && operands.size() < 2)
    return Outcome::Misused(absl::StrCat("sessions ", action, " needs a NAME"));
  if (operands.size() > (named ? 2u : 1u)) {
    return Outcome::Misused(absl::StrCat(
        "sessions ", action, " does not take \"", operands.back(), "\""));
  }
  auto channel = MakeGrpcChannel(invocation.address);
  if (!channel.ok()) return DaemonFailure(channel.status(), invocation.address);
  if (action == "show") return Show(channel->get(), invocation);
  if (action == "delete") return Delete(channel->get(), invocation);
  return List(channel->get(), invocation);
}

}  // namespace

Verb SessionsVerb() {
  return {"sessions", "conversations kept by name: list, show, delete", kHelp,
          true, RunSessions};
}

}  // namespace latentkv
