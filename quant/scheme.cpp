#include "detent/quant/scheme.h"

#include <iterator>
#include <vector>

#include "detent/core/error.h"

namespace detent::quant {
namespace {

struct Spelling {
  std::string_view word;
  Scheme scheme;
};

// The first spelling of a scheme is to_string's.
constexpr Spelling kSpellings[] = {
    {"range-learning-tf", Scheme::range_learning_tf},
    {"training-range-learning-with-tf-init", Scheme::range_learning_tf},
    {"range-learning-tf-enhanced", Scheme::range_learning_tf_enhanced},
    {"training-range-learning-with-tf-enhanced-init", Scheme::range_learning_tf_enhanced},
    {"range-learning-percentile", Scheme::range_learning_percentile},
    {"training-range-learning-with-percentile-init", Scheme::range_learning_percentile},
    {"range-learning-mse", Scheme::range_learning_mse},
    {"training-range-learning-with-mse-init", Scheme::range_learning_mse},
    {"range-learning-moving-average", Scheme::range_learning_moving_average},
    {"training-range-learning-with-moving-average-init", Scheme::range_learning_moving_average},
    {"range-learning-entropy", Scheme::range_learning_entropy},
    {"training-range-learning-with-entropy-init", Scheme::range_learning_entropy},
    {"tf", Scheme::tf},
    {"min-max", Scheme::tf},
    {"post-training-tf", Scheme::tf},
    {"tf-enhanced", Scheme::tf_enhanced},
    {"post-training-tf-enhanced", Scheme::tf_enhanced},
    {"percentile", Scheme::percentile},
    {"post-training-percentile", Scheme::percentile},
    {"mse", Scheme::mse},
    {"post-training-mse", Scheme::mse},
    {"entropy", Scheme::entropy},
    {"post-training-entropy", Scheme::entropy},
    {"moving-average", Scheme::moving_average},
    {"post-training-moving-average", Scheme::moving_average},
};

}  // namespace

EstimatorKind estimator_of(Scheme s) {
  switch (s) {
    case Scheme::range_learning_tf:
    case Scheme::tf:
      return EstimatorKind::min_max;
    case Scheme::range_learning_tf_enhanced:
    case Scheme::tf_enhanced:
      return EstimatorKind::tf_enhanced;
    case Scheme::range_learning_percentile:
    case Scheme::percentile:
      return EstimatorKind::percentile;
    case Scheme::range_learning_mse:
    case Scheme::mse:
      return EstimatorKind::mse;
    case Scheme::range_learning_moving_average:
    case Scheme::moving_average:
      return EstimatorKind::moving_average;
    case Scheme::range_learning_entropy:
    case Scheme::entropy:
      return EstimatorKind::entropy;
  }
  return EstimatorKind::min_max;
}

Scheme parse_scheme(std::string_view word) {
  std::string dashed(word.substr(0, 256));
  for (char& c : dashed) {
    if (c == '_') c = '-';
  }
  std::vector<std::string_view> names;
  for (const Spelling& s : kSpellings) {
    if (s.word == dashed) return s.scheme;
    names.push_back(s.word);
  }
  fail("quantization scheme '", std::string_view(word).substr(0, 64), "' is unknown", nearest_name(dashed, names.data(), names.size()),
       "; choose tf, tf-enhanced, percentile, mse, moving-average or entropy, or range-learning- in front of one of them");
}

std::string_view to_string(NumberFormat f) {
  constexpr std::string_view names[] = {"int", "float16", "bfloat16"};
  return names[static_cast<int>(f)];
}

NumberFormat parse_number_format(std::string_view word) {
  constexpr std::string_view names[] = {"int", "float16", "bfloat16", "float"};
  for (size_t i = 0; i < std::size(names); ++i) {
    if (word == names[i]) return i == 3 ? NumberFormat::float16 : static_cast<NumberFormat>(i);
  }
  fail("number format '", word.substr(0, 64), "' is unknown", nearest_name(word, names, std::size(names)), "; choose int, float16 or bfloat16");
}

std::string_view to_string(Scheme s) {
  for (const Spelling& k : kSpellings) {
    if (k.scheme == s) return k.word;
  }
  return "?";
}

std::string_view aimet_name(Scheme s) {
  switch (s) {
    case Scheme::range_learning_tf:
      return "training_range_learning_with_tf_init";
    case Scheme::range_learning_tf_enhanced:
      return "training_range_learning_with_tf_enhanced_init";
    case Scheme::range_learning_percentile:
      return "training_range_learning_with_percentile_init";
    case Scheme::range_learning_mse:
      return "training_range_learning_with_mse_init";
    case Scheme::range_learning_moving_average:
      return "training_range_learning_with_moving_average_init";
    case Scheme::range_learning_entropy:
      return "training_range_learning_with_entropy_init";
    case Scheme::tf:
      return "post_training_tf";
    case Scheme::tf_enhanced:
      return "post_training_tf_enhanced";
    case Scheme::percentile:
      return "post_training_percentile";
    case Scheme::mse:
      return "post_training_mse";
    case Scheme::moving_average:
      return "post_training_moving_average";
    case Scheme::entropy:
      return "post_training_entropy";
  }
  return "?";
}

}  // namespace detent::quant
