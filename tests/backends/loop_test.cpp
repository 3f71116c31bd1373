// binary, strided_copy, reduce_sum against plain index arithmetic.
#include "kernel_support.h"

using namespace detent;
using namespace detent::test;

namespace {

LoopNest nest(std::vector<int64_t> extent, std::vector<int64_t> a, std::vector<int64_t> b, std::vector<int64_t> y) {
  LoopNest l;
  l.rank = static_cast<int>(extent.size());
  for (size_t i = 0; i < extent.size(); ++i) {
    l.extent[i] = extent[i];
    l.a_stride[i] = a[i];
    l.b_stride[i] = b.empty() ? 0 : b[i];
    l.y_stride[i] = y[i];
  }
  return l;
}

// Calls fn(a, b, y) with the element offsets of every point.
template <class Fn>
void walk(const LoopNest& l, Fn&& fn) {
  int64_t total = 1;
  for (int d = 0; d < l.rank; ++d) total *= l.extent[d];
  for (int64_t i = 0; i < total; ++i) {
    int64_t rest = i, a = 0, b = 0, y = 0;
    for (int d = l.rank; d-- > 0;) {
      const int64_t k = rest % l.extent[d];
      rest /= l.extent[d];
      a += k * l.a_stride[d];
      b += k * l.b_stride[d];
      y += k * l.y_stride[d];
    }
    fn(a, b, y);
  }
}

struct LoopCase {
  const char* name;
  LoopNest loop;
  int64_t a_elements, b_elements, y_elements;
  int64_t a_first = 0;  // for negative strides
};

std::vector<LoopCase> binary_cases() {
  std::vector<LoopCase> cases;
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{127}, int64_t{128}, int64_t{129}, int64_t{1000}, int64_t{150000}}) {
    cases.push_back({"same shape", nest({n}, {1}, {1}, {1}), n, n, n});
  }
  cases.push_back({"contiguous 4-d", nest({2, 3, 5, 7}, {105, 35, 7, 1}, {105, 35, 7, 1}, {105, 35, 7, 1}), 210, 210, 210});
  cases.push_back({"bias", nest({33, 17}, {17, 1}, {0, 1}, {17, 1}), 561, 17, 561});
  cases.push_back({"scalar right", nest({33, 17}, {17, 1}, {0, 0}, {17, 1}), 561, 1, 561});
  cases.push_back({"scalar left", nest({33, 17}, {0, 0}, {17, 1}, {17, 1}), 1, 561, 561});
  cases.push_back({"column", nest({33, 17}, {17, 1}, {1, 0}, {17, 1}), 561, 33, 561});
  cases.push_back({"squeeze-excite", nest({2, 6, 5, 4}, {120, 20, 4, 1}, {4, 0, 0, 1}, {120, 20, 4, 1}), 240, 8, 240});
  cases.push_back({"outer product", nest({40, 30}, {1, 0}, {0, 1}, {30, 1}), 40, 30, 1200});
  cases.push_back({"transposed", nest({40, 30}, {1, 40}, {30, 1}, {30, 1}), 1200, 1200, 1200});
  cases.push_back({"rank 6", nest({2, 1, 3, 2, 1, 5}, {30, 30, 10, 5, 5, 1}, {0, 0, 10, 0, 0, 1}, {30, 30, 10, 5, 5, 1}), 60, 30, 60});
  cases.push_back({"empty", nest({0, 4}, {4, 1}, {4, 1}, {4, 1}), 0, 0, 0});
  return cases;
}

}  // namespace

TEST_CASE("binary: every stride pattern and operation") {
  for (const LoopCase& c : binary_cases()) {
    for (BinaryOp op : {BinaryOp::add, BinaryOp::sub, BinaryOp::mul, BinaryOp::div}) {
      CAPTURE(c.name);
      CAPTURE(static_cast<int>(op));
      const std::vector<float> a = awkward_values(c.a_elements), b = awkward_values(c.b_elements, -2.0f, 2.0f, 4);
      const auto y = run_guarded<float>(c.y_elements, [&](float* out) { kernels().binary({.op = op, .loop = c.loop, .a = a.data(), .b = b.data(), .y = out}); });
      int64_t wrong = 0;
      walk(c.loop, [&](int64_t i, int64_t j, int64_t k) {
        const float p = a[static_cast<size_t>(i)], q = b[static_cast<size_t>(j)];
        const float want = op == BinaryOp::add ? p + q : op == BinaryOp::sub ? p - q : op == BinaryOp::mul ? p * q : p / q;
        const float got = y[static_cast<size_t>(k)];
        wrong += !(got == want || (std::isnan(got) && std::isnan(want)));
      });
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("strided_copy: slices, transposes, reversal, every element size") {
  const LoopCase cases[] = {
      {"all", nest({1000}, {1}, {}, {1}), 1000, 0, 1000},
      {"slice", nest({10, 5}, {20, 1}, {}, {5, 1}), 200, 0, 50, 3},
      {"into a larger one", nest({10, 5}, {5, 1}, {}, {9, 1}), 50, 0, 90},
      {"NHWC to NCHW", nest({2, 3, 35}, {105, 1, 3}, {}, {105, 35, 1}), 210, 0, 210},
      {"NCHW to NHWC", nest({2, 35, 64}, {2240, 1, 35}, {}, {2240, 64, 1}), 4480, 0, 4480},
      {"matrix transpose", nest({129, 131}, {1, 129}, {}, {131, 1}), 129 * 131, 0, 129 * 131},
      {"flip", nest({3, 4, 7}, {28, 7, -1}, {}, {28, 7, 1}), 84, 0, 84, 6},
      {"flip both", nest({4, 7}, {-7, -1}, {}, {7, 1}), 28, 0, 28, 27},
      {"broadcast", nest({6, 8}, {0, 1}, {}, {8, 1}), 8, 0, 48},
      {"step", nest({50}, {2}, {}, {3}), 100, 0, 150},
  };
  for (const LoopCase& c : cases) {
    for (int64_t bytes : {1, 2, 4, 8}) {
      CAPTURE(c.name);
      CAPTURE(bytes);
      std::vector<unsigned char> a(static_cast<size_t>(c.a_elements * bytes));
      for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<unsigned char>(i * 37 + i / 251);
      const auto y = run_guarded<uint64_t>((c.y_elements * bytes + 7) / 8, [&](uint64_t* out) {
        kernels().strided_copy({.loop = c.loop, .element_bytes = bytes, .a = a.data() + c.a_first * bytes, .y = out});
      });
      const unsigned char* got = reinterpret_cast<const unsigned char*>(y.data());
      std::vector<bool> written(static_cast<size_t>(c.y_elements));
      int64_t wrong = 0;
      walk(c.loop, [&](int64_t i, int64_t, int64_t k) {
        written[static_cast<size_t>(k)] = true;
        wrong += std::memcmp(got + k * bytes, a.data() + (i + c.a_first) * bytes, static_cast<size_t>(bytes)) != 0;
      });
      for (int64_t k = 0; k < c.y_elements * bytes; ++k) wrong += !written[static_cast<size_t>(k / bytes)] && got[k] != 0xA5;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("reduce_sum: which dimensions, lengths, accuracy") {
  std::vector<LoopCase> cases = {
      {"bias gradient", nest({500, 17}, {17, 1}, {}, {0, 1}), 8500, 0, 17},
      {"wide bias gradient", nest({70, 2048}, {2048, 1}, {}, {0, 1}), 70 * 2048, 0, 2048},
      {"rows", nest({17, 500}, {500, 1}, {}, {1, 0}), 8500, 0, 17},
      {"middle", nest({4, 9, 5}, {45, 5, 1}, {}, {5, 0, 1}), 180, 0, 20},
      {"ends", nest({4, 9, 5}, {45, 5, 1}, {}, {0, 1, 0}), 180, 0, 9},
      {"squeeze-excite", nest({2, 6, 5, 4}, {120, 20, 4, 1}, {}, {4, 0, 0, 1}), 240, 0, 8},
      {"nothing reduced", nest({4, 5}, {5, 1}, {}, {5, 1}), 20, 0, 20},
      {"transposed input", nest({30, 40}, {1, 30}, {}, {0, 1}), 1200, 0, 40},
      {"empty sum", nest({0, 5}, {5, 1}, {}, {0, 1}), 0, 0, 5},
  };
  for (int64_t n : {int64_t{1}, int64_t{7}, int64_t{127}, int64_t{128}, int64_t{129}, int64_t{1000}, int64_t{300001}}) {
    cases.push_back({"all", nest({n}, {1}, {}, {0}), n, 0, 1});
    cases.push_back({"all, 2 columns", nest({n, 2}, {2, 1}, {}, {0, 1}), 2 * n, 0, 2});
  }
  for (const LoopCase& c : cases) {
    CAPTURE(c.name);
    CAPTURE(c.a_elements);
    const std::vector<float> a = random_values(c.a_elements, -1.0f, 3.0f);
    const auto y = run_guarded<float>(c.y_elements, [&](float* out) { kernels().reduce_sum({.loop = c.loop, .a = a.data(), .y = out, .y_elements = c.y_elements}); });
    std::vector<double> want(static_cast<size_t>(c.y_elements));
    walk(c.loop, [&](int64_t i, int64_t, int64_t k) { want[static_cast<size_t>(k)] += static_cast<double>(a[static_cast<size_t>(i)]); });
    CHECK(first_far(y, want, 1e-6) == -1);
  }
}
