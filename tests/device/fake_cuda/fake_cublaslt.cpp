// As much of cuBLASLt as backends/cuda/blas.cpp calls, on the CUDA runtime of fake_cuda.cpp: matrices by columns, descriptors and attributes as the toolkit's header and
// manual have them. It refuses what they forbid, knows an algorithm only for the product and the alignments it was asked for, and multiplies when the stream gets to
// it. Built as libcublasLt.so.NN, which a test puts in the loader's way. Environment:
//   DETENT_FAKE_CUBLASLT_NONE    set: there is no algorithm for products whose n is odd
//   DETENT_FAKE_CUBLASLT_COUNT   a file that gets the number of products, at the end
#include <cublasLt.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

namespace {

// The runtime is in the module that opened this library.
using Enqueue = int (*)(void* stream, void (*work)(void*), void* argument);
Enqueue enqueue() {
  static const auto f = [] {
    const char* const path = std::getenv("DETENT_CUDA_MODULE");
    void* const module = path ? dlopen(path, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    return reinterpret_cast<Enqueue>(module ? dlsym(module, "fake_cuda_enqueue") : nullptr);
  }();
  return f;
}

struct Desc {
  uint32_t compute, scale;
  int32_t transpose_a, transpose_b;
  uint32_t epilogue;
  const void* bias;
};
struct Layout {
  uint32_t type;
  uint64_t rows, columns;
  int64_t pitch;
};
struct Preference {
  uint64_t workspace;
  uint32_t reductions;
  uint32_t alignment[4];  // of A, B, C, D
};
struct Algorithm {
  uint64_t key, workspace;
  uint32_t alignment[4];
};

template <class T, class Opaque>
T& in(Opaque* o) {
  static_assert(sizeof(T) <= sizeof(Opaque));
  return *reinterpret_cast<T*>(o);
}
template <class T, class Opaque>
const T& in(const Opaque* o) {
  static_assert(sizeof(T) <= sizeof(Opaque));
  return *reinterpret_cast<const T*>(o);
}

// An attribute of the size that the manual gives it, and no other.
template <class T>
cublasStatus_t take(T& to, const void* from, size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

struct Sizes {
  bool valid = false;
  uint64_t m = 0, n = 0, k = 0;
};
Sizes sizes_of(const Desc& d, const Layout& a, const Layout& b, const Layout& c, const Layout& y) {
  const bool ta = d.transpose_a == CUBLAS_OP_T, tb = d.transpose_b == CUBLAS_OP_T;
  Sizes s = {false, ta ? a.columns : a.rows, tb ? b.rows : b.columns, ta ? a.rows : a.columns};
  const bool match = (tb ? b.columns : b.rows) == s.k && y.rows == s.m && y.columns == s.n && c.rows == s.m && c.columns == s.n;
  bool layouts = true;
  for (const Layout* l : {&a, &b, &c, &y}) layouts = layouts && l->pitch >= static_cast<int64_t>(l->rows) && l->rows > 0 && l->columns > 0;
  // The manual's table: factors in bf16 for a computation in f32, with results of either type; factors in f32 with results in f32.
  const bool words = a.type == CUDA_R_16BF && d.compute == CUBLAS_COMPUTE_32F, floats = a.type == CUDA_R_32F && y.type == CUDA_R_32F;
  const bool types = a.type == b.type && c.type == y.type && (floats || (words && (y.type == CUDA_R_16BF || y.type == CUDA_R_32F)));
  s.valid = match && layouts && types && d.scale == CUDA_R_32F;
  return s;
}

uint64_t key_of(const Desc& d, const Sizes& s, const Layout& a, const Layout& y) {
  uint64_t key = 1469598103934665603u;
  for (const uint64_t v : {uint64_t{d.compute}, static_cast<uint64_t>(d.transpose_a), static_cast<uint64_t>(d.transpose_b), uint64_t{d.epilogue}, s.m, s.n, s.k, uint64_t{a.type}, uint64_t{y.type}})
    key = (key ^ v) * 1099511628211u;
  return key;
}

// A factor as the tensor core gets it. TF32 is cut off: cuBLAS need not round.
float factor(float v, uint32_t compute) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (compute == CUBLAS_COMPUTE_32F_FAST_TF32) bits &= 0xFFFFE000u;
  if (compute == CUBLAS_COMPUTE_32F_FAST_16BF && std::isfinite(v)) bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u;
  std::memcpy(&v, &bits, 4);
  return v;
}

float element(const void* p, uint64_t at, uint32_t type) {
  if (type == CUDA_R_32F) return static_cast<const float*>(p)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[at]) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

void put(void* p, uint64_t at, uint32_t type, float v) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(p)[at] = v;
    return;
  }
  v = factor(v, CUBLAS_COMPUTE_32F_FAST_16BF);
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  static_cast<uint16_t*>(p)[at] = static_cast<uint16_t>(bits >> 16);
}

struct Product {
  Desc d;
  Layout la, lb, lc, ly;
  Sizes s;
  float alpha, beta;
  const void *a, *b, *c;
  void* y;

  void run() const {
    for (uint64_t j = 0; j < s.n; ++j) {
      for (uint64_t i = 0; i < s.m; ++i) {
        double sum = 0.0;
        for (uint64_t k = 0; k < s.k; ++k) {
          const uint64_t pa = static_cast<uint64_t>(la.pitch), pb = static_cast<uint64_t>(lb.pitch);
          const float av = element(a, d.transpose_a == CUBLAS_OP_T ? k + i * pa : i + k * pa, la.type);
          const float bv = element(b, d.transpose_b == CUBLAS_OP_T ? j + k * pb : k + j * pb, lb.type);
          sum += static_cast<double>(factor(av, d.compute)) * static_cast<double>(factor(bv, d.compute));
        }
        double v = static_cast<double>(alpha) * sum;
        if (beta != 0.0f) v += static_cast<double>(beta) * static_cast<double>(element(c, i + j * static_cast<uint64_t>(lc.pitch), lc.type));
        if (d.epilogue == CUBLASLT_EPILOGUE_BIAS) v += static_cast<double>(element(d.bias, i, ly.type));
        put(y, i + j * static_cast<uint64_t>(ly.pitch), ly.type, static_cast<float>(v));
      }
    }
  }
};

int64_t g_products = 0;
struct Report {
  ~Report() {
    const char* const path = std::getenv("DETENT_FAKE_CUBLASLT_COUNT");
    if (FILE* const f = path ? std::fopen(path, "w") : nullptr) {
      std::fprintf(f, "%lld\n", static_cast<long long>(g_products));
      std::fclose(f);
    }
  }
} g_report;

bool aligned(const void* p, uint32_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (!enqueue()) return CUBLAS_STATUS_NOT_INITIALIZED;
  static int one;
  *handle = reinterpret_cast<cublasLtHandle_t>(&one);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  *desc = new cublasLtMatmulDescOpaque_t{};
  in<Desc>(*desc) = {static_cast<uint32_t>(compute), static_cast<uint32_t>(scale), CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete desc;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, const void* value, size_t bytes) {
  Desc& d = in<Desc>(desc);
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(d.transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(d.transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(d.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return take(d.bias, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t pitch) {
  *layout = new cublasLtMatrixLayoutOpaque_t{};
  in<Layout>(*layout) = {static_cast<uint32_t>(type), rows, columns, pitch};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  in<Preference>(*preference) = {0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what, const void* value, size_t bytes) {
  Preference& p = in<Preference>(preference);
  switch (what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return take(p.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return take(p.reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return take(p.alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return take(p.alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return take(p.alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return take(p.alignment[3], value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t y, cublasLtMatmulPreference_t preference, int wanted, cublasLtMatmulHeuristicResult_t results[], int* count) {
  *count = 0;
  const Sizes s = sizes_of(in<Desc>(desc), in<Layout>(a), in<Layout>(b), in<Layout>(c), in<Layout>(y));
  const Preference& p = in<Preference>(preference);
  // No sum whose order the device's timing decides.
  const uint32_t ordered = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_NONE;
  if (!s.valid || wanted < 1 || (p.reductions & ~ordered)) return CUBLAS_STATUS_INVALID_VALUE;
  if (std::getenv("DETENT_FAKE_CUBLASLT_NONE") && s.m % 2) return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  Algorithm& algorithm = in<Algorithm>(&results[0].algo);
  algorithm.key = key_of(in<Desc>(desc), s, in<Layout>(a), in<Layout>(y));
  algorithm.workspace = p.workspace;
  std::memcpy(algorithm.alignment, p.alignment, sizeof p.alignment);
  results[0].workspaceSize = p.workspace;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a, cublasLtMatrixLayout_t la, const void* b, cublasLtMatrixLayout_t lb,
                              const void* beta, const void* c, cublasLtMatrixLayout_t lc, void* y, cublasLtMatrixLayout_t ly, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t bytes, cudaStream_t stream) {
  Product p = {in<Desc>(desc),
               in<Layout>(la),
               in<Layout>(lb),
               in<Layout>(lc),
               in<Layout>(ly),
               {},
               *static_cast<const float*>(alpha),
               *static_cast<const float*>(beta),
               a,
               b,
               c,
               y};
  p.s = sizes_of(p.d, p.la, p.lb, p.lc, p.ly);
  if (!p.s.valid || !algo) return CUBLAS_STATUS_INVALID_VALUE;
  const Algorithm& algorithm = in<Algorithm>(algo);
  const bool fits = aligned(a, algorithm.alignment[0]) && aligned(b, algorithm.alignment[1]) && aligned(c, algorithm.alignment[2]) && aligned(y, algorithm.alignment[3]);
  if (algorithm.key != key_of(p.d, p.s, p.la, p.ly) || !fits || bytes < algorithm.workspace || !aligned(workspace, 16)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS && !p.d.bias) return CUBLAS_STATUS_INVALID_VALUE;
  ++g_products;
  // A graph replays it: the argument stays.
  const int e = enqueue()(
      stream, [](void* product) { static_cast<const Product*>(product)->run(); }, new Product(p));
  return e == 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
