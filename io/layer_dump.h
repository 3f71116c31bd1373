// What every value of a network is for given images, on disk: to compare the simulation with another runtime layer by layer (AIMET's LayerOutputUtil).
// DIR/layers.json lists the values in execution order: name, producing operator, file, shape, element type, and the grid where there is one; the files hold plain
// little-endian elements in the layout of the ONNX export ([n,c,h,w]): codes for values on a grid, f32 for the others. Not thread-safe.
#pragma once

#include <memory>
#include <string>

#include "detent/nn/graph.h"

namespace detent::io {

class LayerDump {
 public:
  struct Options {
    std::string folder;
    int64_t layer_images = 32;  ///< images that all layers are written for; inputs (as floats) and scores are written for every image
  };
  /// Listens to the Graph (Graph::set_tap) until finish() or destruction.
  LayerDump(nn::Graph& graph, const Options& options);
  ~LayerDump();
  LayerDump(const LayerDump&) = delete;
  LayerDump& operator=(const LayerDump&) = delete;

  /// Runs a batch in evaluation mode and writes its values.
  void add(const Tensor& images);
  /// Closes the files and writes layers.json.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detent::io
