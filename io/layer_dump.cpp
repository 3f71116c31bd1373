#include "detent/io/layer_dump.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "detent/core/file.h"
#include "detent/io/onnx/exporter.h"

namespace detent::io {
namespace {

struct Column {
  std::string name, op, type;
  std::vector<int64_t> dims;  // of one image, in the file's layout
  std::optional<Grid> grid;
  std::unique_ptr<OutputFile> file;
  std::string path;
  int64_t images = 0;
};

std::string code_type(const Grid& g) {
  if (g.qmin >= 0) return g.qmax <= 255 ? "uint8" : "uint16";
  return g.qmin >= -128 && g.qmax <= 127 ? "int8" : "int16";
}

template <class T>
void write_codes(OutputFile& file, const std::vector<float>& values, const Grid& g) {
  std::vector<T> codes(values.size());
  for (size_t i = 0; i < values.size(); ++i) codes[i] = static_cast<T>(quantize(values[i], g));
  file.write(codes.data(), codes.size() * sizeof(T));
}

// Into the exported layout.
std::vector<float> file_order(const Tensor& t) {
  if (t.rank() < 4) return t.to_vector<float>();
  const NoGrad no_grad;
  return transpose(Var(t), onnx::layout(t.rank())).dense().to_vector<float>();
}

}  // namespace

struct LayerDump::State {
  State(nn::Graph& g, const Options& o) : graph(g), options(o) {}
  nn::Graph& graph;
  Options options;
  std::map<std::string, size_t> index;
  std::vector<Column> columns;
  int64_t images = 0;

  void put(const std::string& name, const std::string& op, const Tensor& t, const std::vector<Grid>* grids, int64_t rows) {
    const auto [it, fresh] = index.emplace(name, columns.size());
    if (fresh) {
      Column c;
      c.name = name;
      c.op = op;
      if (grids && grids->size() == 1) c.grid = grids->front();
      c.type = c.grid ? code_type(*c.grid) : "float32";
      const std::vector<int64_t> dims = onnx::file_dims(t.shape());
      c.dims.assign(dims.begin() + 1, dims.end());
      c.path = text(columns.size(), ".raw");
      c.file = std::make_unique<OutputFile>(join_path(options.folder, c.path));
      columns.push_back(std::move(c));
    }
    Column& c = columns[it->second];
    const std::vector<float> values = file_order(rows < t.dim(0) ? t.rows(0, rows) : t);
    c.images += std::min(rows, t.dim(0));
    if (!c.grid) return c.file->write(values.data(), values.size() * sizeof(float));
    if (c.type == "uint8") return write_codes<uint8_t>(*c.file, values, *c.grid);
    if (c.type == "int8") return write_codes<int8_t>(*c.file, values, *c.grid);
    if (c.type == "uint16") return write_codes<uint16_t>(*c.file, values, *c.grid);
    write_codes<int16_t>(*c.file, values, *c.grid);
  }

  void see(nn::Value v, const Var& before, const Var& after) {
    const nn::Graph::ValueInfo& info = graph.value(v);
    const bool input = info.producer < 0;
    if (input) put(info.name + " (float)", "", before.dense(), nullptr, before.shape()[0]);
    const int64_t left = v == graph.scores() ? after.shape()[0] : options.layer_images - images;
    if (left > 0) put(info.name, input ? "" : graph.nodes()[static_cast<size_t>(info.producer)].op, after.dense(), after.grids(), std::min(left, after.shape()[0]));
  }
};

LayerDump::LayerDump(nn::Graph& graph, const Options& options) : state_(std::make_unique<State>(graph, options)) {
  make_folders(options.folder);
  graph.set_tap([s = state_.get()](nn::Value v, const Var& before, const Var& after) { s->see(v, before, after); });
}

LayerDump::~LayerDump() {
  if (state_) state_->graph.set_tap({});
}

void LayerDump::add(const Tensor& images) {
  DETENT_CHECK(state_, "layer dump: finished already");
  const NoGrad no_grad;
  const nn::Mode mode = state_->graph.mode();
  state_->graph.set_mode(nn::Mode::evaluation);
  state_->graph(images);
  state_->graph.set_mode(mode);
  state_->images += images.dim(0);
}

void LayerDump::finish() {
  DETENT_CHECK(state_, "layer dump: finished already");
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (Column& c : state_->columns) {
    c.file->close();
    std::vector<int64_t> shape = c.dims;
    shape.insert(shape.begin(), c.images);
    nlohmann::ordered_json j = {{"name", c.name}, {"op", c.op}, {"file", c.path}, {"shape", shape}, {"type", c.type}};
    if (c.grid) {
      j["scale"] = static_cast<double>(c.grid->scale);
      j["zero_point"] = c.grid->zero_point;
      j["qmin"] = c.grid->qmin;
      j["qmax"] = c.grid->qmax;
    }
    list.push_back(std::move(j));
  }
  const nlohmann::ordered_json j = {{"format", 1}, {"scores", state_->graph.value(state_->graph.scores()).name}, {"values", std::move(list)}};
  write_file_atomically(join_path(state_->options.folder, "layers.json"), std::string_view(j.dump(1) + "\n"));
  state_->graph.set_tap({});
  state_.reset();
}

}  // namespace detent::io
