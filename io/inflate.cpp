#include "detent/io/inflate.h"

#include <algorithm>
#include <array>

#include "detent/core/error.h"

namespace detent::io {
namespace {

constexpr int kLongestCode = 15, kLiterals = 288, kDistances = 32;

// A canonical Huffman code: how many codes there are of each length, and the symbols in order of their codes.
struct Huffman {
  std::array<uint16_t, kLongestCode + 1> count{};
  std::array<uint16_t, kLiterals> symbols{};

  // False when there are more codes than their lengths allow.
  bool build(std::span<const uint8_t> lengths) {
    count = {};
    for (const uint8_t n : lengths) ++count[n];
    count[0] = 0;
    std::array<uint16_t, kLongestCode + 1> next{};
    int room = 1;
    for (int n = 1; n <= kLongestCode; ++n) {
      room = 2 * room - count[static_cast<size_t>(n)];
      if (room < 0) return false;
      if (n < kLongestCode) next[static_cast<size_t>(n) + 1] = static_cast<uint16_t>(next[static_cast<size_t>(n)] + count[static_cast<size_t>(n)]);
    }
    for (size_t s = 0; s < lengths.size(); ++s) {
      if (lengths[s]) symbols[next[lengths[s]]++] = static_cast<uint16_t>(s);
    }
    return true;
  }
};

class Inflater {
 public:
  Inflater(std::string_view in, size_t size, const std::string& what) : in_(in), size_(size), what_(what) { out_.reserve(size); }

  std::string run() {
    const uint32_t head = bits(8) << 8 | bits(8);
    if (head % 31 != 0 || (head >> 8 & 15) != 8 || head & 32) damaged();
    bool last = false;
    while (!last) {
      last = bits(1) != 0;
      switch (bits(2)) {
        case 0: stored(); break;
        case 1: coded(fixed_literals(), fixed_distances()); break;
        case 2: dynamic(); break;
        default: damaged();
      }
    }
    if (out_.size() != size_) damaged();
    left_ = 0;
    uint32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum = sum << 8 | bits(8);
    if (sum != adler()) damaged();
    return std::move(out_);
  }

 private:
  [[noreturn]] void damaged() const { fail(what_, ": its compressed data is damaged at byte ", static_cast<uint64_t>(at_), " of ", static_cast<uint64_t>(in_.size())); }

  uint32_t bits(int n) {
    while (left_ < n) {
      if (at_ >= in_.size()) damaged();
      held_ |= static_cast<uint32_t>(static_cast<uint8_t>(in_[at_++])) << left_;
      left_ += 8;
    }
    const uint32_t v = held_ & ((1u << n) - 1);
    held_ >>= n;
    left_ -= n;
    return v;
  }

  int symbol(const Huffman& h) {
    int code = 0, first = 0, index = 0;
    for (int n = 1; n <= kLongestCode; ++n) {
      code |= static_cast<int>(bits(1));
      const int count = h.count[static_cast<size_t>(n)];
      if (code - first < count) return h.symbols[static_cast<size_t>(index + code - first)];
      index += count;
      first = (first + count) << 1;
      code <<= 1;
    }
    damaged();
  }

  void stored() {
    held_ = 0;
    left_ = 0;
    const uint32_t n = bits(8) | bits(8) << 8, complement = bits(8) | bits(8) << 8;
    if ((n ^ complement) != 0xffff || n > in_.size() - at_ || n > size_ - out_.size()) damaged();
    out_.append(in_.substr(at_, n));
    at_ += n;
  }

  void coded(const Huffman& literals, const Huffman& distances) {
    static constexpr std::array<uint16_t, 29> kLength = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static constexpr std::array<uint8_t, 29> kLengthBits = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    for (;;) {
      const int s = symbol(literals);
      if (s == 256) return;
      if (s < 256) {
        if (out_.size() == size_) damaged();
        out_.push_back(static_cast<char>(s));
        continue;
      }
      if (s > 285) damaged();
      const auto k = static_cast<size_t>(s - 257);
      const size_t length = kLength[k] + bits(kLengthBits[k]);
      const int d = symbol(distances);
      if (d > 29) damaged();
      const int extra = d < 2 ? 0 : d / 2 - 1;
      const size_t base = d < 4 ? static_cast<size_t>(d) + 1 : (size_t{2} + static_cast<size_t>(d & 1)) * (size_t{1} << extra) + 1;
      const size_t distance = base + bits(extra);
      if (distance > out_.size() || length > size_ - out_.size()) damaged();
      for (size_t i = 0; i < length; ++i) out_.push_back(out_[out_.size() - distance]);
    }
  }

  void dynamic() {
    static constexpr std::array<uint8_t, 19> kOrder = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const size_t literals = bits(5) + 257, distances = bits(5) + 1, codes = bits(4) + 4;
    std::array<uint8_t, 19> short_lengths{};
    for (size_t i = 0; i < codes; ++i) short_lengths[kOrder[i]] = static_cast<uint8_t>(bits(3));
    Huffman h;
    if (literals > 286 || !h.build(short_lengths)) damaged();
    std::array<uint8_t, 286 + kDistances> lengths{};
    for (size_t i = 0; i < literals + distances;) {
      const int s = symbol(h);
      if (s < 16) {
        lengths[i++] = static_cast<uint8_t>(s);
        continue;
      }
      if (s == 16 && i == 0) damaged();
      const uint8_t value = s == 16 ? lengths[i - 1] : uint8_t{0};
      size_t repeat = s == 16 ? 3 + bits(2) : s == 17 ? 3 + bits(3) : 11 + bits(7);
      if (repeat > literals + distances - i) damaged();
      while (repeat-- > 0) lengths[i++] = value;
    }
    Huffman l, d;
    if (!l.build(std::span(lengths).first(literals)) || !d.build(std::span(lengths).subspan(literals, distances))) damaged();
    coded(l, d);
  }

  static Huffman fixed_literals() {
    std::array<uint8_t, kLiterals> n{};
    for (size_t i = 0; i < n.size(); ++i) n[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    Huffman h;
    h.build(n);
    return h;
  }
  static Huffman fixed_distances() {
    std::array<uint8_t, 30> n{};
    n.fill(5);
    Huffman h;
    h.build(n);
    return h;
  }

  uint32_t adler() const {
    uint32_t a = 1, b = 0;
    for (const char c : out_) {
      a = (a + static_cast<uint8_t>(c)) % 65521;
      b = (b + a) % 65521;
    }
    return b << 16 | a;
  }

  std::string_view in_;
  size_t size_, at_ = 0;
  const std::string& what_;
  uint32_t held_ = 0;
  int left_ = 0;
  std::string out_;
};

}  // namespace

std::string inflate_zlib(std::string_view stream, size_t size, const std::string& what) { return Inflater(stream, size, what).run(); }

}  // namespace detent::io
