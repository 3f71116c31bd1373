// A CUDA module without a GPU, for tests of everything above the kernels: device memory is a part of the host's that may not be touched but inside a kernel or
// a copy (a host access faults), kernels are the CUDA kernels' bodies run on the host, a recording is a list of calls made later, and a kernel that is given a
// pointer to ordinary host memory reports it.
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <type_traits>
#include <vector>

#include "detent/core/device_module.h"

namespace detent::cuda_host {
const Kernels& table();
void set_precision(Precision);
Precision precision();
}

namespace {

using namespace detent;

constexpr size_t kArena = size_t{1} << 30, kPage = 4096;
constexpr int kDevices = 2;

char* arena() {
  static char* p = static_cast<char*>(mmap(nullptr, kArena, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return p;
}

struct State {
  size_t used = 0;
  std::multimap<size_t, void*> free;
  std::map<void*, size_t> size;
  int open_sections = 0;
  bool recording = false, invalid = false;
  std::vector<std::function<void()>> recorded;
  char failure[200] = {};
};
State g;

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Device memory can be reached while one of these exists.
struct Section {
  Section() {
    if (g.open_sections++ == 0) mprotect(arena(), pages(g.used + kPage), PROT_READ | PROT_WRITE);
  }
  ~Section() {
    if (--g.open_sections == 0) mprotect(arena(), pages(g.used + kPage), PROT_NONE);
  }
};

void note(const char* format, const char* what) {
  if (g.failure[0] != 0) return;
  std::string text(format);
  text.replace(text.find("%s"), 2, what);
  g.failure[text.copy(g.failure, sizeof g.failure - 1)] = 0;
}

const char* report() {
  static thread_local char text[200];
  if (g.failure[0] == 0) return nullptr;
  std::memcpy(text, g.failure, sizeof text);
  g.failure[0] = 0;
  return text;
}

const char* refuse_while_recording(const char* what) {
  if (g.recording) {
    g.invalid = true;
    note("%s: operation not permitted when stream is capturing", what);
  }
  return report();
}

// ---- what a kernel is given: the pointers of each argument --------------------------------------------------------------------------------------------

bool on_host(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers) {
    if (p && (p < arena() || p >= arena() + kArena)) return true;
  }
  return false;
}
bool on_host(const Epilogue& e) { return on_host({e.scale, e.bias, e.addend, e.y, e.codes, e.residual, e.resident}); }
bool on_host(const ConvInput& i) { return on_host({i.x, i.codes, i.resident}); }
bool on_host(const Conv2dArgs& a) { return on_host(a.input) || on_host(a.epilogue) || on_host({a.w, a.mean, a.var}); }
bool on_host(const Conv2dBackwardDataArgs& a) { return on_host({a.dy, a.w, a.dx}); }
bool on_host(const Conv2dBackwardFilterArgs& a) { return on_host(a.input) || on_host({a.dy, a.dw, a.dbias}); }
bool on_host(const GemmArgs& a) { return on_host({a.a, a.b, a.y}); }
bool on_host(const PointwiseArgs& a) { return on_host({a.x, a.y, a.dy, a.out}); }
bool on_host(const BinaryArgs& a) { return on_host({a.a, a.b, a.y}); }
bool on_host(const StridedCopyArgs& a) { return on_host({a.a, a.y}); }
bool on_host(const ReduceSumArgs& a) { return on_host({a.a, a.y}); }
bool on_host(const PoolArgs& a) { return on_host({a.x, a.y, a.index}); }
bool on_host(const PoolBackwardArgs& a) { return on_host({a.dy, a.dx, a.index}); }
bool on_host(const AverageCodesArgs& a) { return on_host(a.epilogue) || on_host({a.x, a.resident}); }
bool on_host(const BatchNormStatsArgs& a) { return on_host({a.x, a.mean, a.var}); }
bool on_host(const BatchNormArgs& a) { return on_host({a.x, a.mean, a.var, a.gamma, a.beta, a.y}); }
bool on_host(const BatchNormBackwardArgs& a) { return on_host({a.x, a.dy, a.mean, a.var, a.gamma, a.beta, a.dx, a.dgamma, a.dbeta}); }
bool on_host(const FakeQuantArgs& a) { return on_host({a.x, a.grids, a.y, a.codes}); }
bool on_host(const DequantizeArgs& a) { return on_host({a.codes, a.resident, a.y}); }
bool on_host(const FakeQuantBackwardArgs& a) { return on_host({a.x, a.dy, a.grids, a.dx, a.scale_sum, a.clip_sum}); }
bool on_host(const AddArgs& a) { return on_host(a.a) || on_host(a.b) || on_host(a.epilogue); }
bool on_host(const QuantizedBackwardArgs& a) { return on_host({a.codes, a.residual, a.resident, a.dy, a.dx, a.dbias, a.scale_sum, a.clip_sum}); }
bool on_host(const RangeGradsArgs& a) { return on_host({a.scale_sum, a.clip_sum, a.min, a.max, a.dmin, a.dmax}); }
bool on_host(const RoundBiasArgs& a) { return on_host({a.b, a.resident, a.grids, a.y}); }
bool on_host(const MinMaxArgs& a) { return on_host({a.x, a.min, a.max, a.nan}); }
bool on_host(const HistogramArgs& a) { return on_host({a.x, a.counts}); }
bool on_host(const ResizeArgs& a) { return on_host({a.x, a.y}); }
bool on_host(const SoftmaxArgs& a) { return on_host({a.x, a.dy, a.y}); }
bool on_host(const CrossEntropyArgs& a) { return on_host({a.logits, a.labels, a.target, a.loss, a.dlogits}); }
bool on_host(const SgdTensor& t) { return on_host({t.w, t.g, t.momentum, t.average}); }
bool on_host(const AdamTensor& t) { return on_host({t.w, t.g, t.m, t.v, t.average}); }
bool on_host(const float* p) { return on_host({p}); }
bool on_host(float) { return false; }
bool on_host(int64_t) { return false; }
bool on_host(int64_t*) { return false; }           // counts, which are the host's
bool on_host(const FloatSpan*) { return false; }  // so is the list of spans

// Grids that lie on the device are given by value too: what is recorded finds another one there, so that a kernel that reads it does so in vain.
void spoil(Grid& g, const Grid* resident) {
  if (resident) g = {.scale = 1e4f * g.scale, .zero_point = g.qmin + g.qmax - g.zero_point, .qmin = g.qmin, .qmax = g.qmax};
}
void spoil(Epilogue& e) { spoil(e.grid, e.resident); }
void spoil(ConvInput& i) { spoil(i.grid, i.resident); }
void spoil(Conv2dArgs& a) { spoil(a.input), spoil(a.epilogue); }
void spoil(Conv2dBackwardFilterArgs& a) { spoil(a.input); }
void spoil(AverageCodesArgs& a) { spoil(a.from, a.resident), spoil(a.epilogue); }
void spoil(DequantizeArgs& a) { spoil(a.grid, a.resident); }
void spoil(AddArgs& a) { spoil(a.a), spoil(a.b), spoil(a.epilogue); }
void spoil(QuantizedBackwardArgs& a) { spoil(a.grid, a.resident); }
void spoil(RoundBiasArgs& a) { spoil(a.input, a.resident); }
template <class T>
void spoil(T&) {}

const Kernels& bodies() { return cuda_host::table(); }

template <class T>
T spoiled(T args) {
  spoil(args);
  return args;
}

template <auto Member>
struct Wrap;
template <class... A, void (*Kernels::*Member)(A...)>
struct Wrap<Member> {
  static constexpr bool kReadsHost = (std::is_same_v<A, const FloatSpan*> || ...);  // count_nonfinite, gather: their list is gone when a recording runs
  static void call(A... args) {
    if ((on_host(args) || ...)) note("%s: a kernel was given a pointer to host memory", __PRETTY_FUNCTION__);
    if (g.recording) {
      if (kReadsHost) g.invalid = true;
      g.recorded.push_back([... args = spoiled(std::remove_cvref_t<A>(args))] { (bodies().*Member)(args...); });
      return;
    }
    const Section section;
    (bodies().*Member)(args...);
  }
};
// The list itself is the host's; what its tensors point to is not.
template <class Args, void (*Kernels::*Member)(const Args&)>
void step(const Args& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    if (on_host(args.tensors[i])) note("%s: a tensor of the optimizer is in host memory", __PRETTY_FUNCTION__);
  }
  if (g.recording) g.invalid = true;
  const Section section;
  (bodies().*Member)(args);
}

const Kernels& kernels() {
  static const Kernels k = [] {
    Kernels t = {};
    t.name = "cuda on the host";
#define DETENT_WRAP(name) t.name = Wrap<&Kernels::name>::call;
    DETENT_WRAP(fill) DETENT_WRAP(accumulate) DETENT_WRAP(scale) DETENT_WRAP(count_nonfinite) DETENT_WRAP(gather) DETENT_WRAP(conv2d) DETENT_WRAP(conv2d_backward_data)
    DETENT_WRAP(conv2d_backward_filter) DETENT_WRAP(gemm) DETENT_WRAP(pointwise) DETENT_WRAP(pointwise_backward) DETENT_WRAP(binary) DETENT_WRAP(strided_copy)
    DETENT_WRAP(reduce_sum) DETENT_WRAP(max_pool) DETENT_WRAP(max_pool_backward) DETENT_WRAP(average_pool) DETENT_WRAP(average_pool_backward) DETENT_WRAP(average_codes)
    DETENT_WRAP(batch_norm_stats) DETENT_WRAP(batch_norm) DETENT_WRAP(batch_norm_backward) DETENT_WRAP(fake_quant) DETENT_WRAP(dequantize)
    DETENT_WRAP(fake_quant_backward) DETENT_WRAP(add) DETENT_WRAP(quantized_backward) DETENT_WRAP(range_grads) DETENT_WRAP(round_bias) DETENT_WRAP(min_max) DETENT_WRAP(histogram_acc)
    DETENT_WRAP(resize) DETENT_WRAP(resize_backward) DETENT_WRAP(softmax) DETENT_WRAP(softmax_backward) DETENT_WRAP(cross_entropy)
#undef DETENT_WRAP
    t.sgd_step = step<SgdArgs, &Kernels::sgd_step>;
    t.adam_step = step<AdamArgs, &Kernels::adam_step>;
    return t;
  }();
  return k;
}

void* acquire(int, size_t bytes) {
  const size_t size = pages(bytes);
  const auto found = g.free.find(size);
  if (found != g.free.end()) {
    void* p = found->second;
    g.free.erase(found);
    return p;
  }
  if (g.used + size + kPage > kArena) return nullptr;
  void* p = arena() + g.used;
  g.used += size;
  g.size[p] = size;
  return p;
}

// A recorded copy reads its source when it runs, as a copy within the device does; one from the host would read what is no longer there.
const char* copy(void* dst, const void* src, size_t bytes, bool from_host) {
  if (g.recording) {
    if (from_host && bytes > 4096) return refuse_while_recording("copy");
    std::vector<char> value;
    if (from_host) value.assign(static_cast<const char*>(src), static_cast<const char*>(src) + bytes);
    g.recorded.push_back([=] { std::memcpy(dst, from_host ? value.data() : src, bytes); });
    return report();
  }
  const Section section;
  std::memcpy(dst, src, bytes);
  return report();
}

}  // namespace

extern "C" const detent::DeviceModule* detent_cuda_module() {
  static const DeviceModule module = {
      .version = kDeviceModuleVersion,
      .kernels_bytes = sizeof(Kernels),
      .count =
          [](int* n) {
            *n = kDevices;
            return report();
          },
      .open = [](int, const ModuleHost&) { return report(); },
      .describe = [](int) { return "the CUDA kernels' bodies on the host"; },
      .make_current = [](int) {},
      .acquire = acquire,
      .release = [](int, void* p) { g.free.emplace(g.size.at(p), p); },
      .memory =
          [](int, size_t* free, size_t* total) {
            *free = kArena - g.used;
            *total = kArena;
          },
      .acquire_pinned = [](size_t bytes) { return std::malloc(bytes); },
      .release_pinned = [](void* p) { std::free(p); },
      .to_device = [](int, void* dst, const void* src, size_t bytes) { return copy(dst, src, bytes, true); },
      .to_host = [](int, void* dst, const void* src, size_t bytes) -> const char* {
        if (const char* message = refuse_while_recording("copy to the host")) return message;
        return copy(dst, src, bytes, false);
      },
      .within = [](int, void* dst, const void* src, size_t bytes) { return copy(dst, src, bytes, false); },
      .zero = [](int, void* dst, size_t bytes) -> const char* {
        if (g.recording) {
          g.recorded.push_back([=] { std::memset(dst, 0, bytes); });
          return nullptr;
        }
        const Section section;
        std::memset(dst, 0, bytes);
        return report();
      },
      .synchronize = [](int) { return refuse_while_recording("synchronize"); },
      .start_upload = [](int, void* dst, const void* src, size_t bytes) { return copy(dst, src, bytes, true); },
      .finish_upload = [](int) { return report(); },
      .wait_for_upload = [](int) {},
      .begin_capture = [](int) -> const char* {
        g.recording = true;
        g.invalid = false;
        g.recorded.clear();
        return report();
      },
      .end_capture = [](int, void** graph) -> const char* {
        g.recording = false;
        *graph = nullptr;
        if (g.invalid) return "the recording was invalidated";
        *graph = new std::vector<std::function<void()>>(std::move(g.recorded));
        return report();
      },
      .launch_graph = [](int, void* graph) -> const char* {
        const Section section;
        for (const auto& call : *static_cast<std::vector<std::function<void()>>*>(graph)) call();
        return report();
      },
      .destroy_graph = [](void* graph) { delete static_cast<std::vector<std::function<void()>>*>(graph); },
      .kernels = &kernels(),
      .set_precision = cuda_host::set_precision,
      .precision = cuda_host::precision,
  };
  return &module;
}
