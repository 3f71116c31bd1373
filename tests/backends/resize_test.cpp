#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

struct Case {
  int64_t h, w, oh, ow, c;
};
const Case kCases[] = {{4, 4, 8, 8, 3}, {5, 7, 3, 4, 1}, {1, 1, 5, 3, 129}, {6, 6, 6, 6, 7}, {3, 5, 1, 1, 64}, {9, 4, 20, 5, 127}, {32, 32, 14, 48, 2}};

double source(ResizeCoordinates m, double i, double in, double out) {
  const double ratio = in / out;
  switch (m) {
    case ResizeCoordinates::half_pixel: return (i + 0.5) * ratio - 0.5;
    case ResizeCoordinates::asymmetric: return i * ratio;
    case ResizeCoordinates::align_corners: return out == 1 ? 0.0 : i * (in - 1) / (out - 1);
    case ResizeCoordinates::pytorch_half_pixel: return out == 1 ? 0.0 : (i + 0.5) * ratio - 0.5;
  }
  return 0.0;
}

// Weight of input pixel j for output i: a triangle around the clamped source coordinate (bilinear), or one pixel.
double weight(ResizeMode mode, ResizeCoordinates m, bool down, int64_t i, int64_t j, int64_t in, int64_t out) {
  const double eps = 1e-9, x = source(m, static_cast<double>(i), static_cast<double>(in), static_cast<double>(out));
  if (mode == ResizeMode::nearest) {
    const double k = down ? std::floor(x + eps) : std::ceil(x - 0.5 - eps);
    return std::fmin(std::fmax(k, 0.0), static_cast<double>(in - 1)) == static_cast<double>(j) ? 1.0 : 0.0;
  }
  const double u = std::fmin(std::fmax(x, 0.0), static_cast<double>(in - 1));
  return std::fmax(0.0, 1.0 - std::abs(u - static_cast<double>(j)));
}

}  // namespace

TEST_CASE("resize and its gradient: every mode and coordinate rule") {
  for (const Case& k : kCases) {
    for (int variant = 0; variant < 12; ++variant) {
      const ResizeMode mode = variant < 8 ? ResizeMode::nearest : ResizeMode::bilinear;
      const ResizeCoordinates rule = static_cast<ResizeCoordinates>(variant % 4);
      const bool down = variant < 4;
      CAPTURE(variant);
      CAPTURE(k.h);
      const int64_t n = 2, nx = n * k.h * k.w * k.c, ny = n * k.oh * k.ow * k.c;
      const std::vector<float> x = random_values(nx), dy = random_values(ny, -1.0f, 1.0f, 2);
      std::vector<double> want(static_cast<size_t>(ny)), want_dx(static_cast<size_t>(nx));
      for (int64_t o = 0; o < k.oh * k.ow; ++o) {
        for (int64_t p = 0; p < k.h * k.w; ++p) {
          const double f = weight(mode, rule, down, o / k.ow, p / k.w, k.h, k.oh) * weight(mode, rule, down, o % k.ow, p % k.w, k.w, k.ow);
          if (f == 0.0) continue;
          for (int64_t i = 0; i < n * k.c; ++i) {
            const size_t from = static_cast<size_t>((i / k.c * k.h * k.w + p) * k.c + i % k.c), to = static_cast<size_t>((i / k.c * k.oh * k.ow + o) * k.c + i % k.c);
            want[to] += f * static_cast<double>(x[from]);
            want_dx[from] += f * static_cast<double>(dy[to]);
          }
        }
      }
      ResizeArgs a{.n = n, .h = k.h, .w = k.w, .c = k.c, .oh = k.oh, .ow = k.ow, .mode = mode, .coordinates = rule, .nearest_floor = down};
      const auto y = run_guarded<float>(ny, [&](float* out) {
        ResizeArgs b = a;
        b.x = x.data(), b.y = out;
        kernels().resize(b);
      });
      const auto dx = run_guarded<float>(nx, [&](float* out) {
        ResizeArgs b = a;
        b.x = dy.data(), b.y = out;
        kernels().resize_backward(b);
      });
      CHECK(first_far(y, want, 2e-6) == -1);
      CHECK(first_far(dx, want_dx, 2e-6) == -1);
    }
  }
}
