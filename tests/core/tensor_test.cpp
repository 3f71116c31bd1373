// Tensor: stamps.
#include <doctest/doctest.h>

#include <utility>

#include "detent/core/tensor.h"

using namespace detent;

TEST_CASE("a stamp tells whether anybody may have written to a tensor") {
  Tensor t = Tensor::zeros({4, 2});
  Tensor other = t, row = t.rows(1, 2), flat = t.reshape({8});
  TensorStamp stamp = t.stamp();
  const auto written = [&](auto&& action) {
    action();
    const bool changed = !(t.stamp() == stamp);
    stamp = t.stamp();
    return changed;
  };
  CHECK_FALSE(written([&] {
    std::as_const(t).data<float>();
    t.to_vector<float>();
    t.clone();
    Tensor::zeros({4, 2}).copy_from(t);
  }));
  CHECK(written([&] { t.data<float>()[1] = 1.0f; }));
  CHECK(written([&] { other.raw(); }));
  CHECK(written([&] { row.fill(2.0f); }));
  CHECK(written([&] { flat.zero(); }));
  CHECK(written([&] { t.copy_from(Tensor::full({4, 2}, 3.0f)); }));
  CHECK(other.stamp() == stamp);

  // Another buffer is another tensor, wherever it lies and however often it was written.
  for (int i = 0; i < 100; ++i) {
    t = Tensor();
    other = row = flat = t;
    CHECK(written([&] { t = Tensor::zeros({4, 2}); }));
  }
  CHECK(Tensor().stamp() == TensorStamp());
  CHECK_FALSE(t.stamp() == TensorStamp());
}
