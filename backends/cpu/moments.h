// Mean and sum of squared deviations (M2) per channel, joined from parts as Chan et al. 1983 do: no difference of large sums of squares.
#pragma once

#include <cstdint>
#include <vector>

namespace detent::cpu {

class ChannelMoments {
 public:
  explicit ChannelMoments(int64_t channels) : mean_(static_cast<size_t>(channels)), m2_(static_cast<size_t>(channels)) {}
  int64_t count() const { return count_; }

  /// Joins the moments of n > 0 more values a channel; T is float or double.
  template <class T>
  void join(int64_t n, const T* mean, const T* m2) {
    const double all = static_cast<double>(count_ + n), share = static_cast<double>(n) / all, weight = static_cast<double>(count_) * share;
    for (size_t j = 0; j < mean_.size(); ++j) {
      const double d = static_cast<double>(mean[j]) - mean_[j];
      mean_[j] += d * share;
      m2_[j] += static_cast<double>(m2[j]) + d * d * weight;
    }
    count_ += n;
  }
  void join(const ChannelMoments& other) { join(other.count_, other.mean_.data(), other.m2_.data()); }

  /// Mean and biased variance; 0 where nothing was joined.
  void statistics(float* mean, float* var) const {
    for (size_t j = 0; j < mean_.size(); ++j) {
      mean[j] = static_cast<float>(mean_[j]);
      var[j] = count_ > 0 ? static_cast<float>(m2_[j] / static_cast<double>(count_)) : 0.0f;
    }
  }

 private:
  int64_t count_ = 0;
  std::vector<double> mean_, m2_;
};

}  // namespace detent::cpu
