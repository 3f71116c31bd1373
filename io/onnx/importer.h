// The state of one ONNX import. Internal to io/onnx.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "detent/io/onnx/import.h"
#include "detent/nn/layers.h"
#include "onnx.pb.h"

namespace detent::io::onnx {

/// A tensor known at import: integers of any type, or floats.
struct Constant {
  std::string name;  ///< of the initializer behind it, or ""
  std::vector<int64_t> dims;
  bool is_float = false;
  std::vector<float> floats;
  std::vector<int64_t> ints;
  std::vector<Grid> grids;  ///< of dequantized codes: one, or one for each index of `axis`
  int axis = -1;
  int32_t type = 0;  ///< the element type in the file
  size_t size() const { return is_float ? floats.size() : ints.size(); }
};

/// A value of the Graph as the file sees it: axis i of the file is axis axes[i] of the Graph.
struct Feature {
  nn::Value value;
  std::vector<int> axes;
  Shape chw;  ///< rank 4: [n, c*h*w] in the file, but the Graph's value is the flattened [n,h,w,c] given here
  bool flat() const { return chw.rank() == 4; }
};

/// Where initializers lie, and how much may be read.
struct Source {
  std::string name, folder;
  int64_t bytes = 0;
};
Constant decode(const TensorProto& t, const Source& source);

/// The layer cannot be imported: why.
struct Unsupported : Error {
  using Error::Error;
};
template <class... Args>
[[noreturn]] void unsupported(const Args&... args) {
  throw Unsupported(text(args...));
}

class Importer {
 public:
  Importer(ModelProto& model, Source source, const OnnxImportOptions& options);
  OnnxNetwork run();

 private:
  // import.cpp
  void check_header() const;
  void read_initializers();
  void read_inputs();
  void sort_nodes();
  void import_node(const NodeProto& n);
  void read_outputs();
  std::vector<int64_t> input_dims(const ValueInfoProto& info) const;
  bool channels_last(const ValueInfoProto& info) const;

  // What a node's inputs are.
  bool is_constant(const std::string& name) const { return constants_.count(name) != 0; }
  /// Decodes an initializer at its first use.
  Constant& constant(const std::string& name);
  /// Frees what only this node reads.
  void release(const NodeProto& n);
  const Constant& constant(const NodeProto& n, int input, const char* what);
  const Constant* optional_constant(const NodeProto& n, int input, const char* what);
  std::vector<int64_t> int64_list(const NodeProto& n, int input, const char* attribute, std::vector<int64_t> fallback);
  const Feature& feature(const NodeProto& n, int input);
  bool has_input(const NodeProto& n, int i) const { return i < n.input_size() && !n.input(i).empty(); }
  void put(const std::string& name, Constant c);
  void put(const std::string& name, Feature f);
  std::vector<int64_t> dims(const Feature& f) const;
  const Shape& shape(const Feature& f) const { return net_.graph.value(f.value).shape; }
  /// The nodes that read a tensor.
  const std::vector<int>& readers(const std::string& name) const;
  bool is_graph_output(const std::string& name) const { return output_names_.count(name) != 0; }
  /// A name for a node of the Graph: the wanted one, or one derived from it.
  std::string node_name(const std::string& wanted, const std::string& own_output);
  template <class M, class... Args>
  nn::Value add(const NodeProto& n, const std::string& name, std::vector<nn::Value> inputs, Args&&... args);
  nn::Value add_module(const std::string& name, const std::string& value_name, std::unique_ptr<nn::Module> module, std::vector<nn::Value> inputs);
  /// A layer of one input and the input's layout.
  template <class M, class... Args>
  void add_like(const NodeProto& n, const Feature& x, Args&&... args);

  // import_layout.cpp
  Feature plain(const Feature& f);      ///< elements in the file's order
  Feature canonical(const Feature& f);  ///< plain, and in the layout that windows work in
  Feature with_axes(const Feature& f, const std::vector<int>& file_axes_in_order);
  std::optional<Feature> reshape_in_place(const NodeProto& n, const Feature& f, const std::vector<int64_t>& dims);
  void reshape(const NodeProto& n, const Feature& f, const std::vector<int64_t>& dims);
  void import_reshape(const NodeProto& n);
  void import_flatten(const NodeProto& n);
  void import_squeeze(const NodeProto& n);
  void import_transpose(const NodeProto& n);
  void import_slice(const NodeProto& n);
  void import_split(const NodeProto& n);
  void import_pad(const NodeProto& n);
  void import_concat(const NodeProto& n);

  // import_layers.cpp
  using Import = std::function<void(Importer&, const NodeProto&)>;
  static const std::map<std::string, Import>& layer_imports();
  bool import_layer(const NodeProto& n);
  void import_identity(const NodeProto& n);
  void import_cast(const NodeProto& n);
  void import_conv(const NodeProto& n);
  void import_batch_norm(const NodeProto& n);
  void import_gemm(const NodeProto& n);
  void import_matmul(const NodeProto& n);
  void add_dense(const NodeProto& n, Feature x, const Constant& w, bool transposed, float alpha, const Constant* bias, float beta);
  void import_clip(const NodeProto& n);
  void import_prelu(const NodeProto& n);
  void import_binary(const NodeProto& n, BinaryOp op);
  void import_constant_operand(const NodeProto& n, BinaryOp op, const Feature& x, const Constant& c, bool constant_first);
  void import_pool(const NodeProto& n);
  void import_reduce_mean(const NodeProto& n);
  void import_resize(const NodeProto& n);
  void import_softmax(const NodeProto& n);
  PoolSpec pool_spec(const NodeProto& n, const Feature& x);
  Padding2d padding(const NodeProto& n, const int64_t (&extent)[2], const int64_t (&kernel)[2], const int64_t (&stride)[2], const int64_t (&dilation)[2]) const;
  std::string weight_prefix(const NodeProto& n, const Constant& w) const;
  void name_parameter(nn::Parameter& p, const std::string& node, const Constant& c);
  void keep_grids(const Constant& c, const std::string& parameter);

  // import_constants.cpp
  bool fold(const NodeProto& n);
  static bool folds(const std::string& op);
  Constant evaluate(const NodeProto& n);

  // import_qdq.cpp
  void import_quantize(const NodeProto& n);
  void import_dequantize(const NodeProto& n);
  bool narrows_grid(const NodeProto& n);
  const Grid* grid_behind(nn::Value v) const;
  void narrow_codes(Constant& c, const std::vector<int64_t>& codes) const;
  std::vector<Grid> grids_of(const NodeProto& n, int32_t type);

  ModelProto& model_;
  Source source_;
  OnnxImportOptions options_;
  int64_t opset_ = 0;
  int64_t batch_ = 1;  ///< what the file's shapes say; the Graph's batch is free
  OnnxNetwork net_;
  struct Known {
    const TensorProto* stored = nullptr;  ///< not decoded yet
    Constant value;
  };
  std::unordered_map<std::string, Known> constants_;
  std::unordered_map<std::string, Feature> features_;
  std::unordered_map<std::string, Grid> codes_;    ///< outputs of QuantizeLinear that are no constants
  std::unordered_map<int, Grid> grids_;            ///< by value: what QuantizeLinear put it on
  std::unordered_map<std::string, Range> narrow_;  ///< outputs of a Clip that stands for a narrower grid
  std::map<std::string, std::pair<int32_t, int32_t>> narrow_parameters_;
  std::unordered_map<std::string, std::vector<int>> readers_;
  std::set<std::string> output_names_, node_names_, tensor_names_, parameter_names_;
  std::vector<int> order_;
  std::set<std::string> missing_;  ///< outputs of nodes that are not supported
  std::vector<std::string> problems_;
  int64_t folded_elements_ = 0;
};

/// Attributes with a default; Unsupported when the type differs.
int64_t attribute(const NodeProto& n, const char* name, int64_t fallback);
float attribute(const NodeProto& n, const char* name, float fallback);
std::string attribute(const NodeProto& n, const char* name, const char* fallback);
std::vector<int64_t> attribute(const NodeProto& n, const char* name, std::vector<int64_t> fallback);
const AttributeProto* find_attribute(const NodeProto& n, const char* name);

template <class M, class... Args>
nn::Value Importer::add(const NodeProto& n, const std::string& name, std::vector<nn::Value> inputs, Args&&... args) {
  return add_module(node_name(name, n.output(0)), n.output(0), std::make_unique<M>(std::forward<Args>(args)...), std::move(inputs));
}

template <class M, class... Args>
void Importer::add_like(const NodeProto& n, const Feature& x, Args&&... args) {
  put(n.output(0), Feature{add<M>(n, n.name(), {x.value}, std::forward<Args>(args)...), x.axes, x.chw});
}

}  // namespace detent::io::onnx
