// The tensor core's matrix steps behind one shape: a warp multiplies 16 x 8 words by 8 words x 8, a word being one TF32, two bf16 or four bytes along the summed
// axis, with the fragment layout of the PTX ISA ("Matrix Fragments for mma.m16n8k8 / m16n8k16 / m16n8k32"). In words the three layouts are one:
//   a[0]: (row g, word t)  a[1]: (g + 8, t)  a[2]: (g, t + 4)  a[3]: (g + 8, t + 4);   b[0]: (word t, column g)  b[1]: (t + 4, g)
//   d[0], d[1]: (row g, columns 2t, 2t + 1)  d[2], d[3]: (g + 8, the same);            g = lane / 4, t = lane % 4.
// The host build emulates the 32 lanes from the ISA's tables of elements, written out apart from this rule.
#pragma once

#include <cstring>

#include "detent/backends/cuda/bf16.h"

namespace detent::DETENT_CUDA_NAMESPACE {

/// x rounded to TF32 (10 bits of fraction, ties away from zero), as cvt.rna.tf32.f32.
DETENT_HD uint32_t tf32_bits(float x) {
#if defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
#else
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits | ((bits & 0x7fffffu) ? 0x400000u : 0u);
  return (bits + 0x1000u) & 0xffffe000u;
#endif
}

// A policy: Stored is the element in shared memory, kPack elements make a word, word() reads one with `stride` between elements along the summed axis. kRounds:
// elements are rounded in shared memory, once, by the thread that copied them. kWordsLie: those that run along rows are words as they lie there.
struct Tf32 {
  using Stored = float;
  using Acc = float;
  static constexpr int kPack = 1;
  static constexpr bool kRounds = true, kWordsLie = true;
  static DETENT_HD float rounded(float x) {
    const uint32_t bits = tf32_bits(x);
    memcpy(&x, &bits, 4);
    return x;
  }
  static DETENT_HD uint32_t word(const float* p, int) { return *reinterpret_cast<const uint32_t*>(p); }
  static DETENT_HD void mma(float* d, const uint32_t* a, const uint32_t* b);
};

struct Bf16 {
  using Stored = float;  // rounded on the way into the registers
  using Acc = float;
  static constexpr int kPack = 2;
  static constexpr bool kRounds = false, kWordsLie = false;
  static DETENT_HD float rounded(float x) { return x; }
  static DETENT_HD uint32_t word(const float* p, int stride) { return bf16_pair(p[0], p[stride]); }
  static DETENT_HD void mma(float* d, const uint32_t* a, const uint32_t* b);
};

/// Two bf16 as they lie.
struct Bf16Words {
  using Stored = uint16_t;
  using Acc = float;
  static constexpr int kPack = 2;
  static constexpr bool kRounds = false, kWordsLie = true;
  static DETENT_HD void mma(float* d, const uint32_t* a, const uint32_t* b);
};

/// u8 activations times s8 weights into int32.
struct U8S8 {
  using Stored = uint8_t;
  using Acc = int32_t;
  static constexpr int kPack = 4;
  static constexpr bool kRounds = false, kWordsLie = true;
  static DETENT_HD uint32_t word(const uint8_t* p, int) { return *reinterpret_cast<const uint32_t*>(p); }
  static DETENT_HD void mma(int32_t* d, const uint32_t* a, const uint32_t* b);
};

/// Four matrices of 8 rows by 4 words, as fragments have them: r[i] = word (lane / 4, lane % 4) of matrix i. at(i, row) is where four words of a row lie, 16 bytes
/// aligned; all lanes of a warp come here.
template <class At>
DETENT_HD void load_matrices(uint32_t* r, int lane, At&& at) {
#if defined(__CUDA_ARCH__)
  const auto row = static_cast<unsigned>(__cvta_generic_to_shared(at(lane / 8, lane % 8)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
#else
  for (int i = 0; i < 4; ++i) memcpy(r + i, reinterpret_cast<const char*>(at(i, lane / 4)) + lane % 4 * 4, 4);
#endif
}

/// The same of words of two elements that run across rows: at(i, row) is where the first elements of eight neighbouring words lie, `row` the element of the sum.
template <class At>
DETENT_HD void load_matrices_across(uint32_t* r, int lane, At&& at) {
#if defined(__CUDA_ARCH__)
  const auto row = static_cast<unsigned>(__cvta_generic_to_shared(at(lane / 8, lane % 8)));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
#else
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) pair[e] = at(i, lane % 4 * 2 + e)[lane / 4];
    memcpy(r + i, pair, 4);
  }
#endif
}

#if defined(__CUDACC__)

DETENT_HD void Tf32::mma(float* d, const uint32_t* a, const uint32_t* b) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

DETENT_HD void Bf16::mma(float* d, const uint32_t* a, const uint32_t* b) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

DETENT_HD void Bf16Words::mma(float* d, const uint32_t* a, const uint32_t* b) { Bf16::mma(d, a, b); }

DETENT_HD void U8S8::mma(int32_t* d, const uint32_t* a, const uint32_t* b) {
#if defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#else

// What the ISA says of element i of a lane's fragments, per instruction: `a` is [16][kDepth], `b` is [kDepth][8].
template <class Mma>
struct Isa;

template <>
struct Isa<Tf32> {  // m16n8k8, .tf32
  static constexpr int kDepth = 8;
  static int a_row(int lane, int i) { return i == 0 || i == 2 ? lane >> 2 : (lane >> 2) + 8; }
  static int a_column(int lane, int i) { return i == 0 || i == 1 ? lane % 4 : lane % 4 + 4; }
  static int b_row(int lane, int i) { return i == 0 ? lane % 4 : lane % 4 + 4; }
  static double a(const uint32_t* r, int i) { return value(r[i]); }
  static double b(const uint32_t* r, int i) { return value(r[i]); }
  static double value(uint32_t bits) {
    bits &= 0xffffe000u;  // the unit reads 19 bits
    float f;
    memcpy(&f, &bits, 4);
    return static_cast<double>(f);
  }
};

template <>
struct Isa<Bf16> {  // m16n8k16, .bf16: two elements in a register, the lower index in the lower half
  static constexpr int kDepth = 16;
  static int a_row(int lane, int i) { return (i >= 0 && i < 2) || (i >= 4 && i < 6) ? lane >> 2 : (lane >> 2) + 8; }
  static int a_column(int lane, int i) { return i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8; }
  static int b_row(int lane, int i) { return i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8; }
  static double a(const uint32_t* r, int i) {
    const uint32_t bits = i % 2 ? r[i / 2] & 0xffff0000u : r[i / 2] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return static_cast<double>(f);
  }
  static double b(const uint32_t* r, int i) { return a(r, i); }
};

template <>
struct Isa<Bf16Words> : Isa<Bf16> {};

template <>
struct Isa<U8S8> {  // m16n8k32, .u8 and .s8: four elements in a register
  static constexpr int kDepth = 32;
  static int a_row(int lane, int i) { return (i >= 0 && i < 4) || (i >= 8 && i < 12) ? lane >> 2 : (lane >> 2) + 8; }
  static int a_column(int lane, int i) { return i < 8 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16; }
  static int b_row(int lane, int i) { return i < 4 ? lane % 4 * 4 + (i & 3) : lane % 4 * 4 + (i & 3) + 16; }
  static int a(const uint32_t* r, int i) { return static_cast<int>(r[i / 4] >> i % 4 * 8 & 255u); }
  static int b(const uint32_t* r, int i) { return static_cast<int8_t>(r[i / 4] >> i % 4 * 8 & 255u); }
};

/// One step of a whole warp: d[lane], a[lane], b[lane] are the lanes' registers. Sums in double (in int for bytes) and rounds once.
template <class Mma>
void emulate_mma(typename Mma::Acc* const* d, const uint32_t* const* a, const uint32_t* const* b) {
  using I = Isa<Mma>;
  using Value = decltype(I::a(nullptr, 0));
  Value am[16][I::kDepth], bm[8][I::kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4 * Mma::kPack; ++i) am[I::a_row(lane, i)][I::a_column(lane, i)] = I::a(a[lane], i);
    for (int i = 0; i < 2 * Mma::kPack; ++i) bm[lane >> 2][I::b_row(lane, i)] = I::b(b[lane], i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
      Value sum = static_cast<Value>(d[lane][i]);
      for (int k = 0; k < I::kDepth; ++k) sum += am[row][k] * bm[column][k];
      d[lane][i] = static_cast<typename Mma::Acc>(sum);
    }
  }
}

#endif

}  // namespace detent::DETENT_CUDA_NAMESPACE
