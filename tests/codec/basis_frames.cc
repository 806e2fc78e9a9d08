#include "tests/codec/basis_frames.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "codec/latent_model.h"
#include "core/limits.h"

namespace latentkv {

EncodeOptions AtStep(float step, float loss_own_max) {
  EncodeOptions options;
  options.exact = false;
  options.step = step;
  options.loss_own_max = loss_own_max;
  return options;
}

Bytes Encoded(const SyntheticModel& model, const BlockPlace& place,
              const Bytes& raw, const EncodeOptions& options) {
  const auto frame = model.codec().Encode(place, raw, options);
  EXPECT_TRUE(frame.ok()) << frame.status();
  return frame.ok() ? *frame : Bytes();
}

double EscapeBytes(const Bytes& frame, size_t index) {
  uint32_t count = 0;
  const uint64_t at = VerifyFrame(frame)->sections[index].offset + 4;
  std::memcpy(&count, frame.data() + at, sizeof(count));
  return 6.0 * count;
}

double SurpriseOf(const SyntheticModel& model, const Bytes& frame) {
  const FrameHeader header = *VerifyFrame(frame);
  const LatentTables tables = MakeLatentTables();
  double actual = 0, expected = 0;
  for (size_t g = 0; g < header.sections.size(); ++g) {
    const LatentSection section = ReadSection(model, frame, g);
    actual += 8.0 * (header.sections[g].bytes - 8.0 -
                     section.exact_tokens.size() - section.exact_values.size() -
                     section.sinks.size() - 128 - EscapeBytes(frame, g));
    double token_bits = 0;
    for (const float scale : model.basis()->groups()[g].latent_scale) {
      const uint32_t c = LatentClass(scale, header.encoding.step);
      if (c < 16) continue;  // Not live.
      for (const uint16_t frequency : tables.tables[c].frequency) {
        if (frequency > 0)
          token_bits += frequency / 4096.0 * std::log2(4096.0 / frequency);
      }
    }
    expected += token_bits * (kBlockTokens - section.exact_tokens.size() -
                              (header.first_token == 0 ? kSinkTokens : 0));
  }
  return std::pow(std::clamp(actual / expected, 0.25, 4.0), 1.5);
}

double ErrorOf(const SyntheticModel& model, uint32_t first_token,
               const Bytes& raw, const Bytes& restored) {
  double loss = 0;
  for (const BasisGroup& group : model.basis()->groups()) {
    const std::vector<float> before =
        ChannelsOf(model.geometry(), group, first_token, raw);
    const std::vector<float> after =
        ChannelsOf(model.geometry(), group, first_token, restored);
    for (size_t i = first_token == 0 ? kSinkTokens * group.channels : 0;
         i < before.size(); ++i) {
      const double error = before[i] - after[i];
      loss +=
          group.sensitivity[i % group.channels] * error * error / kBlockTokens;
    }
  }
  return loss;
}

}  // namespace latentkv
