#include "detent/quant/fold_to_scale.h"

namespace detent::quant {

Range scaled_range(const Range& r, double factor) { return factor < 0.0 ? Range{r.max * factor, r.min * factor} : Range{r.min * factor, r.max * factor}; }

void fold_to_scale(Tensor& weight, Tensor& bias, std::vector<Range>& ranges, const nn::NormTerms& norm) {
  const auto factor = [&](size_t i) { return norm.gamma[i] / norm.sigma[i]; };
  const size_t k = norm.sigma.size();
  DETENT_CHECK(ranges.size() == k || ranges.size() == 1, "fold to scale: ", ranges.size(), " ranges for ", k, " channels");
  if (ranges.size() == 1) {
    for (size_t i = 1; i < k; ++i) {
      DETENT_CHECK(factor(i) == factor(0), "fold to scale: one range for the whole weight cannot take factors ", factor(0), " and ", factor(i),
                   " of different channels; fold the batch norm before quantization, or quantize the weight per channel");
    }
  }
  nn::fold_backward(weight, bias, norm);
  for (size_t i = 0; i < ranges.size(); ++i) ranges[i] = scaled_range(ranges[i], factor(i));
}

}  // namespace detent::quant
