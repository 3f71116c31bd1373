// Every reason for which the ONNX reader refuses a file, in tables: the words of the message, and the file that asks for them. The files are written by hand
// (onnx_support.h), so that no reader or writer of the library stands between a row and its bytes.
#include <doctest/doctest.h>

#include <sys/mman.h>

#include "detent/io/weights.h"
#include "detent/tests/io/onnx_support.h"
#include "detent/tests/io/support.h"

using namespace detent;
using namespace detent::test;

namespace {

using Names = std::vector<std::string>;
using Ints = std::vector<int64_t>;
using Floats = std::vector<float>;

constexpr int kFloatType = 1, kUint8Type = 2, kInt32Type = 6, kInt64Type = 7;

// Attributes.
std::string integer(const char* name, int64_t v) { return bytes(5, bytes(1, name) + number(3, v)); }
std::string real(const char* name, float v) { return bytes(5, bytes(1, name) + varint(2 << 3 | 5) + std::string(reinterpret_cast<const char*>(&v), 4)); }
std::string word(const char* name, const std::string& v) { return bytes(5, bytes(1, name) + bytes(4, v)); }
std::string list(const char* name, const Ints& v) {
  std::string a = bytes(1, name);
  for (const int64_t e : v) a += number(8, e);
  return bytes(5, a);
}

std::string node(const char* op, const Names& inputs, const std::string& attributes = {}, const Names& outputs = {"y"}) {
  std::string n;
  for (const std::string& i : inputs) n += bytes(1, i);
  for (const std::string& o : outputs) n += bytes(2, o);
  return bytes(1, n + bytes(3, "the node") + bytes(4, op) + attributes);
}

// Initializers.
template <class T>
std::string tensor(const std::string& name, int type, const Ints& dims, const std::vector<T>& values) {
  std::string t;
  for (const int64_t d : dims) t += number(1, d);
  return bytes(5, t + number(2, type) + bytes(8, name) + bytes(9, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))));
}
std::string zeros(const std::string& name, const Ints& dims) {
  int64_t n = 1;
  for (const int64_t d : dims) n *= d;
  return tensor(name, kFloatType, dims, Floats(static_cast<size_t>(n), 0.0f));
}
std::string floats(const std::string& name, const Floats& v) { return tensor(name, kFloatType, {static_cast<int64_t>(v.size())}, v); }
std::string longs(const std::string& name, const Ints& v) { return tensor(name, kInt64Type, {static_cast<int64_t>(v.size())}, v); }
std::string scalar(const std::string& name, float v) { return tensor(name, kFloatType, {}, Floats{v}); }
std::string code(const std::string& name, uint8_t v) { return tensor(name, kUint8Type, {}, std::vector<uint8_t>{v}); }

const std::string kImage = onnx_value(11, "x", {1, 3, 8, 8}), kVector = onnx_value(11, "x", {1, 12}), kOutput = onnx_value(12, "y", {1});

struct Row {
  const char* reason;
  std::string graph;
};

std::string import_error(const std::string& file, const std::string& folder = {}) {
  return error_of([&] { io::parse_onnx(file, "test", folder); });
}

void check_refused(const std::vector<Row>& rows, const std::string& input) {
  for (const Row& r : rows) {
    const std::string e = import_error(onnx_model(r.graph + input + kOutput));
    CHECK_CONTAINS(e, std::string(r.reason));
    CHECK_CONTAINS(e, "test");
  }
}

}  // namespace

TEST_CASE("onnx import: what a node on an image may not ask for") {
  const std::string w = zeros("w", {4, 3, 1, 1}), five = zeros("five", {5}), one = zeros("one", {1});
  check_refused(
      {
          // attributes and inputs
          {"attribute group is no integer", node("Conv", {"x", "w"}, word("group", "a")) + w},
          {"attribute alpha is no number", node("LeakyRelu", {"x"}, integer("alpha", 1))},
          {"attribute mode is no text", node("Resize", {"x"}, integer("mode", 1))},
          {"attribute perm has 65 values", node("Transpose", {"x"}, list("perm", Ints(65, 0)))},
          {"it has no weight", node("Conv", {"x"})},
          {"its weight is computed by the network", node("Conv", {"x", "x"})},
          {"shape is not a short list of integers", node("Reshape", {"x", "five"}) + five},
          {"input 0 is missing", node("Relu", {""})},
          {"input 0 is a constant", node("Relu", {"five"}) + five},
          {"input \"none\" does not exist", node("Relu", {"none"})},
          {"it computes on quantized codes", node("QuantizeLinear", {"x", "s"}, {}, {"q"}) + scalar("s", 0.5f) + node("Relu", {"q"})},
          {"its domain com.x is not ONNX's own", node("Relu", {"x"}, bytes(7, "com.x"))},
          {"it has no output", node("Relu", {"x"}, {}, {}) + node("Relu", {"x"})},
          {"it has no output", node("Relu", {"x"}, {}, {""}) + node("Relu", {"x"})},
          {"the operator is not supported", node("Einsum", {"x"})},
          // convolution and batch norm
          {"a weight of rank 1 on an input of rank 4", node("Conv", {"x", "five"}) + five},
          {"group 0 with 12 weights", node("Conv", {"x", "w"}, integer("group", 0)) + w},
          {"weights for 2 input channels on a value of 3", node("Conv", {"x", "w"}) + zeros("w", {4, 2, 1, 1})},
          {"its bias has 5 values, 4 are needed", node("Conv", {"x", "w", "five"}) + w + five},
          {"strides of 3 dimensions", node("Conv", {"x", "w"}, list("strides", {1, 1, 1})) + w},
          {"dilations 0", node("Conv", {"x", "w"}, list("dilations", {1, 0})) + w},
          {"auto_pad SOMEHOW", node("Conv", {"x", "w"}, word("auto_pad", "SOMEHOW")) + w},
          {"pads of 3 dimensions", node("Conv", {"x", "w"}, list("pads", {0, 0, 0, 0, 0, 0})) + w},
          {"a padding of -1", node("Conv", {"x", "w"}, list("pads", {0, -1, 0, 0})) + w},
          {"its variance has the value -1", node("BatchNormalization", {"x", "c", "c", "c", "v"}) + zeros("c", {3}) + floats("v", {1.0f, -1.0f, 1.0f})},
          // activations and operands
          {"its min has 5 values, one is needed", node("Clip", {"x", "five"}) + five},
          {"min 2 above max 1", node("Clip", {"x"}, real("min", 2.0f) + real("max", 1.0f))},
          {"a slope for something else than channels", node("PRelu", {"x", "five"}) + five},
          {"an integer constant", node("Add", {"x", "i"}) + longs("i", {1})},
          {"a constant of rank 5 on a value of rank 4", node("Add", {"x", "c"}) + zeros("c", {1, 1, 1, 1, 1})},
          {"a constant that differs along the batch", node("Add", {"x", "c"}) + zeros("c", {2, 1, 1, 1})},
          {"a constant of 0 values", node("Add", {"x", "c"}) + zeros("c", {0})},
          {"a constant of extent 5 on 8", node("Add", {"x", "five"}) + five},
          {"an operand is missing", node("Add", {"x", ""})},
          {"operands of ranks 4 and 2", node("Flatten", {"x"}, {}, {"f"}) + node("Add", {"x", "f"})},
          {"its mask is used", node("Dropout", {"x"}, {}, {"y", "mask"}) + node("Relu", {"mask"}, {}, {"z"})},
          // pools, means, resizes, softmax
          {"its indices are used", node("MaxPool", {"x"}, list("kernel_shape", {2, 2}), {"y", "i"})},
          {"a mean over other axes than height and width", node("ReduceMean", {"x"}, list("axes", {1}))},
          {"mode cubic", node("Resize", {"x", "", "five"}, word("mode", "cubic")) + five},
          {"coordinate_transformation_mode tf_crop", node("Resize", {"x", "", "five"}, word("coordinate_transformation_mode", "tf_crop")) + five},
          {"nearest_mode ceil", node("Resize", {"x", "", "five"}, word("nearest_mode", "ceil")) + five},
          {"antialias", node("Resize", {"x", "", "five"}, integer("antialias", 1)) + five},
          {"5 sizes for 4 axes", node("Resize", {"x", "", "five"}) + five},
          {"axis 9", node("Resize", {"x", "", "s"}, list("axes", {9})) + floats("s", {1.0f})},
          {"a size of 0", node("Resize", {"x", "", "s"}) + floats("s", {1.0f, 1.0f, 0.0f, 1.0f})},
          {"it resizes batch or channels", node("Resize", {"x", "", "s"}) + floats("s", {1.0f, 2.0f, 1.0f, 1.0f})},
          {"axis 2 of rank 4; only the channels are supported", node("Softmax", {"x"}, integer("axis", 2))},
      },
      kImage);
}

TEST_CASE("onnx import: what a node may not do with the axes of an image") {
  check_refused(
      {
          {"its shape copies dimension 4 of a value of rank 4", node("Reshape", {"x", "s"}) + longs("s", {1, 3, 8, 8, 0})},
          {"its shape has the extent -1 for 192 elements", node("Reshape", {"x", "s"}) + longs("s", {1, -1, -1})},
          {"its shape has more than the value's 192 elements", node("Reshape", {"x", "s"}) + longs("s", {1, 192, 2})},
          {"its shape does not have the value's 192 elements", node("Reshape", {"x", "s"}) + longs("s", {1, 7, -1})},
          {"it changes the batch axis", node("Reshape", {"x", "s"}) + longs("s", {2, 96})},
          {"a result of rank 7; at most 6", node("Reshape", {"x", "s"}) + longs("s", {1, 192, 1, 1, 1, 1, 1})},
          {"axis 9", node("Flatten", {"x"}, integer("axis", 9))},
          {"axis 9 of a value of rank 4", node("Squeeze", {"x", "a"}) + longs("a", {9})},
          {"it squeezes axis 1 of extent 3", node("Squeeze", {"x", "a"}) + longs("a", {1})},
          {"it changes the batch axis", node("Unsqueeze", {"x", "a"}) + longs("a", {0})},
          {"its axes repeat", node("Unsqueeze", {"x", "a"}) + longs("a", {2, 2})},
          {"perm has 3 entries for rank 4", node("Transpose", {"x"}, list("perm", {0, 1, 2}))},
          {"perm repeats axis 1", node("Transpose", {"x"}, list("perm", {0, 1, 1, 2}))},
          {"it moves the batch axis", node("Transpose", {"x"}, list("perm", {1, 0, 2, 3}))},
          {"starts, ends, axes and steps differ in length", node("Slice", {"x", "a", "b"}) + longs("a", {0}) + longs("b", {1, 1})},
          {"it slices the batch axis", node("Slice", {"x", "a", "b"}) + longs("a", {0}) + longs("b", {1})},
          {"it splits the batch axis", node("Split", {"x"}, {}, {"y", "z"})},
          {"a part of 0 of 3", node("Split", {"x", "s"}, integer("axis", 1), {"y", "z"}) + longs("s", {0, 3})},
          {"2 parts of together 2 for 2 outputs of together 3", node("Split", {"x", "s"}, integer("axis", 1), {"y", "z"}) + longs("s", {1, 1})},
          {"mode edge; only constant padding with 0", node("Pad", {"x", "p"}, word("mode", "edge")) + longs("p", Ints(8, 0))},
          {"it pads with another value than 0", node("Pad", {"x", "p", "v"}) + longs("p", Ints(8, 0)) + scalar("v", 1.0f)},
          {"3 pads for 4 axes", node("Pad", {"x", "p"}) + longs("p", {0, 0, 0})},
          {"pads -1 and 0 of an axis", node("Pad", {"x", "p"}) + longs("p", {0, 0, -1, 0, 0, 0, 0, 0})},
          {"it pads the batch axis", node("Pad", {"x", "p"}) + longs("p", {1, 0, 0, 0, 0, 0, 0, 0})},
          {"inputs of ranks 4 and 2", node("Flatten", {"x"}, {}, {"f"}) + node("Concat", {"x", "f"}, integer("axis", 1))},
          {"it has no input", node("Concat", {}, integer("axis", 1))},
          {"it joins along the batch axis", node("Concat", {"x", "x"}, integer("axis", 0))},
          {"its result has no elements: [1,8,8,0]", node("Slice", {"x", "a", "b", "c"}) + longs("a", {1}) + longs("b", {1}) + longs("c", {1})},
      },
      kImage);
}

TEST_CASE("onnx import: what a node on a vector may not ask for") {
  const std::string w = zeros("w", {12, 4});
  check_refused(
      {
          {"a weight of rank 1", node("MatMul", {"x", "w"}) + zeros("w", {12})},
          {"a weight for 5 inputs on a value of rank 2 with 12", node("MatMul", {"x", "w"}) + zeros("w", {5, 4})},
          {"its bias has 3 values, 4 are needed", node("Gemm", {"x", "w", "b"}) + w + zeros("b", {3})},
          {"its bias has 4 values, 4 are needed", node("Gemm", {"x", "w", "b"}) + w + zeros("b", {4, 1})},
          {"transA = 1", node("Gemm", {"x", "w"}, integer("transA", 1)) + w},
          {"an input of rank 2; only two-dimensional pools", node("AveragePool", {"x"}, list("kernel_shape", {2, 2}))},
          {"an input of rank 2", node("GlobalMaxPool", {"x"})},
          {"an input of rank 2", node("Resize", {"x", "", "s"}) + floats("s", {1.0f, 1.0f})},
      },
      kVector);
}

TEST_CASE("onnx import: grids that contradict each other") {
  const std::string s = scalar("s", 0.5f), t = scalar("t", 0.25f), two = floats("two", {0.5f, 0.25f}), q = node("QuantizeLinear", {"x", "s"}, {}, {"q"});
  const std::string codes = tensor("codes", kUint8Type, {3}, std::vector<uint8_t>{1, 2, 3}), weight = zeros("weight", {3});
  check_refused(
      {
          {"its scale has rank 2; blockwise", node("QuantizeLinear", {"x", "m"}) + zeros("m", {1, 1})},
          {"blockwise quantization", node("QuantizeLinear", {"x", "s"}, integer("block_size", 2)) + s},
          {"2 zero points for 1 scales", node("QuantizeLinear", {"x", "s", "z"}) + s + tensor("z", kUint8Type, {2}, std::vector<uint8_t>{0, 0})},
          {"codes of element type 7", node("QuantizeLinear", {"x", "s", "z"}) + s + tensor("z", kInt64Type, {}, Ints{0})},
          {"a grid of scale 0 and zero point 0", node("QuantizeLinear", {"x", "s"}) + scalar("s", 0.0f)},
          {"2 scales along axis 0", node("QuantizeLinear", {"weight", "two"}, integer("axis", 0)) + weight + two},
          {"a value with a grid for each channel", node("QuantizeLinear", {"x", "two"}) + two},
          {"is quantized twice, with different grids", node("Relu", {"x"}, {}, {"r"}) + node("QuantizeLinear", {"r", "s"}, {}, {"a"}) + node("QuantizeLinear", {"r", "t"}) + s + t},
          {"it has no input", node("DequantizeLinear", {"", "s"}) + s},
          {"its codes do not come from QuantizeLinear", node("DequantizeLinear", {"x", "s"}) + s},
          {"its grid is not that of its QuantizeLinear", q + node("DequantizeLinear", {"q", "t"}) + s + t},
          {"its codes are floats", node("DequantizeLinear", {"weight", "s"}) + weight + s},
          {"2 scales along axis 0", node("DequantizeLinear", {"codes", "two"}, integer("axis", 0)) + codes + two},
          {"the code 300 outside of 0..255", node("DequantizeLinear", {"i", "s", "z"}) + tensor("i", kInt32Type, {1}, std::vector<int32_t>{300}) + s + code("z", 0)},
      },
      kImage);
}

TEST_CASE("onnx import: constants that cannot be computed") {
  const std::string four = longs("four", {1, 2, 3, 4}), three = longs("three", {1, 2, 3}), real4 = floats("real4", {1.0f, 2.0f, 3.0f, 4.0f}), grid = zeros("grid", {2, 2}),
                    many = longs("many", {1 << 20});
  std::string chain = scalar("e0", 1.0f) + many;
  for (int i = 0; i < 6; ++i) chain += node("Expand", {text("e", i), "many"}, {}, {text("e", i + 1)});
  check_refused(
      {
          {"a constant with the extent -2", node("Reshape", {"four", "s"}) + four + longs("s", {-2})},
          {"axis 5 of a constant of rank 1", node("Gather", {"four", "three"}, integer("axis", 5)) + four + three},
          {"axis 4 of a constant of rank 4", node("Gather", {"four", "i"}) + four + longs("i", {4})},
          {"a constant of 4 values given another number of elements", node("Reshape", {"four", "s"}) + four + longs("s", {3})},
          {"perm has 2 entries", node("Transpose", {"four"}, list("perm", {0, 1})) + four},
          {"constants of extents 4 and 3", node("Add", {"four", "three"}) + four + three},
          {"constants 1 and 0", node("Div", {"a", "b"}) + longs("a", {1}) + longs("b", {0})},
          {"constants of these types", node("Mul", {"four", "real4"}) + four + real4},
          {"the constant 1e+30 as an integer", node("Cast", {"a"}, integer("to", kInt64Type)) + floats("a", {1e30f})},
          {"starts, ends, axes and steps differ in length", node("Slice", {"four", "a", "three"}) + four + three + longs("a", {0})},
          {"a step of 0 on a constant", node("Slice", {"four", "a", "b", "a", "a"}) + four + longs("a", {0}) + longs("b", {2})},
          {"a gather with these constants", node("Gather", {"four", "real4"}) + four + real4},
          {"constants of rank 2 joined", node("Concat", {"grid", "grid"}, integer("axis", 0)) + grid},
          {"it has no value that is supported", node("Constant", {}, word("value_string", "a"))},
          {"a shape or value of the wrong type", node("ConstantOfShape", {"real4"}) + real4},
          {"a constant of more than 2^20 elements", node("ConstantOfShape", {"s"}) + longs("s", {1 << 21})},
          {"a constant of more than 2^20 elements", node("Expand", {"four", "s"}) + four + longs("s", {1 << 21, 4})},
          {"a choice between these constants", node("Where", {"four", "real4", "four"}) + four + real4},
          {"it has no second operand", node("Add", {"four"}) + four},
          {"constants of these types", node("Equal", {"real4", "real4"}) + real4},
          {"a choice between these constants", node("Where", {"real4", "four", "four"}) + four + real4},
          {"a choice between these constants", node("Where", {"four", "three", "four"}) + four + three},
          {"a choice between these constants", node("Where", {"four", "four", "three"}) + four + three},
          {"a choice between these constants", node("Where", {"four", "four", "real4"}) + four + real4},
          {"its constants are too many to compute", chain},
      },
      kImage);
}

TEST_CASE("onnx import: tensors that do not hold what they declare") {
  const std::string sum = node("Add", {"x", "w"}) + kImage + kOutput, w = bytes(8, "w"), f = number(2, kFloatType);
  const auto entry = [](const char* key, const std::string& value) { return bytes(13, bytes(1, key) + bytes(2, value)); };
  const auto outside = [&](const std::string& rest) { return sum + bytes(5, number(1, 3) + f + w + number(14, 1) + entry("location", "w.bin") + rest); };
  const TempFolder folder;
  spill(folder / "w.bin", std::string(16, '\0'));
  const std::vector<Row> rows = {
      {"tensor \"w\" has element type 99", sum + bytes(5, number(1, 1) + number(2, 99) + w)},
      {"tensor \"w\" has 9 dimensions; at most 8", sum + zeros("w", Ints(9, 1))},
      {"tensor \"w\" has the extent -4", sum + bytes(5, number(1, -4) + f + w)},
      {"tensor \"w\" declares more than 2^40 elements", sum + bytes(5, number(1, int64_t{1} << 30) + number(1, int64_t{1} << 30) + f + w)},
      {"4 bytes of data, its shape needs 12", sum + bytes(5, number(1, 3) + f + w + bytes(9, "abcd"))},
      {"0 values, its shape needs 3", sum + bytes(5, number(1, 3) + f + w)},
      {"external data offset \"12a\" is not a number", outside(entry("offset", "12a"))},
      {"external data offset \"\" is not a number", outside(entry("offset", ""))},
      {"external data offset \"1234567890123456789\" is not a number", outside(entry("offset", "1234567890123456789"))},
      {"external data has 16 bytes, its shape needs 12", outside(entry("length", "16"))},
      {"bytes 8..20 lie behind the end of", outside(entry("offset", "8"))},
  };
  for (const Row& r : rows) CHECK_CONTAINS(import_error(onnx_model(r.graph), folder.path()), std::string(r.reason));
  CHECK_CONTAINS(import_error(onnx_model(outside({}))), "the model was read from memory");
}

TEST_CASE("onnx import: numbers in a tensor's typed fields are those of its bytes") {
  const auto result = [](const std::string& c) {
    nn::Graph g = std::move(io::parse_onnx(onnx_model(node("Add", {"x", "w"}) + c + onnx_value(11, "x", {1, 3}) + kOutput), "test").graph);
    return outputs_of(g, Tensor::zeros({1, 3}))[0].to_vector<float>();
  };
  const auto field = [](int type, int number_of_field, const std::string& packed) {
    return bytes(5, number(1, 3) + number(2, type) + bytes(8, "w") + bytes(number_of_field, packed));
  };
  const Floats one_two_three = {1.0f, 2.0f, 3.0f};
  const std::vector<double> doubles = {1.0, 2.0, 3.0};
  constexpr int kFloat16Type = 10, kDoubleType = 11, kBfloat16Type = 16;
  CHECK(result(field(kFloatType, 4, std::string(reinterpret_cast<const char*>(one_two_three.data()), 12))) == one_two_three);
  CHECK(result(field(kDoubleType, 10, std::string(reinterpret_cast<const char*>(doubles.data()), 24))) == one_two_three);
  CHECK(result(field(kFloat16Type, 5, varint(0x3c00) + varint(0x4000) + varint(0x4200))) == one_two_three);
  CHECK(result(field(kBfloat16Type, 5, varint(0x3f80) + varint(0x4000) + varint(0x4040))) == one_two_three);
  // Integers reach a network as sizes.
  const auto shaped = [](const std::string& shape) {
    return io::parse_onnx(onnx_model(node("Reshape", {"x", "w"}) + shape + onnx_value(11, "x", {1, 6}) + kOutput), "test").graph;
  };
  const nn::Graph g = shaped(field(kInt64Type, 7, varint(1) + varint(2) + varint(3)));
  CHECK(g.value(g.outputs()[0]).shape == Shape{1, 2, 3});
}

TEST_CASE("onnx import: slices of constants as ONNX defines them, backwards and beyond the ends") {
  constexpr int64_t kMost = INT64_MAX;
  const struct {
    int64_t start, end, step;
    Floats elements;
  } rows[] = {{-1, -kMost, -1, {5, 4, 3, 2, 1}},    {3, 0, -2, {4, 2}},     {4, -6, -3, {5, 2}},    {100, 1, -1, {5, 4, 3}}, {-100, -200, -1, {1}},
              {kMost, -kMost - 1, -kMost - 1, {5}}, {0, kMost, kMost, {1}}, {-2, kMost, 1, {4, 5}}, {1, 4, 2, {2, 4}}};
  for (const auto& r : rows) {
    const auto n = static_cast<int64_t>(r.elements.size());
    const std::string slice = node("Slice", {"five", "start", "end", "axis", "step"}, {}, {"c"}) + floats("five", {1, 2, 3, 4, 5}) + longs("start", {r.start}) +
                              longs("end", {r.end}) + longs("axis", {0}) + longs("step", {r.step});
    nn::Graph g = std::move(io::parse_onnx(onnx_model(slice + node("Add", {"x", "c"}) + onnx_value(11, "x", {1, n}) + kOutput), "test").graph);
    CHECK(outputs_of(g, Tensor::zeros({1, n}))[0].to_vector<float>() == r.elements);
  }
  const std::string empty = node("Slice", {"five", "start", "end", "axis", "step"}, {}, {"c"}) + longs("start", {1}) + longs("end", {3}) + longs("axis", {0}) + longs("step", {-1});
  for (const Floats& five : {Floats{1, 2, 3, 4, 5}, Floats{}})
    CHECK_CONTAINS(import_error(onnx_model(empty + floats("five", five) + node("Add", {"x", "c"}) + kVector + kOutput)), "a constant of 0 values");
}

TEST_CASE("onnx import: a Resize by scales") {
  const auto resized = [](const Floats& scales, const char* coordinates = "half_pixel") {
    return onnx_model(node("Resize", {"x", "", "s"}, word("coordinate_transformation_mode", coordinates)) + floats("s", scales) + onnx_value(11, "x", {1, 2, 3, 10}) + kOutput);
  };
  // 10/3 and 0.7 in float are below the quotients; ONNX Runtime multiplies in float and comes to whole pixels.
  const nn::Graph g = std::move(io::parse_onnx(resized({1.0f, 1.0f, 10.0f / 3.0f, 0.7f}), "test").graph);
  CHECK(g.value(g.outputs()[0]).shape == Shape{1, 10, 7, 2});
  CHECK_CONTAINS(import_error(resized({1.0f, 1.0f, 1.5f, 1.0f})), "a scale of 1.5 gives 4.5 pixels, which is no whole number");
  CHECK(import_error(resized({1.0f, 1.0f, 1.5f, 1.0f}, "align_corners")).empty());
}

TEST_CASE("onnx import: networks that are none") {
  const std::string relu = node("Relu", {"x"}), both = kImage + kOutput, shaped = onnx_value(11, "x", {1, 3, 8, 8});
  const auto input = [](const std::string& type) { return bytes(11, bytes(1, "x") + bytes(2, bytes(1, type))); };
  std::string many;
  for (int i = 0; i <= 20000; ++i) many += node("Relu", {"x"}, {}, {text("r", i)});
  std::string einsums;
  for (int i = 0; i <= 100; ++i) einsums += node("Einsum", {"x"}, {}, {text("r", i)});
  const std::vector<Row> rows = {
      {"it holds no network", both},
      {"20001 nodes; at most 20000", many + both},
      {"a name has 5000 bytes", node("Relu", {std::string(5000, 'a')}) + both},
      {"a name is not UTF-8 text", node("Relu", {"\xff"}) + both},
      {"a name is not UTF-8 text", relu + both + zeros("\xc0\x80", {1})},
      {"an initializer has no name", relu + both + zeros("", {1})},
      {"two initializers are named \"w\"", relu + both + zeros("w", {1}) + zeros("w", {1})},
      {"two nodes or initializers are named \"y\"", relu + relu + both},
      {"two nodes or initializers are named \"y\"", relu + both + zeros("y", {1})},
      {"the network is cyclic: node \"the node\" (Add)", node("Add", {"x", "b"}, {}, {"a"}) + node("Relu", {"a"}, {}, {"b"}) + both},
      {"input \"x\" has element type 7; float is needed", relu + kOutput + input(number(1, kInt64Type) + bytes(2, ""))},
      {"input \"x\" has no shape, or not 2 to 6 dimensions", relu + kOutput + input(number(1, kFloatType))},
      {"input \"x\" has no shape, or not 2 to 6 dimensions", relu + kOutput + onnx_value(11, "x", {1})},
      {"input \"x\": dimension 1 is open", relu + kOutput + onnx_value(11, "x", {1, -1})},
      {"input \"x\": dimension 2 is open; give the image size", relu + kOutput + onnx_value(11, "x", {1, 3, 0, 0})},
      {"input \"x\": dimension 2 is 20000", relu + kOutput + onnx_value(11, "x", {1, 3, 20000, 8})},
      {"the name \"x\" is taken", relu + kImage + kImage + kOutput},
      {"it has no input", node("Constant", {}, real("value_float", 1.0f)) + kOutput},
      {"output \"z\" is not computed by the network", relu + kImage + onnx_value(12, "z", {1})},
      {"output \"x\" is an input", relu + kImage + onnx_value(12, "x", {1})},
      {"it has no output", relu + kImage},
      {"101 nodes cannot be imported", einsums + both},
  };
  for (const Row& r : rows) CHECK_CONTAINS(import_error(onnx_model(r.graph)), std::string(r.reason));
  CHECK_CONTAINS(import_error(onnx_model(node("Softmax", {"x"}) + both, 12)), "axis 1 of rank 4; only the channels are supported");
  CHECK_CONTAINS(import_error(onnx_model(relu + both, 99)), "opset 99; opsets 11 to 21 are read");
  CHECK_CONTAINS(import_error(onnx_model(relu + both).substr(0, 40)), "it is damaged or not an ONNX model");
}

TEST_CASE("onnx import: every operator that is not supported is named, also behind another one") {
  const std::string chain =
      node("Erf", {"x"}, {}, {"a"}) + node("Relu", {"a"}, {}, {"b"}) + node("LSTM", {"b"}, {}, {"c"}) + node("Identity", {"c"}, {}, {"d"}) + node("Det", {"d"});
  const std::string e = import_error(onnx_model(chain + kImage + kOutput));
  CHECK_CONTAINS(e, "3 nodes cannot be imported");
  for (const char* op : {"(Erf)", "(LSTM)", "(Det)"}) CHECK_CONTAINS(e, std::string(op) + ": the operator is not supported");
  CHECK(e.find("Relu") == std::string::npos);
  // A zero byte in a name does not end the list.
  std::string named = node("Er#f", {"x"}, {}, {"a"});
  named[named.find('#')] = '\0';
  const std::string zero = import_error(onnx_model(named + node("Det", {"x"}) + kImage + kOutput));
  CHECK_CONTAINS(zero, "(Er?f): the operator is not supported");
  CHECK_CONTAINS(zero, "(Det): the operator is not supported");
}

TEST_CASE("onnx import: a file of more than 2 GiB is refused before a byte of it is read") {
  const size_t size = (size_t{1} << 31) + 1;
  void* nothing = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(nothing != MAP_FAILED);
  const std::string e = error_of([&] { io::parse_onnx({static_cast<const char*>(nothing), size}, "test"); });
  ::munmap(nothing, size);
  CHECK_CONTAINS(e, "an ONNX file has at most 2 GiB");
}

TEST_CASE("onnx weights: initializers that cannot be read are refused with the file's name") {
  const TempFolder folder;
  spill(folder / "net.onnx", onnx_model(bytes(5, number(1, 3) + number(2, kFloatType) + bytes(8, "w") + bytes(9, "abcd"))));
  CHECK_CONTAINS(error_of([&] { io::onnx_initializers(folder / "net.onnx"); }), "net.onnx");
}
