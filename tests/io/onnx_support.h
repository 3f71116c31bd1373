// Helpers of the ONNX tests: running a Graph on images in the file's layout, a writer of protobuf bytes, comparisons.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "detent/autograd/ops.h"
#include "detent/core/rng.h"
#include "detent/io/onnx/export.h"
#include "detent/io/onnx/import.h"
#include "detent/nn/graph.h"

namespace detent::test {

inline Tensor random_images(const Shape& one, int64_t n, uint64_t seed) {
  Shape s = one;
  s.set(0, n);
  Rng rng(seed);
  std::vector<float> v(static_cast<size_t>(s.elements()));
  for (float& x : v) x = rng.normal();
  return Tensor::from<float>(s, v);
}

inline Tensor input_for(const nn::Graph& g, int64_t n, uint64_t seed = 3) { return random_images(g.value(g.inputs()[0]).shape, n, seed); }

inline std::vector<Tensor> outputs_of(nn::Graph& g, const Tensor& x) {
  const NoGrad no_grad;
  const Var in(x);
  std::vector<Tensor> all;
  for (const Var& v : g.forward({}, {&in, 1})) all.push_back(v.dense());
  return all;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0;
}

inline double largest_difference(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  if (x.size() != y.size()) return 1e30;
  double most = 0.0;
  for (size_t i = 0; i < x.size(); ++i) most = std::max(most, static_cast<double>(std::abs(x[i] - y[i])));
  return most;
}

// Protobuf, written by hand: another road than the library's.
inline std::string varint(uint64_t v) {
  std::string s;
  for (; v >= 128; v >>= 7) s += static_cast<char>(v | 128);
  return s + static_cast<char>(v);
}
inline std::string number(int field, int64_t v) { return varint(static_cast<uint64_t>(field) << 3) + varint(static_cast<uint64_t>(v)); }
inline std::string bytes(int field, const std::string& b) { return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(b.size()) + b; }

inline std::string onnx_node(const std::string& op, const std::string& name, const std::vector<std::string>& inputs, const std::vector<std::string>& outputs) {
  std::string n;
  for (const std::string& i : inputs) n += bytes(1, i);
  for (const std::string& o : outputs) n += bytes(2, o);
  return bytes(1, n + bytes(3, name) + bytes(4, op));
}
inline std::string onnx_value(int field, const std::string& name, const std::vector<int64_t>& dims) {
  std::string shape;
  for (const int64_t d : dims) shape += bytes(1, number(1, d));
  return bytes(field, bytes(1, name) + bytes(2, bytes(1, number(1, 1) + bytes(2, shape))));
}
inline std::string onnx_tensor(const std::string& name, const std::vector<int64_t>& dims, const std::string& rest) {
  std::string t;
  for (const int64_t d : dims) t += number(1, d);
  return bytes(5, t + number(2, 1) + bytes(8, name) + rest);
}
/// `graph`: its fields one behind the other.
inline std::string onnx_model(const std::string& graph, int64_t opset = 17) { return number(1, 8) + bytes(7, graph) + bytes(8, number(2, opset)); }

}  // namespace detent::test
