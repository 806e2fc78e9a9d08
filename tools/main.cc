// The command `latentkv`: takes the command line apart and prints what a verb
// answers.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/verb.h"

namespace latentkv {
namespace {

constexpr char kDefaultAddress[] = "127.0.0.1:7430";  // As the daemon's.
constexpr char kDaemonFlags[] = R"(
flags:
  --address ADDRESS   the daemon, host:port or unix:/path (LATENTKV_ADDRESS, else 127.0.0.1:7430)
  --json              for scripts
  -h, --help
)";
constexpr char kFlags[] = R"(
flags:
  -h, --help
)";

std::array<Verb, 3> Verbs() {
  return {StatsVerb(), SessionsVerb(), InspectVerb()};
}

std::string Help() {
  std::string text =
      "usage: latentkv COMMAND [flags]\n\nLooks at latentkv: at a running "
      "daemon, or at a file.\n\n";
  for (const Verb& verb : Verbs())
    absl::StrAppendFormat(&text, "  %-10s  %s\n", verb.name, verb.summary);
  return text +
         "\n\"latentkv COMMAND --help\" tells more; --version names the "
         "version.\n" +
         "Exit status: 0 done, 1 it could not be done, 2 it was asked for "
         "wrongly.\n";
}

struct CommandLine {
  std::string verb;  // Empty if none was named.
  Invocation invocation;
  bool help = false;
  bool version = false;
  // A flag was given that only those verbs take that ask the daemon.
  bool for_daemon = false;
};

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& arguments,
                                  const char* address) {
  CommandLine line;
  line.invocation.address =
      address == nullptr || *address == 0 ? kDefaultAddress : address;
  std::vector<std::string> operands;
  bool flags_ended = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (flags_ended || argument == "-" || !absl::StartsWith(argument, "-")) {
      operands.push_back(argument);
    } else if (argument == "--") {
      flags_ended = true;
    } else if (argument == "-h" || argument == "--help") {
      line.help = true;
    } else if (argument == "--version") {
      line.version = true;
    } else if (argument == "--json") {
      line.invocation.json = line.for_daemon = true;
    } else if (absl::StartsWith(argument, "--address=")) {
      line.invocation.address = argument.substr(argument.find('=') + 1);
      line.for_daemon = true;
    } else if (argument == "--address") {
      if (++i == arguments.size())
        return absl::InvalidArgumentError(
            "--address needs a value (see --help)");
      line.invocation.address = arguments[i];
      line.for_daemon = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no flag ", argument, " (see --help)"));
    }
  }
  if (operands.empty()) return line;
  line.verb = operands[0];
  line.invocation.operands.assign(operands.begin() + 1, operands.end());
  return line;
}

Outcome Run(const CommandLine& line) {
  if (line.version) return Outcome::Done("latentkv " LATENTKV_VERSION "\n");
  if (line.verb.empty()) {
    return line.help ? Outcome::Done(Help())
                     : Outcome::Misused("a command is missing\n\n" + Help());
  }
  for (const Verb& verb : Verbs()) {
    if (verb.name != line.verb) continue;
    if (line.help)
      return Outcome::Done(
          absl::StrCat(verb.help, verb.asks_daemon ? kDaemonFlags : kFlags));
    if (line.for_daemon && !verb.asks_daemon) {
      return Outcome::Misused(
          absl::StrCat(verb.name,
                       " asks no daemon: it takes neither --address nor --json "
                       "(see --help)"));
    }
    Outcome outcome = verb.run(line.invocation);
    if (outcome.exit_status == 2)
      absl::StrAppend(&outcome.error, "; see \"latentkv ", verb.name,
                      " --help\"");
    return outcome;
  }
  return Outcome::Misused(
      absl::StrCat("there is no command \"", line.verb,
                   "\": it is stats, sessions or inspect (see --help)"));
}

int Main(const std::vector<std::string>& arguments) {
  absl::StatusOr<CommandLine> line =
      Parse(arguments, std::getenv("LATENTKV_ADDRESS"));
  Outcome outcome =
      line.ok() ? Run(*line)
                : Outcome::Misused(std::string(line.status().message()));
  std::fputs(outcome.output.c_str(), stdout);
  if (std::fflush(stdout) != 0) {
    std::perror("latentkv: standard output");
    return 1;
  }
  if (outcome.error.empty()) return outcome.exit_status;
  std::fprintf(stderr, "latentkv: %s\n", outcome.error.c_str());
  return outcome.exit_status;
}

}  // namespace
}  // namespace latentkv

int main(int argc, char** argv) {
  return latentkv::Main(std::vector<std::string>(argv + 1, argv + argc));
}
