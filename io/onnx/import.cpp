#include "detent/io/onnx/import.h"

#include <google/protobuf/io/coded_stream.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <queue>

#include "detent/core/file.h"
#include "detent/io/onnx/builder.h"
#include "detent/io/onnx/exporter.h"
#include "detent/io/onnx/importer.h"

namespace detent::io {
namespace onnx {

using nn::Value;

namespace {

constexpr int64_t kOldestOpset = 11, kNewestOpset = 21;
constexpr int kMaxNodes = 20000;
constexpr int64_t kMaxFileBytes = std::numeric_limits<int32_t>::max();
constexpr int kDepthLimit = 32;
constexpr int64_t kMaxImageSize = 16384;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

ModelProto parse(std::string_view bytes) {
  DETENT_CHECK(static_cast<int64_t>(bytes.size()) <= kMaxFileBytes, bytes.size(), " bytes; an ONNX file has at most 2 GiB");
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int>(bytes.size()));
  in.SetRecursionLimit(kDepthLimit);
  ModelProto model;
  DETENT_CHECK(model.ParseFromCodedStream(&in) && in.ConsumedEntireMessage(), "it is damaged or not an ONNX model (it could not be parsed)");
  return model;
}

// Names become keys of encodings and checkpoints.
void check_name(const std::string& name) {
  constexpr size_t kLongest = 4096;
  DETENT_CHECK(name.size() <= kLongest, "a name has ", name.size(), " bytes");
  DETENT_CHECK(is_utf8(name), "a name is not UTF-8 text");
}

void check_names(const GraphProto& g) {
  for (const TensorProto& t : g.initializer()) check_name(t.name());
  for (const auto* list : {&g.input(), &g.output()}) {
    for (const ValueInfoProto& v : *list) check_name(v.name());
  }
  for (const NodeProto& n : g.node()) {
    check_name(n.name());
    check_name(n.op_type());
    check_name(n.domain());
    for (const auto* list : {&n.input(), &n.output()}) {
      for (const std::string& name : *list) check_name(name);
    }
  }
}

// A zero byte would end the whole message.
std::string described(const NodeProto& n) {
  std::string s = text("\"", (n.name().empty() && n.output_size() ? n.output(0) : n.name()).substr(0, 128), "\" (", n.op_type().substr(0, 64), ")");
  std::replace(s.begin(), s.end(), '\0', '?');
  return s;
}

}  // namespace

const AttributeProto* find_attribute(const NodeProto& n, const char* name) {
  for (const AttributeProto& a : n.attribute()) {
    if (a.name() == name) return &a;
  }
  return nullptr;
}

int64_t attribute(const NodeProto& n, const char* name, int64_t fallback) {
  const AttributeProto* a = find_attribute(n, name);
  if (a && !a->has_i()) unsupported("attribute ", name, " is no integer");
  return a ? a->i() : fallback;
}

float attribute(const NodeProto& n, const char* name, float fallback) {
  const AttributeProto* a = find_attribute(n, name);
  if (a && !a->has_f()) unsupported("attribute ", name, " is no number");
  return a ? a->f() : fallback;
}

std::string attribute(const NodeProto& n, const char* name, const char* fallback) {
  const AttributeProto* a = find_attribute(n, name);
  if (a && !a->has_s()) unsupported("attribute ", name, " is no text");
  return a ? a->s() : fallback;
}

std::vector<int64_t> attribute(const NodeProto& n, const char* name, std::vector<int64_t> fallback) {
  const AttributeProto* a = find_attribute(n, name);
  if (!a) return fallback;
  if (a->ints_size() > 64) unsupported("attribute ", name, " has ", a->ints_size(), " values");
  return {a->ints().begin(), a->ints().end()};
}

Importer::Importer(ModelProto& model, Source source, const OnnxImportOptions& options) : model_(model), source_(std::move(source)), options_(options) {}

void Importer::check_header() const {
  DETENT_CHECK(model_.has_graph() && model_.graph().node_size() > 0, "it holds no network");
  DETENT_CHECK(model_.graph().node_size() <= kMaxNodes, model_.graph().node_size(), " nodes; at most ", kMaxNodes, " are read");
  DETENT_CHECK(opset_ >= kOldestOpset && opset_ <= kNewestOpset, "opset ", opset_, "; opsets ", kOldestOpset, " to ", kNewestOpset,
               " are read: convert it with onnx.version_converter");
}

void Importer::read_initializers() {
  for (const Entry& e : model_.metadata_props()) {
    if (!e.key().starts_with(kCodesKey)) continue;
    int32_t lo = 0, hi = 0;
    const char *begin = e.value().data(), *end = begin + e.value().size();
    const auto first = std::from_chars(begin, end, lo);
    if (first.ec == std::errc() && first.ptr != end && std::from_chars(first.ptr + 1, end, hi).ec == std::errc()) narrow_parameters_[e.key().substr(kCodesKey.size())] = {lo, hi};
  }
  for (const TensorProto& t : model_.graph().initializer()) {
    DETENT_CHECK(!t.name().empty(), "an initializer has no name");
    DETENT_CHECK(constants_.emplace(t.name(), Known{&t, {}}).second, "two initializers are named \"", t.name(), "\"");
    tensor_names_.insert(t.name());
  }
}

// A file whose only reader of the input turns it to channels first holds images as they are.
bool Importer::channels_last(const ValueInfoProto& info) const {
  const std::vector<int>& r = readers(info.name());
  if (r.empty()) return false;
  return std::all_of(r.begin(), r.end(), [&](int i) {
    const NodeProto& n = model_.graph().node(i);
    const AttributeProto* perm = find_attribute(n, "perm");
    return n.op_type() == "Transpose" && perm && perm->ints_size() == 4 && perm->ints(1) == 3;
  });
}

std::vector<int64_t> Importer::input_dims(const ValueInfoProto& info) const {
  const auto& type = info.type().tensor_type();
  DETENT_CHECK(type.elem_type() == kFloat, "input \"", info.name(), "\" has element type ", type.elem_type(), "; float is needed");
  DETENT_CHECK(type.has_shape() && type.shape().dim_size() >= 2 && type.shape().dim_size() <= Shape::kMaxRank, "input \"", info.name(), "\" has no shape, or not 2 to ",
               Shape::kMaxRank, " dimensions");
  const int rank = type.shape().dim_size();
  const bool last = rank == 4 && channels_last(info);
  std::vector<int64_t> d;
  for (int i = 0; i < rank; ++i) {
    int64_t v = type.shape().dim(i).dim_value();
    const bool spatial = rank == 4 && (last ? i == 1 || i == 2 : i >= 2);
    if (i == 0 && v <= 0) v = 1;
    if (v <= 0 && spatial) v = options_.image_size;
    DETENT_CHECK(v > 0, "input \"", info.name(), "\": dimension ", i, " is open", spatial ? "; give the image size" : "");
    DETENT_CHECK(v <= (spatial ? kMaxImageSize : int64_t{1} << 24), "input \"", info.name(), "\": dimension ", i, " is ", v);
    d.push_back(v);
  }
  return d;
}

void Importer::read_inputs() {
  for (const ValueInfoProto& info : model_.graph().input()) {
    if (is_constant(info.name())) continue;  // old files list initializers as inputs
    const std::vector<int64_t> d = input_dims(info);
    batch_ = d[0];
    const int rank = static_cast<int>(d.size());
    Feature f;
    f.axes = layout(rank);
    if (rank == 4 && channels_last(info)) f.axes = {0, 1, 2, 3};
    std::vector<int64_t> ours(d.size());
    for (size_t i = 0; i < d.size(); ++i) ours[static_cast<size_t>(f.axes[i])] = d[i];
    f.value = net_.graph.input(info.name(), Shape(std::span<const int64_t>(ours).subspan(1)));
    features_.emplace(info.name(), f);  // the Graph has refused a name that comes twice
  }
  DETENT_CHECK(!net_.graph.inputs().empty(), "it has no input");
}

const std::vector<int>& Importer::readers(const std::string& name) const {
  static const std::vector<int> none;
  const auto it = readers_.find(name);
  return it == readers_.end() ? none : it->second;
}

// Files should be sorted already; when they are not, the order of the file decides between nodes that are ready.
void Importer::sort_nodes() {
  const auto& nodes = model_.graph().node();
  std::unordered_map<std::string, int> producer;
  for (int i = 0; i < nodes.size(); ++i) {
    for (const std::string& o : nodes[i].output()) {
      if (o.empty()) continue;
      DETENT_CHECK(producer.emplace(o, i).second && !constants_.count(o), "two nodes or initializers are named \"", o, "\": names must be unique");
      tensor_names_.insert(o);
    }
    for (const std::string& in : nodes[i].input()) {
      if (!in.empty()) readers_[in].push_back(i);
    }
  }
  std::vector<int> waiting(static_cast<size_t>(nodes.size()), 0);
  std::priority_queue<int, std::vector<int>, std::greater<>> ready;
  for (int i = 0; i < nodes.size(); ++i) {
    for (const std::string& in : nodes[i].input()) waiting[static_cast<size_t>(i)] += producer.count(in) != 0;
    if (waiting[static_cast<size_t>(i)] == 0) ready.push(i);
  }
  while (!ready.empty()) {
    const int i = ready.top();
    ready.pop();
    order_.push_back(i);
    for (const std::string& o : nodes[i].output()) {
      if (o.empty()) continue;
      for (const int r : readers(o)) {
        if (--waiting[static_cast<size_t>(r)] == 0) ready.push(r);
      }
    }
  }
  if (static_cast<int>(order_.size()) == nodes.size()) return;
  const auto stuck = std::find_if(waiting.begin(), waiting.end(), [](int w) { return w > 0; });
  fail("the network is cyclic: node ", described(nodes[static_cast<int>(stuck - waiting.begin())]), " waits for its own output");
}

Constant& Importer::constant(const std::string& name) {
  Known& k = constants_.at(name);
  if (k.stored) {
    k.value = decode(*k.stored, source_);
    k.stored = nullptr;
  }
  return k.value;
}

void Importer::release(const NodeProto& n) {
  constexpr size_t kSmall = 4096;
  for (const std::string& in : n.input()) {
    const auto it = constants_.find(in);
    if (it == constants_.end() || it->second.stored || it->second.value.size() < kSmall || readers(in).size() != 1) continue;
    it->second.value.floats = {};
    it->second.value.ints = {};
  }
}

const Constant& Importer::constant(const NodeProto& n, int input, const char* what) {
  if (!has_input(n, input)) unsupported("it has no ", what);
  if (!is_constant(n.input(input))) unsupported("its ", what, " is computed by the network; only constants are supported");
  return constant(n.input(input));
}

const Constant* Importer::optional_constant(const NodeProto& n, int input, const char* what) { return has_input(n, input) ? &constant(n, input, what) : nullptr; }

std::vector<int64_t> Importer::int64_list(const NodeProto& n, int input, const char* name, std::vector<int64_t> fallback) {
  if (has_input(n, input)) {
    const Constant& c = constant(n, input, name);
    if (c.is_float || c.size() > 64) unsupported(name, " is not a short list of integers");
    return c.ints;
  }
  return attribute(n, name, std::move(fallback));
}

const Feature& Importer::feature(const NodeProto& n, int input) {
  if (!has_input(n, input)) unsupported("input ", input, " is missing");
  if (codes_.count(n.input(input))) unsupported("it computes on quantized codes; only QuantizeLinear - DequantizeLinear pairs are supported");
  const auto it = features_.find(n.input(input));
  if (it != features_.end()) return it->second;
  if (is_constant(n.input(input))) unsupported("input ", input, " is a constant");
  unsupported("input \"", n.input(input).substr(0, 64), "\" does not exist");
}

void Importer::put(const std::string& name, Constant c) { constants_[name] = Known{nullptr, std::move(c)}; }
void Importer::put(const std::string& name, Feature f) { features_[name] = std::move(f); }

std::vector<int64_t> Importer::dims(const Feature& f) const {
  if (f.flat()) return {batch_, f.chw.elements()};
  std::vector<int64_t> d;
  for (const int a : f.axes) d.push_back(a == 0 ? batch_ : shape(f)[a]);
  return d;
}

std::string Importer::node_name(const std::string& wanted, const std::string& own_output) {
  const std::string base = wanted.empty() ? own_output : wanted;
  std::string name = base;
  for (int i = 2; node_names_.count(name) || (name != own_output && tensor_names_.count(name)); ++i) name = text(base, "_", i);
  node_names_.insert(name);
  return name;
}

Value Importer::add_module(const std::string& name, const std::string& value_name, std::unique_ptr<nn::Module> module, std::vector<Value> inputs) {
  const Value v = net_.graph.add(name, std::move(module), std::move(inputs));
  if (net_.graph.value(v).shape.elements() == 0) unsupported("its result has no elements: ", net_.graph.value(v).shape);
  net_.graph.value(v).name = value_name;
  return v;
}

void Importer::import_node(const NodeProto& n) {
  try {
    if (!n.domain().empty() && n.domain() != "ai.onnx") unsupported("its domain ", n.domain().substr(0, 64), " is not ONNX's own");
    if (n.output_size() == 0 || n.output(0).empty()) unsupported("it has no output");
    if (!folds(n.op_type()) && !layer_imports().count(n.op_type())) unsupported("the operator is not supported");
    if (std::any_of(n.input().begin(), n.input().end(), [&](const std::string& in) { return missing_.count(in) > 0; })) {
      for (const std::string& out : n.output()) missing_.insert(out);  // the cause is listed already
      return;
    }
    if (!fold(n) && !import_layer(n)) unsupported("the operator is not supported");
    release(n);
  } catch (const Error& e) {
    for (const std::string& out : n.output()) missing_.insert(out);
    problems_.push_back(text(described(n), ": ", e.what()));
  }
}

void Importer::read_outputs() {
  for (const ValueInfoProto& info : model_.graph().output()) {
    const auto it = features_.find(info.name());
    DETENT_CHECK(it != features_.end(), "output \"", info.name(), "\" is not computed by the network");
    const Feature f = canonical(it->second);
    nn::Graph::ValueInfo& value = net_.graph.value(f.value);
    DETENT_CHECK(value.producer >= 0, "output \"", info.name(), "\" is an input");
    if (!net_.graph.is_output(f.value) && value.name != info.name()) {
      for (quant::Encoding& e : net_.encodings.activations) {
        if (e.name == value.name) e.name = info.name();
      }
      value.name = info.name();
    }
    net_.graph.output(f.value);
  }
  DETENT_CHECK(!net_.graph.outputs().empty(), "it has no output");
}

OnnxNetwork Importer::run() {
  for (const OperatorSetIdProto& o : model_.opset_import()) {
    if (o.domain().empty() || o.domain() == "ai.onnx") opset_ = o.version();
  }
  check_header();
  check_names(model_.graph());
  for (const ValueInfoProto& info : model_.graph().input()) tensor_names_.insert(info.name());
  for (const ValueInfoProto& info : model_.graph().output()) output_names_.insert(info.name());
  read_initializers();
  sort_nodes();
  read_inputs();
  for (const int i : order_) import_node(model_.graph().node(i));
  if (!problems_.empty()) {
    std::string list;
    constexpr size_t kShown = 100;
    for (size_t i = 0; i < std::min(problems_.size(), kShown); ++i) list += "\n  " + problems_[i];
    fail(problems_.size(), " nodes cannot be imported:", list, problems_.size() > kShown ? "\n  ..." : "");
  }
  read_outputs();
  return std::move(net_);
}

}  // namespace onnx

OnnxNetwork parse_onnx(std::string_view bytes, const std::string& name, const std::string& folder, const OnnxImportOptions& options) {
  try {
    onnx::ModelProto model = onnx::parse(bytes);
    return onnx::Importer(model, {name, folder, static_cast<int64_t>(bytes.size())}, options).run();
  } catch (const Error& e) {
    fail("onnx ", name, ": ", e.what());
  }
}

OnnxNetwork load_onnx(const std::string& path, const OnnxImportOptions& options) { return parse_onnx(read_file(path, onnx::kMaxFileBytes), path, onnx::folder_of(path), options); }

std::vector<NamedTensor> onnx_initializers(const std::string& path) {
  try {
    const onnx::ModelProto model = onnx::parse(read_file(path, onnx::kMaxFileBytes));
    std::vector<NamedTensor> all;
    for (const onnx::TensorProto& t : model.graph().initializer()) {
      const onnx::Constant c = onnx::decode(t, {path, onnx::folder_of(path), 0});
      if (c.is_float && c.dims.size() <= Shape::kMaxRank) all.push_back({c.name, Tensor::from<float>(Shape(std::span<const int64_t>(c.dims)), c.floats)});
    }
    return all;
  } catch (const Error& e) {
    fail("onnx ", path, ": ", e.what());
  }
}

bool is_onnx(std::string_view b) {
  // ir_version (field 1) comes first in what writers produce, then producer_name (2) or anything else that a model has.
  return b.size() >= 3 && b[0] == 0x08 && static_cast<uint8_t>(b[1]) >= 3 && static_cast<uint8_t>(b[1]) < 32 &&
         (b[2] == 0x12 || b[2] == 0x1a || b[2] == 0x22 || b[2] == 0x28 || b[2] == 0x32 || b[2] == 0x3a || b[2] == 0x42);
}

}  // namespace detent::io
