#include <cmath>

#include "detent/core/parallel.h"
#include "detent/nn/graph.h"
#include "detent/nn/layers.h"

namespace detent::nn {
namespace {

uint64_t name_hash(const std::string& name) {
  uint64_t h = 1469598103934665603ull;  // FNV-1a: a parameter's start depends on its name, not on its place
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  return h;
}

constexpr int64_t kChunk = 65536;  // a stream of draws each: the values do not depend on threads

// fn(rng, out, n) writes n values.
template <class Fn>
void fill(Parameter& p, uint64_t seed, const Fn& fn) {
  Tensor v(p.value.shape());
  float* out = v.data<float>();
  parallel_for(v.elements(), kChunk, [&](int64_t begin, int64_t end) {
    Rng rng(seed, name_hash(p.name) + static_cast<uint64_t>(begin / kChunk));
    fn(rng, out + begin, end - begin);
  });
  p.value.copy_from(v.to(p.value.device()));
}

bool feeds_add(const Graph& g, Value v) {
  for (const int i : g.consumers(v)) {
    if (g.nodes()[static_cast<size_t>(i)].op == "Add") return true;
  }
  return false;
}

}  // namespace

void initialize(Graph& graph, const InitOptions& options) {
  for (Graph::Node& n : graph.nodes()) {
    if (auto* conv = dynamic_cast<Conv2d*>(n.module.get())) {
      const auto& o = conv->options();
      const double fan_out = static_cast<double>(o.out * o.kernel_h * o.kernel_w) / static_cast<double>(o.spec.groups);
      const auto sd = static_cast<float>(std::sqrt(2.0 / fan_out));
      fill(conv->weight, options.seed, [sd](Rng& r, float* out, int64_t count) {
        r.normals(out, count);
        for (int64_t i = 0; i < count; ++i) out[i] *= sd;
      });
      if (conv->bias.value.defined()) conv->bias.value.zero();
    } else if (auto* dense = dynamic_cast<Dense*>(n.module.get())) {
      const auto bound = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dense->options().in)));
      fill(dense->weight, options.seed, [bound](Rng& r, float* out, int64_t count) {
        for (int64_t i = 0; i < count; ++i) out[i] = r.uniform(-bound, bound);
      });
      if (dense->bias.value.defined()) dense->bias.value.zero();
    } else if (auto* norm = dynamic_cast<BatchNorm*>(n.module.get())) {
      // The shortcut's own norm keeps its scale: only the residual branch, the one behind further convolutions, starts silent.
      const int p = graph.value(n.inputs[0]).producer;
      const std::string producer = p < 0 ? std::string() : graph.nodes()[static_cast<size_t>(p)].name;
      const bool shortcut = producer.find("downsample") != std::string::npos || producer.find("_0_conv") != std::string::npos;
      norm->weight.value.fill(options.zero_last_norm_scale && !shortcut && feeds_add(graph, n.output) ? 0.0f : 1.0f);
      norm->bias.value.zero();
      norm->running_mean.zero();
      norm->running_var.fill(1.0f);
    }
  }
}

}  // namespace detent::nn
