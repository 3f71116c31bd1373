// The matrix steps of a warp: 16 rows of A by 8 columns of B, eight words of 32 bits along the summed axis, from the ISA's "Matrix Fragments for mma.m16n8k8, .m16n8k16
// and .m16n8k32". A lane is (group, member), four members a group.
#include "machine.h"

namespace ptx {
namespace {

float as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

struct Tf32 {
  using Sum = double;
  using Value = float;
  static constexpr int kPerWord = 1;
  static double a(uint32_t word, int) { return static_cast<double>(as_float(word & 0xFFFFE000u)); }  // the unit reads 19 bits
  static double b(uint32_t word, int e) { return a(word, e); }
};

struct Bf16 {
  using Sum = double;
  using Value = float;
  static constexpr int kPerWord = 2;
  static double a(uint32_t word, int e) { return static_cast<double>(as_float(e == 0 ? word << 16 : word & 0xFFFF0000u)); }
  static double b(uint32_t word, int e) { return a(word, e); }
};

struct Bytes {
  using Sum = int64_t;
  using Value = int32_t;
  static constexpr int kPerWord = 4;
  static int64_t a(uint32_t word, int e) { return static_cast<int64_t>(static_cast<uint8_t>(word >> 8 * e)); }
  static int64_t b(uint32_t word, int e) { return static_cast<int64_t>(static_cast<int8_t>(word >> 8 * e)); }
};

// Operands: d 0..3, a 4..7, b 8..9, c 10..13.
template <class T>
void multiply(Warp& w, const Instruction& i, uint32_t mask) {
  if (mask != ~0u) fault(w, i, 0, "a matrix step without all lanes of the warp");
  constexpr int kDepth = 8 * T::kPerWord;
  typename T::Sum a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int r = 0; r < 4; ++r) {
      const int row = group + (r % 2 == 1 ? 8 : 0), word = member + (r / 2 == 1 ? 4 : 0);
      for (int e = 0; e < T::kPerWord; ++e) a[row][word * T::kPerWord + e] = T::a(w.at<uint32_t>(i.row[static_cast<size_t>(4 + r)])[lane], e);
    }
    for (int r = 0; r < 2; ++r) {
      for (int e = 0; e < T::kPerWord; ++e) b[(member + 4 * r) * T::kPerWord + e][group] = T::b(w.at<uint32_t>(i.row[static_cast<size_t>(8 + r)])[lane], e);
    }
  }
  typename T::Sum sums[16][8];
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) sums[row][column] = 0;
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (size_t r = 0; r < 4; ++r) {
      const int row = lane / 4 + (r >= 2 ? 8 : 0), column = lane % 4 * 2 + static_cast<int>(r % 2);
      const typename T::Value c = w.at<typename T::Value>(i.row[10 + r])[lane];
      w.at<typename T::Value>(i.row[r])[lane] = static_cast<typename T::Value>(sums[row][column] + static_cast<typename T::Sum>(c));
    }
  }
}

}  // namespace

Form matrix_form(const std::string& name) {
  const char* const operands = "wwwwwwwwwwwwww";
  if (name == "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32") return {multiply<Tf32>, operands, Kind::matrix};
  if (name == "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") return {multiply<Bf16>, operands, Kind::matrix};
  if (name == "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32") return {multiply<Bytes>, operands, Kind::matrix};
  return {};
}

}  // namespace ptx
