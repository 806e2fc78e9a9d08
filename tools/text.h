// Values as a person or a script reads them.
#ifndef LATENTKV_TOOLS_TEXT_H_
#define LATENTKV_TOOLS_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace latentkv {

// "512 bytes", "1.21 kB", "34.0 GB": three digits, powers of 1000.
std::string HumanBytes(uint64_t bytes);
// "2026-11-24 14:03:10" in local time; "never" for 0.
std::string HumanTime(int64_t unix_ms);
// Somebody else's text for a terminal: control characters are escaped, which
// keeps it from steering the terminal.
std::string Printable(absl::string_view text);
// The same, but lines and tabs stay.
std::string PrintableLines(absl::string_view text);

// A JSON object, its members in the order of their adding. Texts must be UTF-8,
// as all strings of the wire are.
class JsonObject {
 public:
  JsonObject& AddText(absl::string_view name, absl::string_view value);
  JsonObject& AddNumber(absl::string_view name, int64_t value);
  JsonObject& AddFlag(absl::string_view name, bool value);
  std::string text() const { return "{" + members_ + "}"; }

 private:
  void AddName(absl::string_view name);
  std::string members_;
};

}  // namespace latentkv

#endif  // LATENTKV_TOOLS_TEXT_H_
