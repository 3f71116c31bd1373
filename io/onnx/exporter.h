// The state of one ONNX export. Internal to io/onnx.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "detent/io/onnx/builder.h"
#include "detent/io/onnx/export.h"
#include "detent/nn/layers.h"
#include "detent/quant/quantizer.h"

namespace detent::io::onnx {

/// Of a rank r: axis j of the file is axis layout(r)[j] of the Graph. From rank 4 on the two spatial axes go last.
std::vector<int> layout(int rank);
/// Whether a grid uses every code of the type.
bool fills_type(const Grid& g, ElementType type);
/// A shape of the Graph as the file has it, batch included.
std::vector<int64_t> file_dims(const Shape& shape);

class Exporter {
 public:
  Exporter(nn::Graph& graph, OnnxQuantization quantization);
  std::string run();

 private:
  using Node = nn::Graph::Node;
  struct Stored {
    std::string name;
    std::vector<Grid> grids;  ///< empty: float
  };

  void mark_reachable();
  void find_grids();
  void write_node(const Node& n);
  // export_layers.cpp: one function per layer type; `out` is the name of the raw output.
  bool write_weighted(const Node& n, const std::string& out);
  bool write_pool(const Node& n, const std::string& out);
  bool write_pointwise(const Node& n, const std::string& out);
  bool write_moving(const Node& n, const std::string& out);
  void write_activation(const Node& n, const Pointwise& op, const std::string& in, const std::string& out);
  void write_constant_operand(const nn::ConstantOperand& operand, const Node& n, const std::string& out);
  void write_reshape(const Node& n, const std::string& out);
  void write_flatten(const Node& n, const std::string& out);
  void write_pad(const nn::Pad& pad, const Node& n, const std::string& out);
  void write_slice(const nn::Slice& slice, const Node& n, const std::string& out);
  NodeBuilder window(const char* op, const Node& n, const std::string& x, const PoolSpec& s, const std::string& out);
  void write_average_pool(const nn::AveragePool& pool, const Node& n, const std::string& out);
  void write_resize(const nn::Resize& resize, const Node& n, const std::string& out);

  const Shape& shape(nn::Value v) const { return graph_.value(v).shape; }
  /// The tensor that readers of a value use, in the file's own layout.
  std::string in(nn::Value v);
  /// The same without undoing a flattened value's order of elements.
  const std::string& raw_in(nn::Value v) const { return readers_[static_cast<size_t>(v.id)]; }
  std::string transposed(const std::string& x, const std::string& name, const std::vector<int>& permutation);
  std::string reshaped(const std::string& x, const std::string& name, std::vector<int64_t> dims);
  std::string scalar(const std::string& name, float value);
  std::string int64s(const std::string& name, std::span<const int64_t> values);

  /// The quantizer in a slot, when it acts.
  quant::Quantizer* acting(const std::shared_ptr<nn::Transform>& t) const;
  /// Puts the value on its grid: [Clip] - Q - DQ. Returns the name of the last tensor.
  std::string quantize(const std::string& x, const std::string& base, const std::string& result, const Grid& grid, bool on_grid_already);
  ElementType type_of(const Grid& grid, const std::string& name);
  Stored weight(nn::Parameter& p, const std::vector<int64_t>& dims, const std::vector<float>& values);
  std::string bias(nn::Parameter& p, nn::Value x, const Stored& w);
  std::string grid_scales(const std::string& base, std::span<const Grid> grids, bool per_channel);

  nn::Graph& graph_;
  bool qdq_;
  Builder b_;
  std::vector<nn::Value> outputs_;
  std::vector<bool> reachable_;                    ///< by value
  std::vector<std::optional<Grid>> grids_;         ///< by value: the grid it lies on
  std::vector<std::string> readers_;               ///< by value: the tensor that readers use
  std::map<int, Shape> flat_;                      ///< value -> [1,h,w,c] whose elements it holds in the file's order c,h,w
};

}  // namespace detent::io::onnx
