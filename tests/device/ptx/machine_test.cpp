// The machine itself: arithmetic by the ISA, lanes that part and meet, matrix steps, and that it finds what it is there to find.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "detent/backends/cuda/mma.h"
#include "machine.h"

using namespace ptx;

namespace {

// The device's memory: 32-bit words, all that kernels here read and write.
std::vector<uint32_t> g_memory(1024);
Range find_memory(uint64_t address) {
  const auto begin = reinterpret_cast<uint64_t>(g_memory.data()), end = begin + g_memory.size() * 4;
  return address >= begin && address < end ? Range{begin, end} : Range{};
}

// A kernel: %rd1 is the memory, %r1 the thread, %r2 the block, %rd2 the memory at the thread's word, %r3 the thread's word of shared memory.
std::string kernel(const std::string& body) {
  return R"(.version 9.0
.target sm_90
.address_size 64
.visible .entry k(
	.param .u64 k_param_0
)
.maxntid 256, 1, 1
{
	.reg .pred 	%p<10>;
	.reg .b16 	%rs<10>;
	.reg .f32 	%f<40>;
	.reg .b32 	%r<40>;
	.reg .f64 	%fd<10>;
	.reg .b64 	%rd<20>;
	.shared .align 16 .b8 memory[1024];
	ld.param.u64 	%rd1, [k_param_0];
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd2, %rd1, %rd3;
	shl.b32 	%r3, %r1, 2;
	mov.u32 	%r4, memory;
	add.s32 	%r3, %r3, %r4;
)" + body +
         "\n\tret;\n}\n";
}

void run(const std::string& body, uint32_t threads = 32, uint32_t blocks = 1) {
  const std::map<std::string, Kernel> all = read_program(kernel(body));
  Launch l = {blocks, threads, 0, std::vector<std::byte>(8)};
  const auto address = reinterpret_cast<uint64_t>(g_memory.data());
  std::memcpy(l.parameters.data(), &address, sizeof address);
  Machine machine(find_memory);
  machine.run(all.at("k"), l);
}

// What the launch says is wrong; "" when nothing is.
std::string fault_of(const std::string& body, uint32_t threads = 64, uint32_t blocks = 1) {
  try {
    run(body, threads, blocks);
  } catch (const Fault& f) {
    return f.what();
  }
  return "";
}
#define CHECK_FAULT(body, text) CHECK_MESSAGE(fault_of(body).find(text) != std::string::npos, fault_of(body))

uint32_t bits(float v) {
  uint32_t b;
  std::memcpy(&b, &v, 4);
  return b;
}
uint64_t bits(double v) {
  uint64_t b;
  std::memcpy(&b, &v, 8);
  return b;
}
constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint32_t kNanBits = 0x7FFFFFFF;

// The result of one instruction: 32-bit operands come in %r10, %r11, %r12 and %f10, %f11, %f12, pairs of them in %rd10, %rd11 and %fd1, %fd2.
uint64_t result(const std::string& instruction, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
  const uint64_t in[] = {a, b, c};
  std::string body;
  for (size_t n = 0; n < 3; ++n) {
    std::memcpy(&g_memory[2 * n], &in[n], 8);
    const std::string at = "[%rd1+" + std::to_string(8 * n) + "];\n", i = std::to_string(10 + n);
    body += "ld.global.u32 %r" + i + ", " + at + "ld.global.f32 %f" + i + ", " + at + "ld.global.u64 %rd" + i + ", " + at;
    body += "ld.global.f64 %fd" + std::to_string(n + 1) + ", " + at;
  }
  g_memory[8] = g_memory[9] = 0;
  const size_t from = instruction.find('%'), to = instruction.find(',');
  const std::string d = instruction.substr(from, to - from);
  const std::string type = d[1] == 'p' ? "" : d[1] == 'f' && d[2] == 'd' ? "f64" : d[1] == 'f' ? "f32" : d[2] == 'd' ? "u64" : d[2] == 's' ? "u16" : "u32";
  body += instruction + ";\n" + (type.empty() ? "selp.u32 %r30, 1, 0, " + d + ";\nst.global.u32 [%rd1+32], %r30;\n" : "st.global." + type + " [%rd1+32], " + d + ";\n");
  run(body, 1);
  uint64_t v;
  std::memcpy(&v, &g_memory[8], 8);
  return v;
}
uint64_t result(const std::string& instruction, float a, float b = 0.0f, float c = 0.0f) { return result(instruction, uint64_t{bits(a)}, uint64_t{bits(b)}, uint64_t{bits(c)}); }
uint64_t result(const std::string& instruction, double a, double b = 0.0) { return result(instruction, bits(a), bits(b)); }

uint64_t u(int32_t v) { return static_cast<uint32_t>(v); }
uint64_t w(int64_t v) { return static_cast<uint64_t>(v); }

}  // namespace

TEST_CASE("integers wrap, shift out and divide as the ISA says") {
  CHECK(result("add.s32 %r20, %r10, %r11", u(2147483647), u(1)) == 0x80000000);
  CHECK(result("sub.s64 %rd14, %rd10, %rd11", w(std::numeric_limits<int64_t>::min()), w(1)) == 0x7FFFFFFFFFFFFFFF);
  CHECK(result("mul.lo.s32 %r20, %r10, %r11", u(-70000), u(70000)) == (static_cast<uint32_t>(-4900000000LL)));
  CHECK(result("mul.hi.s32 %r20, %r10, %r11", u(-70000), u(70000)) == u(-2));
  CHECK(result("mul.wide.s32 %rd14, %r10, %r11", u(-70000), u(70000)) == w(-4900000000LL));
  CHECK(result("mul.wide.u32 %rd14, %r10, %r11", u(-1), u(-1)) == 0xFFFFFFFE00000001);
  CHECK(result("mad.lo.s32 %r20, %r10, %r11, %r12", u(7), u(-3), u(1)) == u(-20));
  CHECK(result("div.s32 %r20, %r10, %r11", u(-7), u(2)) == u(-3));
  CHECK(result("rem.s64 %rd14, %rd10, %rd11", w(-7), w(2)) == w(-1));
  CHECK(result("div.u32 %r20, %r10, %r11", u(-7), u(2)) == 0x7FFFFFFC);
  CHECK(result("min.s64 %rd14, %rd10, %rd11", w(-7), w(2)) == w(-7));
  CHECK(result("max.u64 %rd14, %rd10, %rd11", w(-7), w(2)) == w(-7));
  CHECK(result("shl.b32 %r20, %r10, %r11", u(3), u(31)) == 0x80000000);
  CHECK(result("shl.b32 %r20, %r10, %r11", u(3), u(32)) == 0);
  CHECK(result("shr.s32 %r20, %r10, %r11", u(-5), u(40)) == u(-1));
  CHECK(result("shr.u64 %rd14, %rd10, %r11", w(-1), u(63)) == 1);
  CHECK(result("shr.u64 %rd14, %rd10, %r11", w(-1), u(64)) == 0);
  CHECK(result("and.b32 %r20, %r10, -2", u(7)) == 6);
  CHECK(result("not.b64 %rd14, %rd10", w(5)) == w(-6));
  CHECK(result("neg.s32 %r20, %r10", u(5)) == u(-5));
  CHECK(result("setp.lt.s32 %p1, %r10, %r11", u(-1), u(1)) == 1);
  CHECK(result("setp.lt.u32 %p1, %r10, %r11", u(-1), u(1)) == 0);
  CHECK(result("selp.b32 %r20, %r10, %r11, 0", u(1), u(2)) == 2);
}

TEST_CASE("floats round once, NaNs are one and comparisons know them") {
  CHECK(result("add.rn.f32 %f20, %f10, %f11", 1.0f, 0x1p-24f) == bits(1.0f));
  CHECK(result("add.rn.f32 %f20, %f10, %f11", kInf, -kInf) == kNanBits);
  CHECK(result("add.rz.f32 %f20, %f10, %f11", 1.0f, -0x1p-30f) == bits(0x1.fffffep-1f));
  CHECK(result("mul.rn.f32 %f20, %f10, %f11", 0x1p-100f, 0x1p-40f) == bits(0x1p-140f));  // denormals live
  CHECK(result("fma.rn.f32 %f20, %f10, %f11, %f12", 0x1.000002p0f, 0x1.000002p0f, -0x1.000004p0f) == bits(0x1p-46f));
  CHECK(result("fma.rm.f32 %f20, %f10, %f11, %f12", 1.0f, 1.0f, -0x1p-30f) == bits(0x1.fffffep-1f));
  CHECK(result("div.rn.f32 %f20, %f10, %f11", 1.0f, 3.0f) == bits(0x1.555556p-2f));
  CHECK(result("sqrt.rn.f32 %f20, %f10", -1.0f) == kNanBits);
  CHECK(result("copysign.f32 %f20, %f10, %f11", -0.0f, 3.0f) == bits(-3.0f));
  CHECK(result("max.f32 %f20, %f10, %f11", kNan, 3.0f) == bits(3.0f));
  CHECK(result("max.f32 %f20, %f10, %f11", -0.0f, 0.0f) == bits(0.0f));
  CHECK(result("min.f32 %f20, %f10, %f11", 0.0f, -0.0f) == bits(-0.0f));
  const struct {
    const char* name;
    int less, equal, greater, unordered;
  } comparisons[] = {{"eq", 0, 1, 0, 0},  {"ne", 1, 0, 1, 0},  {"lt", 1, 0, 0, 0},  {"le", 1, 1, 0, 0},  {"gt", 0, 0, 1, 0},  {"ge", 0, 1, 1, 0},  {"num", 1, 1, 1, 0},
                     {"equ", 0, 1, 0, 1}, {"neu", 1, 0, 1, 1}, {"ltu", 1, 0, 0, 1}, {"leu", 1, 1, 0, 1}, {"gtu", 0, 0, 1, 1}, {"geu", 0, 1, 1, 1}, {"nan", 0, 0, 0, 1}};
  for (const auto& c : comparisons) {
    CAPTURE(c.name);
    const std::string f32 = std::string("setp.") + c.name + ".f32 %p1, %f10, %f11", f64 = std::string("setp.") + c.name + ".f64 %p1, %fd1, %fd2";
    CHECK(result(f32, 1.0f, 2.0f) == static_cast<uint64_t>(c.less));
    CHECK(result(f32, 0.0f, -0.0f) == static_cast<uint64_t>(c.equal));
    CHECK(result(f32, 2.0f, 1.0f) == static_cast<uint64_t>(c.greater));
    CHECK(result(f32, 2.0f, kNan) == static_cast<uint64_t>(c.unordered));
    CHECK(result(f64, 1.0, 2.0) == static_cast<uint64_t>(c.less));
    CHECK(result(f64, static_cast<double>(kNan), 2.0) == static_cast<uint64_t>(c.unordered));
  }
}

TEST_CASE("conversions round, saturate and widen as the ISA says") {
  CHECK(result("cvt.rni.f32.f32 %f20, %f10", 2.5f) == bits(2.0f));
  CHECK(result("cvt.rni.f32.f32 %f20, %f10", -3.5f) == bits(-4.0f));
  CHECK(result("cvt.rzi.f32.f32 %f20, %f10", -3.5f) == bits(-3.0f));
  CHECK(result("cvt.rmi.f32.f32 %f20, %f10", -3.5f) == bits(-4.0f));
  CHECK(result("cvt.rzi.s32.f32 %r20, %f10", -3.9f) == u(-3));
  CHECK(result("cvt.rzi.s32.f32 %r20, %f10", 3e9f) == 0x7FFFFFFF);
  CHECK(result("cvt.rzi.s32.f32 %r20, %f10", -kInf) == 0x80000000);
  CHECK(result("cvt.rzi.s32.f32 %r20, %f10", kNan) == 0);
  CHECK(result("cvt.rzi.s64.f64 %rd14, %fd1", static_cast<double>(kNan)) == 0x8000000000000000);
  CHECK(result("cvt.rn.f32.s32 %f20, %r10", u(16777217)) == bits(16777216.0f));
  CHECK(result("cvt.rn.f32.f64 %f20, %fd1", 1.0 + 0x1p-24) == bits(1.0f));
  CHECK(result("cvt.rn.f64.s64 %fd5, %rd10", w(-3)) == bits(-3.0));
  CHECK(result("cvt.sat.f32.f32 %f20, %f10", kNan) == 0);
  CHECK(result("cvt.sat.f32.f32 %f20, %f10", 7.0f) == bits(1.0f));
  CHECK(result("cvt.s64.s32 %rd14, %r10", u(-3)) == w(-3));
  CHECK(result("cvt.u64.u32 %rd14, %r10", u(-3)) == 0xFFFFFFFD);
  CHECK(result("cvt.s32.s8 %r20, %r10", u(0x1FE)) == u(-2));
  CHECK(result("cvt.u16.u32 %rs5, %r10", u(0x12345)) == 0x2345);
  CHECK(result("cvt.rna.tf32.f32 %r20, %f10", 1.0f + 0x1p-11f) == bits(1.0f + 0x1p-10f));
  CHECK(result("cvt.rn.bf16x2.f32 %r20, %f10, %f11", 1.0f + 0x1p-8f, -1.0f - 3 * 0x1p-8f) == 0x3F80BF82);
  CHECK(result("mov.b64 %rd14, {%r11, %r10}", u(1), u(2)) == 0x100000002);
  CHECK(result("ex2.approx.ftz.f32 %f20, %f10", 3.0f) == bits(8.0f));
}

TEST_CASE("lanes part at branches, go round loops as often as each wants, and meet again") {
  // Each lane: the sum of 0..lane, odd lanes negated on another way.
  run(R"(
	mov.u32 %r10, 0;
	mov.u32 %r11, 0;
$L1:
	add.s32 %r10, %r10, %r11;
	add.s32 %r11, %r11, 1;
	setp.le.u32 %p1, %r11, %r1;
	@%p1 bra $L1;
	and.b32 %r12, %r1, 1;
	setp.eq.s32 %p2, %r12, 0;
	@%p2 bra $L3;
	bra.uni $L4;
$L2:
	st.shared.u32 [%r3], %r10;
	bar.sync 0;
	ld.shared.u32 %r13, [memory+12];
	add.s32 %r10, %r10, %r13;
	st.global.u32 [%rd2], %r10;
	ret;
$L3:
	add.s32 %r10, %r10, 1000;
	bra.uni $L2;
$L4:
	neg.s32 %r10, %r10;
	bra.uni $L2;
)",
      64);
  for (int32_t t = 0; t < 64; ++t) {
    const int32_t sum = t * (t + 1) / 2, own = t % 2 ? -sum : sum + 1000;
    CHECK(static_cast<int32_t>(g_memory[static_cast<size_t>(t)]) == own - 6);
  }
}

TEST_CASE("copies arrive when they are waited for, the last groups later, with zeros behind what is read") {
  for (uint32_t i = 0; i < 1024; ++i) g_memory[i] = i;
  run(R"(
	mul.lo.s32 %r10, %r1, 16;
	add.s32 %r10, %r10, %r4;
	cvt.u64.u32 %rd10, %r1;
	shl.b64 %rd11, %rd10, 4;
	add.s64 %rd12, %rd1, %rd11;
	mov.u32 %r11, 8;
	cp.async.cg.shared.global [%r10], [%rd12], 16, %r11;
	cp.async.commit_group;
	cp.async.ca.shared.global [%r10+512], [%rd12+1024], 4, 4;
	cp.async.commit_group;
	cp.async.wait_group 1;
	bar.sync 0;
	xor.b32 %r12, %r10, 16;
	ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r12];
	cp.async.wait_group 0;
	bar.sync 0;
	ld.shared.u32 %r24, [%r12+512];
	add.s64 %rd12, %rd12, 2048;
	add.s32 %r20, %r20, %r22;
	add.s32 %r20, %r20, %r23;
	st.global.v2.u32 [%rd12], {%r20, %r21};
	st.global.u32 [%rd12+8], %r24;
)");
  for (uint32_t t = 0; t < 32; ++t) {
    const uint32_t other = t ^ 1;
    CHECK(g_memory[512 + 4 * t] == 4 * other);
    CHECK(g_memory[512 + 4 * t + 1] == 4 * other + 1);
    CHECK(g_memory[512 + 4 * t + 2] == 256 + 4 * other);
  }
}

TEST_CASE("threads that meet in memory with nothing between them are found") {
  const std::string write = "st.shared.u32 [%r3], %r1;\n", barrier = "bar.sync 0;\n", read_other = "xor.b32 %r5, %r3, 4;\nld.shared.u32 %r6, [%r5];\n";
  CHECK(fault_of(write + barrier + read_other) == "");
  CHECK_FAULT(write + read_other, "race: read");
  CHECK_FAULT(write + barrier + read_other + write, "race: write where");
  CHECK(fault_of(write + barrier + read_other + barrier + write) == "");
  CHECK_FAULT("st.shared.u32 [memory], %r1;\n", "race: write");
  CHECK(fault_of(write + "ld.shared.u32 %r6, [%r3];\n" + write) == "");  // a thread's own
  CHECK_FAULT(read_other, "nobody wrote");
  CHECK(fault_of("st.shared.u8 [%r3+1], %r1;\nst.shared.u8 [%r3], %r1;\n" + barrier + "ld.shared.u8 %rs1, [%r3+1];\n") == "");
  CHECK_FAULT("st.shared.u8 [%r3+1], %r1;\n" + barrier + "ld.shared.u8 %rs1, [%r3];\n", "nobody wrote");
  CHECK(fault_of(write + barrier + "atom.shared.add.u32 %r5, [memory], 1;\n") == "");
  CHECK_FAULT(write + "atom.shared.add.u32 %r5, [memory], 1;\n", "race: atomic");
  CHECK_FAULT(write + barrier + "atom.shared.add.u32 %r5, [memory], 1;\nld.shared.u32 %r6, [memory];\n", "race: read");
  // Global memory: a barrier orders the threads of a block, nothing orders blocks.
  const std::string store = "st.global.u32 [%rd2], %r1;\n",
                    load_other = "xor.b32 %r5, %r1, 1;\nmul.wide.u32 %rd5, %r5, 4;\nadd.s64 %rd6, %rd1, %rd5;\nld.global.u32 %r6, [%rd6];\n";
  CHECK(fault_of(store + barrier + load_other) == "");
  CHECK_FAULT(store + load_other, "race: read");
  CHECK(fault_of(store + barrier + load_other, 64, 2).find("race") != std::string::npos);
  CHECK(fault_of("ld.global.u32 %r6, [%rd1];\n", 64, 3) == "");
  CHECK(fault_of("ld.global.u32 %r6, [%rd1];\nsetp.ne.s32 %p1, %r2, 1;\n@%p1 bra $L1;\nst.global.u32 [%rd1], %r6;\n$L1:\n", 1, 3).find("race") != std::string::npos);
  g_memory[5] = 0;
  CHECK(fault_of("atom.global.add.u32 %r5, [%rd1+20], 2;\n", 64, 3) == "");
  CHECK(g_memory[5] == 384);
}

TEST_CASE("copies that are not waited for, or not by all, are found") {
  const std::string copy = "cp.async.ca.shared.global [%r3], [%rd2], 4, 4;\ncp.async.commit_group;\n", wait = "cp.async.wait_group 0;\n", barrier = "bar.sync 0;\n",
                    own = "ld.shared.u32 %r6, [%r3];\n", other = "xor.b32 %r5, %r3, 4;\nld.shared.u32 %r6, [%r5];\n";
  CHECK(fault_of(copy + wait + own) == "");
  CHECK(fault_of(copy + wait + barrier + other) == "");
  CHECK_FAULT(copy + own, "has not been waited for");
  CHECK_FAULT(copy + barrier + wait + other, "race: read");
  CHECK_FAULT(copy + "cp.async.wait_group 1;\n" + own, "has not been waited for");
  CHECK_FAULT(copy + wait + barrier + other + copy, "race: copy");
  CHECK_FAULT("cp.async.cg.shared.global [%r3], [%rd2], 16, 16;\n", "not aligned to 16");
  CHECK_FAULT("add.s64 %rd9, %rd1, 8192;\ncp.async.ca.shared.global [%r3], [%rd9], 4, 0;\n", "outside of the device's memory");
}

TEST_CASE("addresses, barriers, loops and matrix steps that cannot be are found, with the place") {
  CHECK_FAULT("st.global.u32 [%rd2+4096], %r1;\n", "outside of the device's memory");
  CHECK(fault_of("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+4080];\n") == "");
  CHECK_FAULT("ld.global.u64 %rd9, [%rd1+4096];\n", "outside");
  CHECK_FAULT("st.global.u64 [%rd1+4], %rd1;\n", "not aligned");
  CHECK_FAULT("st.shared.u32 [%r3+1024], %r1;\n", "bytes of shared memory");
  CHECK_FAULT("ld.shared.u32 %r6, [%r3+-4];\n", "shared memory");
  CHECK_FAULT("setp.lt.s32 %p1, %r1, 40;\n@%p1 bra $L1;\nbar.sync 0;\n$L1:\n", "not all threads of the warp come here");
  CHECK_FAULT(
      "setp.lt.s32 %p1, %r1, 40;\n@!%p1 bra $L1;\nmma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%f1,%f2,%f3,%f4};\n$L1:\n",
      "not all threads of the warp come here");
  const std::string text = fault_of("mov.u32 %r9, 7;\nst.global.u32 [%rd1], %r9;\n", 64, 1);
  CHECK(text.find("st.global.u32 [%rd1], %r9; , block 0 of 1, thread") == std::string::npos);
  CHECK(text.find("st.global.u32 [%rd1], %r9;") != std::string::npos);
  CHECK(text.find("block 0 of 1") != std::string::npos);
  CHECK(text.find("kernel k") != std::string::npos);
}

TEST_CASE("what is not known is an error that names the line") {
  CHECK_FAULT("shfl.sync.down.b32 %r5, %r6, 1, 31, -1;\n", "unknown instruction");
  CHECK_FAULT("add.s32 %r5, %r6;\n", "not the operands");
  CHECK_FAULT("add.s32 %r5, %r6, %rd1;\n", "another width");
  CHECK_FAULT("add.s32 %r5, %r77, %r1;\n", "unknown register %r77");
  CHECK_FAULT("add.s32 %r5, %r6, somewhere;\n", "somewhere");
  CHECK_FAULT("bra $L9;\n", "no label $L9");
  CHECK_FAULT("bar.sync 1;\n", "only barrier 0");
  CHECK_FAULT("add.s32 %r5, %r6, somewhere;\n", "PTX line 24");
}

TEST_CASE("a load of matrices gives each lane a word of each, from rows that other lanes name") {
  // Shared word k holds k; row r of matrix m is the 16 bytes at word 4 * (r * 4 + m).
  const std::string fill = "mov.u32 %r5, 0;\n$L1:\nadd.s32 %r6, %r5, %r1;\nshl.b32 %r7, %r5, 2;\nadd.s32 %r7, %r7, %r3;\nst.shared.u32 [%r7], %r6;\nadd.s32 %r5, %r5, 32;\n"
                           "setp.lt.s32 %p1, %r5, 128;\n@%p1 bra $L1;\nbar.sync 0;\n";
  const std::string row = "and.b32 %r8, %r1, 7;\nshr.u32 %r9, %r1, 3;\nshl.b32 %r8, %r8, 6;\nshl.b32 %r9, %r9, 4;\nadd.s32 %r8, %r8, %r9;\nadd.s32 %r8, %r8, %r4;\n";
  const std::string load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10,%r11,%r12,%r13}, [%r8];\n";
  std::string store;
  for (int m = 0; m < 4; ++m) store += "st.global.u32 [%rd2+" + std::to_string(128 * m) + "], %r" + std::to_string(10 + m) + ";\n";
  run(fill + row + load + store);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t m = 0; m < 4; ++m) CHECK(g_memory[m * 32 + lane] == 4 * (lane / 4 * 4 + m) + lane % 4);
  }
  // Across: the lower half of a word is its number, the upper 0, so that column 2 w of a matrix has word w of each row and the odd columns nothing.
  run(fill + row + "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r10,%r11,%r12,%r13}, [%r8];\n" + store);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t column = lane / 4, first = lane % 4 * 2;
    for (uint32_t m = 0; m < 4; ++m) {
      const auto at = [&](uint32_t r) { return column % 2 ? 0u : 4 * (r * 4 + m) + column / 2; };
      CHECK(g_memory[m * 32 + lane] == (at(first) | at(first + 1) << 16));
    }
  }
  const auto says = [](const std::string& body, const char* what) { return fault_of(body, 32, 1).find(what) != std::string::npos; };
  CHECK(says(row + load, "nobody wrote"));
  CHECK(says(fill + row + "add.s32 %r8, %r8, 4;\n" + load, "not aligned"));
  CHECK(says(fill + row + "setp.lt.s32 %p1, %r1, 8;\n@%p1 bra $L2;\n" + load + "$L2:\n", "not all threads of the warp come here"));
}

// The fragments come from the tables of mma.h, which were written apart from this machine's.
template <class Mma, class T>
void check_matrix(const char* instruction, bool floats) {
  using Isa = detent::cuda_host::Isa<Mma>;
  constexpr int kDepth = Isa::kDepth, kPack = Mma::kPack;
  std::vector<int> a(16 * kDepth), b(kDepth * 8), c(16 * 8);
  uint32_t state = 1;
  const auto next = [&](int lo, int hi) { return lo + static_cast<int>((state = state * 1664525u + 1013904223u) >> 16) % (hi - lo + 1); };
  for (int& v : a) v = next(0, 100);
  for (int& v : b) v = next(-100, 100);
  for (int& v : c) v = next(-1000, 1000);
  const auto element = [](int v) -> uint32_t {
    if (kPack == 4) return static_cast<uint8_t>(v);
    return kPack == 2 ? bits(static_cast<float>(v)) >> 16 : bits(static_cast<float>(v));
  };
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t* const r = &g_memory[static_cast<size_t>(lane) * 16];
    std::fill_n(r, 16, 0u);
    for (int i = 0; i < 4 * kPack; ++i) r[i / kPack] |= element(a[static_cast<size_t>(Isa::a_row(lane, i) * kDepth + Isa::a_column(lane, i))]) << i % kPack * (32 / kPack);
    for (int i = 0; i < 2 * kPack; ++i) r[4 + i / kPack] |= element(b[static_cast<size_t>(Isa::b_row(lane, i) * 8 + (lane >> 2))]) << i % kPack * (32 / kPack);
    for (int i = 0; i < 4; ++i) {
      const int v = c[static_cast<size_t>(((lane >> 2) + (i < 2 ? 0 : 8)) * 8 + lane % 4 * 2 + i % 2)];
      r[6 + i] = floats ? bits(static_cast<float>(v)) : static_cast<uint32_t>(v);
    }
  }
  const std::string d = floats ? "%f" : "%r3", type = floats ? "f32" : "u32";
  const auto four = [&](const std::string& sep) { return d + "1" + sep + d + "2" + sep + d + "3" + sep + d + "4"; };
  std::string body = "shl.b64 %rd4, %rd3, 4;\nadd.s64 %rd4, %rd4, %rd1;\n";
  for (int i = 0; i < 6; ++i) body += "ld.global.u32 %r" + std::to_string(10 + i) + ", [%rd4+" + std::to_string(4 * i) + "];\n";
  for (int i = 0; i < 4; ++i) body += "ld.global." + type + " " + d + std::to_string(1 + i) + ", [%rd4+" + std::to_string(24 + 4 * i) + "];\n";
  body += std::string(instruction) + " {" + four(",") + "}, {%r10,%r11,%r12,%r13}, {%r14,%r15}, {" + four(",") + "};\n";
  for (int i = 0; i < 4; ++i) body += "st.global." + type + " [%rd4+" + std::to_string(40 + 4 * i) + "], " + d + std::to_string(1 + i) + ";\n";
  run(body);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
      int want = c[static_cast<size_t>(row * 8 + column)];
      for (int k = 0; k < kDepth; ++k) want += a[static_cast<size_t>(row * kDepth + k)] * b[static_cast<size_t>(k * 8 + column)];
      T got;
      std::memcpy(&got, &g_memory[static_cast<size_t>(lane * 16 + 10 + i)], 4);
      CHECK(got == static_cast<T>(want));
    }
  }
}

TEST_CASE("matrix steps multiply matrices") {
  check_matrix<detent::cuda_host::Tf32, float>("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", true);
  check_matrix<detent::cuda_host::Bf16, float>("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", true);
  check_matrix<detent::cuda_host::U8S8, int32_t>("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", false);
}
