// What main.cc knows of the verbs of the command.
#ifndef LATENTKV_TOOLS_VERB_H_
#define LATENTKV_TOOLS_VERB_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace latentkv {

struct Invocation {
  // What stands behind the verb, flags taken out.
  std::vector<std::string> operands;
  std::string address;  // Of the daemon.
  bool json = false;
};

// A verb prints nothing itself.
struct Outcome {
  std::string output;  // For standard output.
  std::string error;   // For standard error; empty when all went well.
  // 0: done; 1: it could not be done; 2: it was asked for wrongly.
  int exit_status = 0;

  static Outcome Done(std::string output) { return {std::move(output), "", 0}; }
  static Outcome Failed(std::string error) { return {"", std::move(error), 1}; }
  static Outcome Misused(std::string error) {
    return {"", std::move(error), 2};
  }
};

struct Verb {
  absl::string_view name;
  absl::string_view summary;  // One line.
  // What `latentkv <name> --help` prints before the flags.
  absl::string_view help;
  bool asks_daemon;  // Takes --address and --json.
  Outcome (*run)(const Invocation& invocation);
};

Verb StatsVerb();
Verb SessionsVerb();
Verb InspectVerb();

}  // namespace latentkv

#endif  // LATENTKV_TOOLS_VERB_H_
