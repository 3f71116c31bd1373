// Every instruction set's row kernels give the scalar twin's bits.
#include "detent/backends/cpu/coded.h"
#include "detent/backends/cpu/dense.h"
#include "detent/backends/cpu/isa.h"
#include "detent/backends/cpu/rows.h"
#include "kernel_support.h"

using namespace detent;
using namespace detent::test;
using cpu::RowGrid;
using cpu::RowKernels;

namespace {

std::vector<const RowKernels*> fast_sets() {
  std::vector<const RowKernels*> sets;
#if defined(__x86_64__)
  if (cpu::isa() >= cpu::Isa::avx2) sets.push_back(&cpu::kRowsAvx2);
  if (cpu::isa() >= cpu::Isa::avx512) sets.push_back(&cpu::kRowsAvx512);
#endif
  return sets;
}

constexpr RowGrid kGrids[] = {{0.1f, 37.0f, 0.0f, 255.0f}, {0.02f, 0.0f, -128.0f, 127.0f}, {0.03f, 7.0f, 0.0f, 15.0f}, {1e-40f, 3.0f, 0.0f, 255.0f}};
constexpr int64_t kLengths[] = {1, 7, 15, 16, 17, 31, 127, 128, 129, 1000, 4095, 4096, 4097, 20001};

// Runs fn on guarded outputs of both sets and compares all bytes.
template <class T, class Fn>
void compare(const RowKernels& fast, int64_t n, Fn&& fn) {
  Guarded<T> want(n), got(n);
  fn(cpu::kRowsScalar, want.data());
  fn(fast, got.data());
  CHECK(got.intact());
  CHECK(same_bits(want.values(), got.values()));
}

}  // namespace

TEST_CASE("row kernels: each instruction set equals the scalar twin to the bit") {
  for (const RowKernels* fast : fast_sets()) {
    for (const RowGrid& g : kGrids) {
      for (int64_t n : kLengths) {
        CAPTURE(g.scale);
        CAPTURE(n);
        std::vector<float> x = awkward_values(n, -1.3f * g.scale * 255.0f, 1.3f * g.scale * 255.0f, 4);
        for (size_t i = 0; i < x.size(); i += 3) x[i] = g.scale * (static_cast<float>(i % 300) - 120.5f);
        const std::vector<float> dy = awkward_values(n, -1.0f, 1.0f, 6), plain = random_values(n, -1.0f, 1.0f, 7);
        std::vector<uint8_t> bytes(static_cast<size_t>(n));
        for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37);
        for (bool stream : {false, true}) {
          compare<float>(*fast, n, [&](const RowKernels& k, float* y) { k.fake_quant(x.data(), g, y, n, stream); });
          compare<float>(*fast, n, [&](const RowKernels& k, float* dx) {
            double sums[2] = {};
            k.fake_quant_backward(x.data(), dy.data(), g, dx, n, sums, stream);
          });
        }
        compare<uint8_t>(*fast, n, [&](const RowKernels& k, uint8_t* q) { k.fake_quant_codes(x.data(), g, nullptr, q, n); });
        compare<float>(*fast, n, [&](const RowKernels& k, float* y) {
          std::vector<uint8_t> q(static_cast<size_t>(n));
          k.fake_quant_codes(x.data(), g, y, q.data(), n);
        });
        compare<float>(*fast, n, [&](const RowKernels& k, float* y) { k.dequantize(bytes.data(), g, y, n); });
        compare<double>(*fast, 2, [&](const RowKernels& k, double* sums) {
          sums[0] = sums[1] = 0.5;
          k.fake_quant_backward(x.data(), plain.data(), g, nullptr, n, sums, false);
        });
        compare<cpu::RowExtent>(*fast, 1, [&](const RowKernels& k, cpu::RowExtent* e) {
          *e = {kInf, -kInf, 0};
          k.extent(x.data(), n, e);
          e->min += 0.0f;
          e->max += 0.0f;
        });
        for (int rule = 0; rule < 4; ++rule) {
          const cpu::RowBins b = {-100.0f * g.scale, 0.5f * g.scale, 512, rule % 2 == 0, rule >= 2};
          compare<int32_t>(*fast, b.bins + 1, [&](const RowKernels& k, int32_t* counts) {
            std::vector<int32_t> bin(static_cast<size_t>(n + cpu::kSumLanes), -1);
            const int64_t written = k.bins(x.data(), n, b, bin.data());
            REQUIRE(written <= n);
            std::fill(counts, counts + b.bins + 1, 0);
            for (int64_t i = 0; i < written; ++i) ++counts[bin[static_cast<size_t>(i)]];
            counts[cpu::bin_of(0.0f, b)] += static_cast<int32_t>(n - written);
          });
        }
      }
    }
  }
  WARN_MESSAGE(!fast_sets().empty(), "only the scalar instruction set here: nothing to compare");
}

TEST_CASE("dense kernels: a ramp of every build is first + i * step") {
  std::vector<const cpu::DenseKernels*> sets{&cpu::kDenseScalar};
#if defined(__x86_64__)
  if (cpu::isa() >= cpu::Isa::avx2) sets.push_back(&cpu::kDenseAvx2);
  if (cpu::isa() >= cpu::Isa::avx512) sets.push_back(&cpu::kDenseAvx512);
#endif
  for (const cpu::DenseKernels* k : sets) {
    for (const int64_t step : {1, 0, -4, 256}) {
      for (const int64_t n : {0, 1, 4, 7, 8, 9, 15, 16, 17, 33, 100}) {
        CAPTURE(step);
        CAPTURE(n);
        constexpr int64_t kFirst = int64_t{5} << 33;
        Guarded<int64_t> y(n);
        k->ramp(kFirst, step, n, y.data());
        CHECK(y.intact());
        for (int64_t i = 0; i < n; ++i) {
          if (y[i] != kFirst + i * step) FAIL_CHECK("place ", i, ": ", y[i]);
        }
      }
    }
  }
}

TEST_CASE("dense kernels: each build equals the scalar one to the bit") {
  using cpu::DenseKernels;
  std::vector<const DenseKernels*> sets;
#if defined(__x86_64__)
  if (cpu::isa() >= cpu::Isa::avx2) sets.push_back(&cpu::kDenseAvx2);
  if (cpu::isa() >= cpu::Isa::avx512) sets.push_back(&cpu::kDenseAvx512);
#endif
  for (const DenseKernels* fast : sets) {
    for (int64_t c : {1, 7, 16, 31, 64, 127, 128, 129, 1000}) {
      CAPTURE(c);
      const int64_t rows = 11, n = rows * c;
      const std::vector<float> x = awkward_values(n), dy = awkward_values(n, -1.0f, 1.0f, 2), mean = random_values(c), a = random_values(c, -1.0f, 1.0f, 3), b = random_values(c, -1.0f, 1.0f, 4);
      // Sums of plain values: which of two NaNs an addition keeps is the compiler's choice.
      const std::vector<float> px = random_values(n), py = random_values(n, -1.0f, 1.0f, 5);
      const auto both = [&](int64_t size, auto&& fn) {
        Guarded<float> want(size), got(size);
        std::fill_n(want.data(), size, 0.25f);
        std::fill_n(got.data(), size, 0.25f);
        fn(cpu::kDenseScalar, want.data());
        fn(*fast, got.data());
        CHECK(got.intact());
        CHECK(same_bits(want.values(), got.values()));
      };
      both(c, [&](const DenseKernels& k, float* y) { k.add_rows(px.data(), c, rows, c, y); });
      both(c, [&](const DenseKernels& k, float* y) { k.add_squares(px.data(), rows, c, mean.data(), y); });
      both(n, [&](const DenseKernels& k, float* y) { k.normalise(x.data(), rows, c, mean.data(), a.data(), b.data(), -0.5f, 2.0f, y); });
      for (bool masked : {false, true}) {
        const cpu::NormGradient g = {px.data(), py.data(), mean.data(), a.data(), b.data(), masked, -1.0f, 1.0f};
        both(2 * c, [&](const DenseKernels& k, float* y) { k.norm_sums(g, rows, c, y, y + c); });
        both(n, [&](const DenseKernels& k, float* y) { k.norm_backward(g, rows, c, a.data(), b.data(), a.data(), y); });
      }
      both(n, [&](const DenseKernels& k, float* y) { k.mask(x.data(), dy.data(), -1.0f, 1.0f, y, n); });
      both(n, [&](const DenseKernels& k, float* y) { k.clip(x.data(), -0.0f, 2.0f, y, n); });
      both(n, [&](const DenseKernels& k, float* y) { k.clip_backward(x.data(), dy.data(), 0.0f, kInf, y, n); });
      const float* taps[] = {x.data(), x.data() + c, x.data() + 2 * c, dy.data()};
      const int32_t where[] = {5, 6, 7, 8};
      std::vector<int32_t> index(static_cast<size_t>(c)), other;
      both(c, [&](const DenseKernels& k, float* y) {
        other = index;
        index.assign(index.size(), -1);
        k.max_taps(taps, where, 4, 0, c, y, index.data());
      });
      CHECK(index == other);
      both(c, [&](const DenseKernels& k, float* y) { k.pick(py.data(), index.data(), 6, c, y); });
    }
  }
}

TEST_CASE("rows of codes: each instruction set equals the scalar twin to the bit") {
  std::vector<const cpu::CodedKernels*> sets;
#if defined(__x86_64__)
  if (cpu::isa() >= cpu::Isa::avx2) sets.push_back(&cpu::kCodedAvx2);
  if (cpu::isa() >= cpu::Isa::avx512) sets.push_back(&cpu::kCodedAvx512);
#endif
  const cpu::CodedKernels& twin = cpu::kCodedScalar;
  for (const cpu::CodedKernels* fast : sets) {
    for (int64_t n : {1, 7, 15, 16, 17, 127, 128, 129, 511, 512, 513, 4096}) {
      CAPTURE(n);
      const auto size = static_cast<size_t>(n);
      std::vector<uint8_t> a(size), b(size);
      std::vector<int8_t> residual(size);
      for (size_t i = 0; i < size; ++i) {
        a[i] = static_cast<uint8_t>(i * 37 + 5);
        b[i] = static_cast<uint8_t>(i * 91 + 1);
        residual[i] = static_cast<int8_t>(i % 5 == 0 ? kOutside : (i % 7 == 0 ? kMasked : static_cast<int>(i * 29 % 253) - 126));
      }
      const std::vector<float> dy = random_values(n, -1.0f, 1.0f, 3), x = awkward_values(n, -3.0f, 3.0f, 4);
      for (const bool in_place : {false, true}) {
        // Sums in front: lanes, then the gradient.
        const auto run = [&](const cpu::CodedKernels& k) {
          return run_guarded<float>(n + 2 * cpu::kCodedLanes, [&](float* out) {
            std::fill_n(out, 2 * cpu::kCodedLanes, 0.125f);
            float* dx = out + 2 * cpu::kCodedLanes;
            if (in_place) std::copy(dy.begin(), dy.end(), dx);
            k.backward({a.data(), residual.data(), 113, clamp_terms(-0.7f, 1.3f, {0.013f, 113, 0, 255}), in_place ? dx : dy.data(), dx}, n, !in_place, out, out + cpu::kCodedLanes);
          });
        };
        CHECK(same_bits(run(twin), run(*fast)));
      }
      for (const bool quantize : {false, true}) {
        const auto run = [&](const cpu::CodedKernels& k, uint8_t* codes, int8_t* kept) {
          return run_guarded<float>(n, [&](float* y) {
            k.add({{nullptr, a.data(), 0.03f, 100}, {x.data(), nullptr, 0.0f, 0}, -1.5f, 2.5f, quantize, false, {0.013f, 120, 0, 255}, y, quantize ? codes : nullptr, quantize ? kept : nullptr}, n);
          });
        };
        Guarded<uint8_t> c0(n), c1(n);
        Guarded<int8_t> r0(n), r1(n);
        CHECK(same_bits(run(twin, c0.data(), r0.data()), run(*fast, c1.data(), r1.data())));
        if (!quantize) continue;
        CHECK(c1.intact());
        CHECK(r1.intact());
        CHECK(same_bits(c0.values(), c1.values()));
        CHECK(same_bits(r0.values(), r1.values()));
      }
    }
  }
}
