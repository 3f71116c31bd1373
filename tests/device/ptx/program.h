// PTX as nvcc writes it, read into kernels that a machine on the host can run (machine.h). Names and meanings are those of NVIDIA's "PTX ISA"; what nvcc does not write
// for the kernels of backends/cuda is not known here and is an error that names the line.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;
/// Carries out an instruction for the lanes of the mask.
using Run = void (*)(Warp&, const Instruction&, uint32_t mask);

constexpr int kLanes = 32;
constexpr size_t kMostOperands = 14;

enum class Control : uint8_t { next, branch, barrier, exit };
/// What an instruction costs; for the counts of a profile.
enum class Kind : uint8_t { integer, real, wide, matrix, shared, global, other, kinds };

/// Registers are rows of 32 lanes; an operand is the place of its row, a constant is a row of its own.
struct Instruction {
  Run run = nullptr;
  Control control = Control::next;
  Kind kind = Kind::other;
  bool guarded = false, guard_negated = false;
  bool constant_address = false;
  bool whole_warp = false;            // all lanes do it together
  uint8_t operands = 0, results = 0;  // results come first
  uint32_t guard = 0;
  std::array<uint32_t, kMostOperands> row = {};
  std::array<uint8_t, kMostOperands> width = {};  // bytes of a lane
  int64_t offset = 0, second_offset = 0;          // of the addresses
  int32_t target = -1;                            // of a branch: an instruction
  int32_t line = 0;                               // in the text
  int32_t source = -1;                            // in Kernel::sources
};

struct Parameter {
  size_t offset = 0, size = 0;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::byte> registers;      // of one warp at its start: constants in place
  std::map<uint32_t, size_t> kept_rows;  // of constants and special registers, and their widths
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, shared_bytes = 0, local_bytes = 0;
  uint32_t threads_at_most = 1024;
  bool dynamic_shared = false;
  /// Whether bytes, or halves of words, are read or written: races are then looked for byte by byte.
  bool small_shared = false, small_global = false;
  /// Rows of %tid.x, %ctaid.x, %ntid.x, %nctaid.x; 0: not read.
  uint32_t thread_row = 0, block_row = 0, threads_row = 0, blocks_row = 0;
  std::vector<std::string> sources;  // "conv_load.h:120"
  std::vector<std::string> lines;    // of the text
};

/// Something that a GPU would not do, or not do the same way each time.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The kernels of a PTX text, by name. Throws Fault with the line for what it does not know.
std::map<std::string, Kernel> read_program(const std::string& text);

/// A row of a warp's registers is a lane's width 32 times, and a cache line at least.
constexpr size_t row_bytes(size_t width) { return width * 32 < 64 ? 64 : width * 32; }
/// Lets registers (rows, with their widths) share rows where their lives allow it (rows.cpp).
void share_rows(Kernel& kernel, const std::map<uint32_t, size_t>& registers);

/// How an instruction is carried out, and what its operands must be: a letter each, p predicate, h 16 bits, w 32,
/// d 64, . any; one with * behind it stands for any number of them.
struct Form {
  Run run = nullptr;
  const char* operands = "";
  Kind kind = Kind::other;
};
/// By the name of an instruction ("add.s32"); run is null for one that is not known.
Form arithmetic_form(const std::string& name);  // arithmetic.cpp
Form float_form(const std::string& name);       // float.cpp
Form conversion_form(const std::string& name);  // convert.cpp
Form memory_form(const std::string& name);      // memory.cpp
Form matrix_form(const std::string& name);      // matrix.cpp

}  // namespace ptx
