#include "detent/io/data/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "detent/core/error.h"

namespace detent::io {
namespace {

void check(const char* name, const ImageView& in, int64_t height, int64_t width, const Window& w) {
  constexpr int64_t kMaxSide = int64_t{1} << 31;
  DETENT_CHECK(in.height > 0 && in.width > 0 && in.height <= kMaxSide && in.width <= kMaxSide, name, ": the image is ", in.height, "x", in.width);
  DETENT_CHECK(height > 0 && width > 0 && height <= kMaxSide && width <= kMaxSide, name, ": a result of ", height, "x", width, " was asked for");
  DETENT_CHECK(w.y >= 0 && w.x >= 0 && w.height > 0 && w.width > 0 && w.y + w.height <= height && w.x + w.width <= width, name, ": the window at ", w.y, ",", w.x, " of ", w.height,
               "x", w.width, " is not inside ", height, "x", width);
}

struct Tap {
  int64_t low = 0, high = 0;
  float fraction = 0.0f;
};

std::vector<Tap> tf1_taps(int64_t in, int64_t out, int64_t begin, int64_t count) {
  std::vector<Tap> taps(static_cast<size_t>(count));
  const float scale = static_cast<float>(in) / static_cast<float>(out);
  for (int64_t i = 0; i < count; ++i) {
    const float position = static_cast<float>(begin + i) * scale;
    const auto low = std::min(static_cast<int64_t>(position), in - 1);
    taps[static_cast<size_t>(i)] = {low, std::min(low + 1, in - 1), position - static_cast<float>(low)};
  }
  return taps;
}

// For each output pixel the first input pixel, and `size` weights in fixed point.
struct PilWeights {
  static constexpr int kBits = 22;
  int64_t size = 0;
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;
};

PilWeights pil_weights(int64_t in, int64_t out, int64_t begin, int64_t outputs) {
  PilWeights p;
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double widening = std::max(scale, 1.0);
  const double support = widening;  // of a triangle: one (widened) pixel to each side
  p.size = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  p.first.resize(static_cast<size_t>(outputs));
  p.count.resize(static_cast<size_t>(outputs));
  p.weights.assign(static_cast<size_t>(outputs * p.size), 0);
  std::vector<double> exact(static_cast<size_t>(p.size));
  const double narrowing = 1.0 / widening;
  for (int64_t i = 0; i < outputs; ++i) {
    const double centre = (static_cast<double>(begin + i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
    const int64_t count = std::min(static_cast<int64_t>(centre + support + 0.5), in) - first;
    double sum = 0.0;
    for (int64_t k = 0; k < count; ++k) {
      const double distance = std::fabs((static_cast<double>(k + first) - centre + 0.5) * narrowing);
      const double w = distance < 1.0 ? 1.0 - distance : 0.0;
      exact[static_cast<size_t>(k)] = w;
      sum += w;
    }
    int32_t* weights = p.weights.data() + i * p.size;
    for (int64_t k = 0; k < count; ++k) {
      const double w = sum != 0.0 ? exact[static_cast<size_t>(k)] / sum : exact[static_cast<size_t>(k)];
      weights[k] = static_cast<int32_t>(0.5 + w * static_cast<double>(1 << PilWeights::kBits));
    }
    p.first[static_cast<size_t>(i)] = first;
    p.count[static_cast<size_t>(i)] = count;
  }
  return p;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> PilWeights::kBits, 0, 255)); }

// out[y, x] = sum over k of weights * in[y, first + k], rows [begin, end) of `in`.
void pil_horizontal(const ImageView& in, int64_t begin, int64_t end, const PilWeights& p, uint8_t* out) {
  constexpr int32_t kHalf = 1 << (PilWeights::kBits - 1);
  const auto outputs = static_cast<int64_t>(p.first.size());
  for (int64_t y = begin; y < end; ++y) {
    for (int64_t x = 0; x < outputs; ++x, out += 3) {
      const uint8_t* s = in.pixels + y * in.row_bytes + p.first[static_cast<size_t>(x)] * 3;
      const int32_t* w = p.weights.data() + x * p.size;
      int32_t r = kHalf, g = kHalf, b = kHalf;
      for (int64_t k = 0; k < p.count[static_cast<size_t>(x)]; ++k) {
        r += s[3 * k] * w[k];
        g += s[3 * k + 1] * w[k];
        b += s[3 * k + 2] * w[k];
      }
      out[0] = rounded(r);
      out[1] = rounded(g);
      out[2] = rounded(b);
    }
  }
}

// out[y, x] = sum over k of weights * in[first + k, x], columns [begin, end) of `in`.
void pil_vertical(const ImageView& in, int64_t begin, int64_t end, const PilWeights& p, uint8_t* out) {
  const int64_t bytes = (end - begin) * 3;
  std::vector<int32_t> sums;
  for (size_t y = 0; y < p.first.size(); ++y, out += bytes) {
    sums.assign(static_cast<size_t>(bytes), 1 << (PilWeights::kBits - 1));
    const int32_t* w = p.weights.data() + static_cast<int64_t>(y) * p.size;
    for (int64_t k = 0; k < p.count[y]; ++k) {
      const uint8_t* s = in.pixels + (p.first[y] + k) * in.row_bytes + begin * 3;
      for (int64_t i = 0; i < bytes; ++i) sums[static_cast<size_t>(i)] += s[i] * w[k];
    }
    for (int64_t i = 0; i < bytes; ++i) out[i] = rounded(sums[static_cast<size_t>(i)]);
  }
}

}  // namespace

ImageView ImageView::crop(int64_t y, int64_t x, int64_t h, int64_t w) const {
  DETENT_CHECK(y >= 0 && x >= 0 && h > 0 && w > 0 && y + h <= height && x + w <= width, "crop: ", h, "x", w, " at ", y, ",", x, " is not inside ", height, "x", width);
  ImageView v = *this;
  v.pixels += y * row_bytes + x * 3;
  v.height = h;
  v.width = w;
  return v;
}

void resize_tf1_bilinear(const ImageView& in, int64_t height, int64_t width, const Window& window, float* out) {
  check("resize (TensorFlow 1 bilinear)", in, height, width, window);
  const std::vector<Tap> ys = tf1_taps(in.height, height, window.y, window.height);
  const std::vector<Tap> xs = tf1_taps(in.width, width, window.x, window.width);
  for (const Tap& y : ys) {
    const uint8_t* top_row = in.pixels + y.low * in.row_bytes;
    const uint8_t* bottom_row = in.pixels + y.high * in.row_bytes;
    for (const Tap& x : xs) {
      for (int64_t c = 0; c < 3; ++c) {
        const float top_left = top_row[x.low * 3 + c], top_right = top_row[x.high * 3 + c];
        const float bottom_left = bottom_row[x.low * 3 + c], bottom_right = bottom_row[x.high * 3 + c];
        const float top = top_left + (top_right - top_left) * x.fraction;
        const float bottom = bottom_left + (bottom_right - bottom_left) * x.fraction;
        *out++ = top + (bottom - top) * y.fraction;
      }
    }
  }
}

void resize_pil_bilinear(const ImageView& in, int64_t height, int64_t width, const Window& window, uint8_t* out, std::vector<uint8_t>& scratch) {
  check("resize (Pillow bilinear)", in, height, width, window);
  // A pass that would keep the size is left out, and the vertical one comes first when only it shrinks (as in Pillow 13).
  const bool horizontal = width != in.width, vertical = height != in.height;
  const bool vertical_first = vertical && width > in.width && height < in.height;
  PilWeights rows = pil_weights(in.height, height, window.y, window.height);
  PilWeights columns = pil_weights(in.width, width, window.x, window.width);
  const auto resized_to = [&](int64_t h, int64_t w) {
    scratch.resize(static_cast<size_t>(h * w * 3));
    ImageView v;
    v.pixels = scratch.data();
    v.height = h;
    v.width = w;
    v.row_bytes = w * 3;
    return v;
  };
  if (horizontal && vertical_first) {
    const int64_t first = columns.first.front(), last = columns.first.back() + columns.count.back();
    const ImageView middle = resized_to(window.height, last - first);
    pil_vertical(in, first, last, rows, scratch.data());
    for (int64_t& x : columns.first) x -= first;
    pil_horizontal(middle, 0, window.height, columns, out);
  } else if (horizontal && vertical) {
    const int64_t first = rows.first.front(), last = rows.first.back() + rows.count.back();
    const ImageView middle = resized_to(last - first, window.width);
    pil_horizontal(in, first, last, columns, scratch.data());
    for (int64_t& y : rows.first) y -= first;
    pil_vertical(middle, 0, window.width, rows, out);
  } else if (horizontal) {
    pil_horizontal(in, window.y, window.y + window.height, columns, out);
  } else if (vertical) {
    pil_vertical(in, window.x, window.x + window.width, rows, out);
  } else {
    const auto bytes = static_cast<size_t>(window.width * 3);
    for (int64_t y = 0; y < window.height; ++y) std::memcpy(out + static_cast<size_t>(y) * bytes, in.pixels + (window.y + y) * in.row_bytes + window.x * 3, bytes);
  }
}

}  // namespace detent::io
