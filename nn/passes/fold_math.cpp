#include "detent/nn/passes/fold_math.h"

#include <cmath>

namespace detent::nn {

NormTerms norm_terms(const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& var, double eps) {
  const auto host = [](const Tensor& t, size_t n, double missing) {
    std::vector<double> v(n, missing);
    if (!t.defined()) return v;
    const std::vector<float> f = t.to_vector<float>();
    DETENT_CHECK(f.size() == n, "batch norm fold: ", f.size(), " values given for ", n, " channels");
    v.assign(f.begin(), f.end());
    return v;
  };
  const auto n = static_cast<size_t>(mean.elements());
  NormTerms t{host(gamma, n, 1.0), host(beta, n, 0.0), host(mean, n, 0.0), host(var, n, 1.0)};
  for (double& s : t.sigma) s = std::sqrt(s + eps);
  return t;
}

static std::vector<double> bias_values(const Tensor& bias, int64_t n) {
  std::vector<double> b(static_cast<size_t>(n), 0.0);
  if (bias.defined()) {
    const std::vector<float> v = bias.to_vector<float>();
    b.assign(v.begin(), v.end());
  }
  return b;
}

static Tensor to_tensor(const std::vector<double>& v, Device device) {
  const std::vector<float> f(v.begin(), v.end());
  return Tensor::from<float>({static_cast<int64_t>(f.size())}, f).to(device);
}

void fold_backward(Tensor& weight, Tensor& bias, const NormTerms& norm) {
  const auto k = static_cast<size_t>(weight.dim(0));
  DETENT_CHECK(k == norm.sigma.size(), "batch norm fold: weight ", weight.shape(), " has not ", norm.sigma.size(), " output channels");
  std::vector<float> w = weight.to_vector<float>();
  std::vector<double> b = bias_values(bias, weight.dim(0));
  const size_t row = w.size() / k;
  for (size_t i = 0; i < k; ++i) {
    const double s = fold_factor(norm, i);
    for (size_t j = 0; j < row; ++j) w[i * row + j] = static_cast<float>(static_cast<double>(w[i * row + j]) * s);
    b[i] = folded_bias(norm, i, b[i]);
  }
  weight = Tensor::from<float>(weight.shape(), w).to(weight.device());
  bias = to_tensor(b, weight.device());
}

ChannelAffine channel_affine(const Tensor& bias, const NormTerms& norm, Device device) {
  const size_t k = norm.sigma.size();
  std::vector<double> scale(k), shift = bias_values(bias, static_cast<int64_t>(k));
  for (size_t i = 0; i < k; ++i) {
    scale[i] = fold_factor(norm, i);
    shift[i] = folded_bias(norm, i, shift[i]);
  }
  return {to_tensor(scale, device), to_tensor(shift, device)};
}

void fold_forward(Tensor& weight, Tensor& bias, const NormTerms& norm) {
  const auto k = static_cast<size_t>(weight.dim(0));
  const auto c = static_cast<size_t>(weight.dim(-1));
  DETENT_CHECK(c == norm.sigma.size(), "batch norm fold: weight ", weight.shape(), " has not ", norm.sigma.size(), " input channels");
  std::vector<float> w = weight.to_vector<float>();
  std::vector<double> b = bias_values(bias, weight.dim(0));
  const size_t row = w.size() / k;
  for (size_t i = 0; i < k; ++i) {
    for (size_t j = 0; j < row; ++j) {
      float& v = w[i * row + j];
      const double s = norm.gamma[j % c] / norm.sigma[j % c];
      b[i] += static_cast<double>(v) * (norm.beta[j % c] - norm.mean[j % c] * s);
      v = static_cast<float>(static_cast<double>(v) * s);
    }
  }
  weight = Tensor::from<float>(weight.shape(), w).to(weight.device());
  bias = to_tensor(b, weight.device());
}

}  // namespace detent::nn
