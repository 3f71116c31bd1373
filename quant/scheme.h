// The quantization schemes a user can name, what each one calibrates with, and their spellings (AIMET's, the command line's, ours). Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace detent::quant {

/// range_learning_*: calibrate, then train min and max. The others keep the calibrated activation ranges.
enum class Scheme : uint8_t {
  range_learning_tf,
  range_learning_tf_enhanced,
  range_learning_percentile,
  range_learning_mse,
  range_learning_moving_average,
  range_learning_entropy,
  tf,
  tf_enhanced,
  percentile,
  mse,
  moving_average,
  entropy,
};

/// What a quantizer simulates: an integer grid, or a value kept in a 16-bit float (no range, nothing to calibrate or learn).
enum class NumberFormat : uint8_t { integer, float16, bfloat16 };
/// "int", "float16", "bfloat16".
std::string_view to_string(NumberFormat f);
/// Accepts those and AIMET's "float" (float16). Throws Error naming the nearest.
NumberFormat parse_number_format(std::string_view word);

/// How a range is found from observed values.
enum class EstimatorKind : uint8_t { min_max, moving_average, tf_enhanced, percentile, mse, entropy };

constexpr bool learns_ranges(Scheme s) { return s <= Scheme::range_learning_entropy; }
EstimatorKind estimator_of(Scheme s);

/// Accepts "range-learning-tf", "range_learning_tf", AIMET's "training_range_learning_with_tf_init" and "post_training_tf", "min_max". Throws Error naming the nearest.
Scheme parse_scheme(std::string_view word);
/// "range-learning-tf-enhanced", as on the command line.
std::string_view to_string(Scheme s);
/// The name AIMET writes into quantizer_args.quant_scheme ("post_training_tf", "training_range_learning_with_tf_init"); ours where AIMET has none.
std::string_view aimet_name(Scheme s);

}  // namespace detent::quant
