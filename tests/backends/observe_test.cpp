#include <map>

#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

TEST_CASE("min_max: per channel, NaN counted and left out, empty") {
  const ChannelView views[] = {{1, 1, 1},      {1, 1, 7},  {1, 1, 127}, {1, 1, 128},  {1, 1, 129},    {1, 1, 1000},
                               {1, 1, 200003}, {3, 5, 17}, {900, 33, 1}, {1, 64, 576}, {2, 2, 100000}, {4, 3, 0}};
  for (const ChannelView& v : views) {
    CAPTURE(v.channels);
    CAPTURE(v.inner);
    const std::vector<float> x = awkward_values(v.outer * v.channels * v.inner);
    std::vector<std::map<float, int>> sorted(static_cast<size_t>(v.channels));
    std::vector<int64_t> nan(static_cast<size_t>(v.channels)), got_nan(nan);
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t c = i / static_cast<size_t>(v.inner) % static_cast<size_t>(v.channels);
      if (std::isnan(x[i])) {
        ++nan[c];
      } else {
        ++sorted[c][x[i]];
      }
    }
    const auto got = run_guarded<float>(2 * v.channels, [&](float* out) { kernels().min_max({.view = v, .x = x.data(), .min = out, .max = out + v.channels, .nan = got_nan.data()}); });
    for (size_t c = 0; c < sorted.size(); ++c) {
      CHECK(got[c] == (sorted[c].empty() ? kInf : sorted[c].begin()->first));
      CHECK(got[c + sorted.size()] == (sorted[c].empty() ? -kInf : sorted[c].rbegin()->first));
    }
    CHECK(nan == got_nan);
  }
}

TEST_CASE("histogram_acc: bins, ends, accumulation") {
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{127}, int64_t{128}, int64_t{129}, int64_t{1000}, int64_t{600001}}) {
    for (int variant = 0; variant < 4; ++variant) {
      CAPTURE(n);
      CAPTURE(variant);
      const bool centred = variant % 2 == 0, ends = variant >= 2;
      const int bins = 512;
      const float lo = -2.0f, width = 4.0f / 512.0f;  // a power of two: x/width is exact, so half-way values are real ties
      std::vector<float> x = awkward_values(n, -2.3f, 2.3f);
      for (size_t i = 2; i < x.size(); i += 7) x[i] = lo + width * (static_cast<float>(i % 512) + 0.5f);
      std::vector<double> want(bins, 1.0);
      for (float v : x) {
        if (std::isnan(v)) continue;
        const double t = (static_cast<double>(v) + 2.0) * 128.0;
        // Half away from zero; the bin index must be what float arithmetic gives, so keep its rounding of the quotient.
        const double q = centred ? static_cast<double>(static_cast<float>(static_cast<double>(v) * 128.0) - (lo / width)) : t;
        double bin = centred ? (q < 0.0 ? std::ceil(q - 0.5) : std::floor(q + 0.5)) : std::floor(static_cast<double>((v - lo) / width));
        if (ends) bin = std::fmin(std::fmax(bin, 0.0), bins - 1.0);
        if (bin >= 0.0 && bin < bins) want[static_cast<size_t>(bin)] += 1.0;
      }
      const auto got = run_guarded<double>(bins, [&](double* out) {
        std::fill(out, out + bins, 1.0);
        kernels().histogram_acc({.x = x.data(), .n = n, .lo = lo, .width = width, .bins = bins, .centred = centred, .clamp_ends = ends, .counts = out});
      });
      CHECK(got == want);
    }
  }
}
