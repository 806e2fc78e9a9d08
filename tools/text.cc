#include "tools/text.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

namespace latentkv {
namespace {

std::string Escaped(absl::string_view text, absl::string_view keep) {
  std::string escaped;
  for (const char c : text) {
    if (absl::ascii_iscntrl(c) && !absl::StrContains(keep, c)) {
      absl::StrAppendFormat(&escaped, "\\x%02x", static_cast<int>(c));
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\u%04x", static_cast<int>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " bytes");
  double value = static_cast<double>(bytes);
  absl::string_view unit;
  for (absl::string_view larger : {"kB", "MB", "GB", "TB", "PB", "EB"}) {
    // Not 1000: 999.6 would be printed as 1000.
    if (!unit.empty() && value < 999.5) break;
    value /= 1000;
    unit = larger;
  }
  return absl::StrFormat("%.*f %s",
                         value < 9.995   ? 2
                         : value < 99.95 ? 1
                                         : 0,
                         value, unit);
}

std::string HumanTime(int64_t unix_ms) {
  if (unix_ms == 0) return "never";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixMillis(unix_ms),
                          absl::LocalTimeZone());
}

std::string Printable(absl::string_view text) { return Escaped(text, ""); }

std::string PrintableLines(absl::string_view text) {
  return Escaped(text, "\n\t");
}

void JsonObject::AddName(absl::string_view name) {
  absl::StrAppend(&members_, members_.empty() ? "" : ", ", Quoted(name), ": ");
}

JsonObject& JsonObject::AddText(absl::string_view name,
                                absl::string_view value) {
  AddName(name);
  members_ += Quoted(value);
  return *this;
}

JsonObject& JsonObject::AddNumber(absl::string_view name, int64_t value) {
  AddName(name);
  absl::StrAppend(&members_, value);
  return *this;
}

JsonObject& JsonObject::AddFlag(absl::string_view name, bool value) {
  AddName(name);
  members_ += value ? "true" : "false";
  return *this;
}

}  // namespace latentkv
