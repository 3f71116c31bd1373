// Matrix products by cuBLASLt, opened when the first one is wanted: a machine without it runs the tiles of conv_tiles.inl. Nothing here depends on timing: the
// algorithm is the first of the heuristic's that needs no sum in an order of its own (no atomics, partial sums reduced in the type of the computation), so the same
// shape on the same kind of device and library gives the same bits.
#include "detent/backends/cuda/conv.h"
#include "detent/backends/cuda/kernels.h"

#if defined(__CUDACC__) && __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#define DETENT_TEXT_OF(x) #x
#define DETENT_TEXT(x) DETENT_TEXT_OF(x)

namespace detent::cuda {
namespace {

struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  bool ready = false;
};

template <class F>
bool find(void* handle, const char* name, F& f) {
  f = reinterpret_cast<F>(dlsym(handle, name));
  return f != nullptr;
}

const Library& library() {
  static const Library l = [] {
    Library o{};
    const char* const name = "libcublasLt.so." DETENT_TEXT(CUBLAS_VER_MAJOR);  // scripts/gpu_check reads it from the module
    void* h = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!h) {  // not on the loader's path: where the toolkit was at build time
      char path[512];
      std::snprintf(path, sizeof path, "%s/%s", DETENT_CUDA_LIBRARIES, name);
      h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    o.ready = h && find(h, "cublasLtCreate", o.create) && find(h, "cublasLtMatmul", o.matmul) && find(h, "cublasLtMatmulAlgoGetHeuristic", o.heuristic) &&
              find(h, "cublasLtMatmulDescCreate", o.desc_create) && find(h, "cublasLtMatmulDescDestroy", o.desc_destroy) &&
              find(h, "cublasLtMatmulDescSetAttribute", o.desc_set) && find(h, "cublasLtMatrixLayoutCreate", o.layout_create) &&
              find(h, "cublasLtMatrixLayoutDestroy", o.layout_destroy) && find(h, "cublasLtMatmulPreferenceCreate", o.preference_create) &&
              find(h, "cublasLtMatmulPreferenceDestroy", o.preference_destroy) && find(h, "cublasLtMatmulPreferenceSetAttribute", o.preference_set);
    return o;
  }();
  return l;
}

// Products of fewer rows, such as one image's scores, wait for the other matrix in any kernel: they are not worth opening the library, half a gigabyte, for.
constexpr int64_t kFewRows = 8;
constexpr size_t kWorkspace = size_t{32} << 20;
constexpr int kMaxDevices = 64;

// A handle per device; null when there is none.
cublasLtHandle_t handle() {
  static std::mutex mutex;
  static cublasLtHandle_t handles[kMaxDevices];
  static bool asked[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= kMaxDevices) return nullptr;
  const std::lock_guard lock(mutex);
  if (!asked[device] && library().create(&handles[device]) != CUBLAS_STATUS_SUCCESS) handles[device] = nullptr;
  asked[device] = true;
  return handles[device];
}

cublasComputeType_t compute_type(Precision p) {
  switch (p) {
    case Precision::tf32: return CUBLAS_COMPUTE_32F_FAST_TF32;
    case Precision::bf16: return CUBLAS_COMPUTE_32F_FAST_16BF;
    case Precision::f32: break;
  }
  return CUBLAS_COMPUTE_32F;
}

int alignment(const void* p) {
  for (int bytes = 256; bytes > 4; bytes /= 2) {
    if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0) return bytes;
  }
  return 4;
}

// cuBLAS knows matrices by columns: the row-major y[m, n] is its [n, m], and a product is the other's with its factors exchanged.
struct Product {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  bool ok = false;

  Product(const Library& l, Precision p, const GemmArgs& g, const float* bias, const Words& words) {
    const cudaDataType factors = words.a ? CUDA_R_16BF : CUDA_R_32F, results = words.y ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t first_op = g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, second_op = g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    ok = l.desc_create(&desc, words.a ? CUBLAS_COMPUTE_32F : compute_type(p), CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
    ok = ok && l.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &first_op, sizeof first_op) == CUBLAS_STATUS_SUCCESS;
    ok = ok && l.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSB, &second_op, sizeof second_op) == CUBLAS_STATUS_SUCCESS;
    if (bias) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      ok = ok && l.desc_set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) == CUBLAS_STATUS_SUCCESS;
      ok = ok && l.desc_set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias) == CUBLAS_STATUS_SUCCESS;
    }
    const uint64_t m = static_cast<uint64_t>(g.m), n = static_cast<uint64_t>(g.n), k = static_cast<uint64_t>(g.k);
    ok = ok && l.layout_create(&first, factors, g.transpose_b ? k : n, g.transpose_b ? n : k, g.transpose_b ? g.k : g.n) == CUBLAS_STATUS_SUCCESS;
    ok = ok && l.layout_create(&second, factors, g.transpose_a ? m : k, g.transpose_a ? k : m, g.transpose_a ? g.m : g.k) == CUBLAS_STATUS_SUCCESS;
    ok = ok && l.layout_create(&result, results, n, m, g.n) == CUBLAS_STATUS_SUCCESS;
  }
  ~Product() {
    const Library& l = library();
    if (result) l.layout_destroy(result);
    if (second) l.layout_destroy(second);
    if (first) l.layout_destroy(first);
    if (desc) l.desc_destroy(desc);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
};

// Where factors and result lie, whatever their type.
struct Addresses {
  const void *a, *b;
  void* y;
  Addresses(const GemmArgs& g, const Words& w) : a(w.a), b(w.b), y(w.y) {
    if (!a) a = g.a, b = g.b;
    if (!y) y = g.y;
  }
};

bool choose(const Library& l, cublasLtHandle_t h, const Product& p, const Addresses& at, cublasLtMatmulAlgo_t* algo) {
  cublasLtMatmulPreference_t preference = nullptr;
  if (l.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return false;
  const size_t workspace = kWorkspace;
  const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const uint32_t a = static_cast<uint32_t>(alignment(at.b)), b = static_cast<uint32_t>(alignment(at.a)), y = static_cast<uint32_t>(alignment(at.y));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& v) { return l.preference_set(preference, what, &v, sizeof v) == CUBLAS_STATUS_SUCCESS; };
  bool ok = set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace) && set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes) &&
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a) && set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b) && set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y) &&
            set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y);
  cublasLtMatmulHeuristicResult_t found[1] = {};
  int count = 0;
  ok = ok && l.heuristic(h, p.desc, p.first, p.second, p.result, p.result, preference, 1, found, &count) == CUBLAS_STATUS_SUCCESS && count > 0;
  l.preference_destroy(preference);
  if (ok) *algo = found[0].algo;
  return ok;
}

using ShapeKey = std::tuple<int, int, int64_t, int64_t, int64_t, bool, bool, bool, bool, bool, int, int, int>;

}  // namespace

bool blas_gemm(Precision precision, const GemmArgs& g, const float* bias, const Words& words) {
  if (g.m < kFewRows) return false;
  const Library& l = library();
  if (!l.ready || g.m >= kTileLimit || g.n >= kTileLimit || g.k >= kTileLimit) return false;
  const cublasLtHandle_t h = handle();
  if (!h) return false;
  const Product p(l, precision, g, bias, words);
  const Addresses at(g, words);
  if (!p.ok) return false;
  // The heuristic costs more than a launch; its answer is kept per shape.
  static std::mutex mutex;
  static auto& known = *new std::map<ShapeKey, cublasLtMatmulAlgo_t>;
  int device = 0;
  cudaGetDevice(&device);
  const ShapeKey key{device, static_cast<int>(precision), g.m, g.n, g.k, g.transpose_a, g.transpose_b, bias != nullptr, words.a != nullptr, words.y != nullptr, alignment(at.a), alignment(at.b),
                     alignment(at.y)};
  cublasLtMatmulAlgo_t algo;
  {
    const std::lock_guard lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) {
      algo = found->second;
    } else if (choose(l, h, p, at, &algo)) {
      known.emplace(key, algo);
    } else {
      return false;
    }
  }
  const Scratch<unsigned char> workspace(kWorkspace);
  return l.matmul(h, p.desc, &g.alpha, at.b, p.first, at.a, p.second, &g.beta, at.y, p.result, at.y, p.result, &algo, workspace.get(), kWorkspace,
                  static_cast<cudaStream_t>(current_stream())) == CUBLAS_STATUS_SUCCESS;
}

}  // namespace detent::cuda

#else

namespace detent::DETENT_CUDA_NAMESPACE {

bool blas_gemm(Precision, const GemmArgs&, const float*, const Words&) { return false; }

}  // namespace detent::DETENT_CUDA_NAMESPACE

#endif
