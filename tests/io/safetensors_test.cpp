#include "detent/io/safetensors.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "detent/core/rng.h"
#include "detent/tests/support/test_data.h"

using namespace detent;

namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t n = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out + header + data;
}

io::SafeTensors parse(const std::string& bytes, io::TensorTypes types = io::TensorTypes::nearest) {
  return io::parse_safetensors({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, types, "file");
}

// The message of the error, or "" when the bytes were accepted.
std::string refusal(const std::string& bytes) {
  try {
    parse(bytes);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

std::vector<io::NamedTensor> sample() {
  const std::vector<int32_t> ints = {7, -8};
  const std::vector<uint8_t> codes = {0, 200, 255};
  const std::vector<int64_t> steps = {int64_t{1} << 40};
  return {{"a", Tensor::from(Shape{2, 3}, {1.0f, -2.0f, 3.5f, 0.0f, 1e-30f, 4.0f})},
          {"codes", Tensor::from<uint8_t>(Shape{3}, codes)},
          {"b.weight", Tensor::from<int32_t>(Shape{2}, ints)},
          {"none", Tensor(Shape{0, 4})},
          {"steps", Tensor::from<int64_t>(Shape{1}, steps)},
          {"scalar", Tensor::full(Shape{}, 0.25f)}};
}

const io::Metadata kSampleMetadata = {{"format", "pt"}, {"quote", "a \"b\""}};

template <class T>
std::vector<T> values(const io::SafeTensors& file, const char* name) {
  const Tensor* t = file.find(name);
  REQUIRE(t);
  return t->to_vector<T>();
}

}  // namespace

TEST_CASE("reads_every_element_type_of_the_reference_library") {
  const io::SafeTensors f = io::load_safetensors(test::golden("python.safetensors"));
  CHECK(f.tensors.size() == 16);
  CHECK(f.metadata == io::Metadata{{"made by", "tests/golden/make_safetensors.py"}, {"\u00e9", "\u00fc"}});
  CHECK(values<uint8_t>(f, "bool") == std::vector<uint8_t>{1, 0, 1});
  CHECK(values<uint8_t>(f, "u8") == std::vector<uint8_t>{0, 128, 255});
  CHECK(values<int8_t>(f, "i8") == std::vector<int8_t>{-128, 0, 127});
  CHECK(values<int32_t>(f, "i16") == std::vector<int32_t>{-32768, 32767});
  CHECK(values<int32_t>(f, "u16") == std::vector<int32_t>{0, 65535});
  CHECK(values<uint16_t>(f, "bf16") == std::vector<uint16_t>{0x3F80, 0xC000, 0x7F80});
  CHECK(values<int32_t>(f, "i32") == std::vector<int32_t>{std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()});
  CHECK(values<int64_t>(f, "u32") == std::vector<int64_t>{0, 4294967295});
  CHECK(values<int64_t>(f, "i64") == std::vector<int64_t>{std::numeric_limits<int64_t>::min(), 9007199254740993});
  CHECK(values<int64_t>(f, "u64") == std::vector<int64_t>{std::numeric_limits<int64_t>::max()});
  const std::vector<float> f32 = values<float>(f, "f32");
  for (int i = 0; i < 6; ++i) CHECK(f32[i] == static_cast<float>(i * 0.1));
  CHECK(f.find("f32")->shape() == Shape{2, 3});
  CHECK(f.find("scalar")->shape() == Shape{});
  CHECK(f.find("scalar")->item() == 2.5f);
  CHECK(f.find("empty")->shape() == Shape{0, 3});
  CHECK(values<float>(f, "name \u00e9 \"quoted\"") == std::vector<float>{7.0f});
  CHECK(f.find("missing") == nullptr);

  const std::vector<float> half = values<float>(f, "f16");
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> expected = {0.0f, -0.0f, 0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f, 1.0f, 65504.0f, inf, -inf};
  for (size_t i = 0; i < expected.size(); ++i) CHECK(half[i] == expected[i]);
  CHECK(std::signbit(half[1]));
  CHECK(std::isnan(half[9]));
  const std::vector<float> f64 = values<float>(f, "f64");
  CHECK(f64[0] == 1.0f / 3.0f);
  CHECK(f64[1] == inf);
  CHECK(std::signbit(f64[2]));
  for (const io::NamedTensor& t : f.tensors) {
    if (t.name == "f16") CHECK(t.stored_dtype == "F16");
  }
}

TEST_CASE("converts_to_f32_where_asked") {
  const io::SafeTensors f = io::load_safetensors(test::golden("python.safetensors"), io::TensorTypes::f32);
  for (const io::NamedTensor& t : f.tensors) CHECK_MESSAGE(t.tensor.dtype() == DType::f32, t.name);
  CHECK(values<float>(f, "bool") == std::vector<float>{1, 0, 1});
  CHECK(values<float>(f, "i8") == std::vector<float>{-128, 0, 127});
  CHECK(values<float>(f, "i16") == std::vector<float>{-32768, 32767});
  CHECK(values<float>(f, "bf16") == std::vector<float>{1.0f, -2.0f, std::numeric_limits<float>::infinity()});
  CHECK(values<float>(f, "u32") == std::vector<float>{0.0f, 0x1p32f});
  CHECK(values<float>(f, "i64") == std::vector<float>{-0x1p63f, 0x1p53f});
  CHECK(values<float>(f, "u64") == std::vector<float>{0x1p63f});
}

TEST_CASE("u64_past_63_bits_is_an_error_that_says_so") {
  std::string bytes = file_of(R"({"x":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}})", std::string(8, '\xff'));
  CHECK(refusal(bytes) == "file: tensor 'x' (U64) element 0 does not fit 63 bits; read it as f32");
  CHECK(values<float>(parse(bytes, io::TensorTypes::f32), "x") == std::vector<float>{0x1p64f});
}

TEST_CASE("conversion_of_large_tensors_is_seamless") {
  const size_t n = 40000;  // more than one chunk
  std::string data(n * 2, '\0');
  for (size_t i = 0; i < n; ++i) {
    const auto v = static_cast<int16_t>(i - 20000);
    std::memcpy(data.data() + 2 * i, &v, 2);
  }
  const io::SafeTensors f = parse(file_of(R"({"x":{"dtype":"I16","shape":[40000],"data_offsets":[0,80000]}})", data));
  const std::vector<int32_t> x = values<int32_t>(f, "x");
  int64_t wrong = 0;
  for (size_t i = 0; i < n; ++i) wrong += x[i] != static_cast<int32_t>(i) - 20000;
  CHECK(wrong == 0);
}

TEST_CASE("writer_bytes") {
  const std::string bytes = io::safetensors_bytes(sample(), kSampleMetadata);
  CHECK(bytes == io::safetensors_bytes(sample(), kSampleMetadata));
  CHECK(io::is_safetensors({reinterpret_cast<const uint8_t*>(bytes.data()), 9}));
  if (const char* folder = std::getenv("DETENT_WRITE_GOLDEN")) io::save_safetensors(std::string(folder) + "/detent.safetensors", sample(), kSampleMetadata);
  // This file was read back by the reference library: make_safetensors.py --check.
  CHECK(bytes == read_file(test::golden("detent.safetensors")));
}

TEST_CASE("what_is_written_is_read_back") {
  const test::TemporaryFolder folder;
  const std::string path = folder.file("x.safetensors");
  io::save_safetensors(path, sample(), kSampleMetadata);
  const io::SafeTensors f = io::load_safetensors(path);
  CHECK(f.metadata == kSampleMetadata);
  for (const io::NamedTensor& want : sample()) {
    const Tensor* got = f.find(want.name);
    REQUIRE(got);
    CHECK(got->shape() == want.tensor.shape());
    REQUIRE(got->dtype() == want.tensor.dtype());
    CHECK(std::memcmp(got->raw(), want.tensor.raw(), static_cast<size_t>(got->bytes())) == 0);
  }
  // Larger element types first, so that every tensor is aligned; otherwise in the given order.
  std::vector<std::string> order;
  for (const io::NamedTensor& t : f.tensors) order.push_back(t.name);
  CHECK(order == std::vector<std::string>{"steps", "a", "b.weight", "none", "scalar", "codes"});

  CHECK(io::parse_safetensors({reinterpret_cast<const uint8_t*>(io::safetensors_bytes({}).data()), 16}).tensors.empty());
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) files += entry.is_regular_file();
  CHECK(files == 1);  // no temporary file left
}

TEST_CASE("writer_refuses_what_the_format_cannot_hold") {
  const Tensor t = Tensor::zeros(Shape{1});
  CHECK_THROWS_WITH_AS(io::safetensors_bytes(std::vector<io::NamedTensor>{{"a", t}, {"a", t}}), "safetensors: the name 'a' is used twice; rename one", Error);
  CHECK_THROWS_WITH_AS(io::safetensors_bytes(std::vector<io::NamedTensor>{{"__metadata__", t}}), "safetensors: the name '__metadata__' is reserved; rename one", Error);
  CHECK_THROWS_WITH_AS(io::safetensors_bytes(std::vector<io::NamedTensor>{{"a", Tensor()}}), "safetensors: tensor 'a' is undefined; give it a value or leave it out", Error);
  CHECK_THROWS_AS(io::safetensors_bytes(std::vector<io::NamedTensor>{{"\xff\xfe", t}}), Error);
  CHECK_THROWS_AS(io::safetensors_bytes(std::vector<io::NamedTensor>{{"a", t}}, {{"k", "\xc3"}}), Error);
  CHECK_THROWS_AS(io::save_safetensors("/nonexistent-folder/x.safetensors", std::vector<io::NamedTensor>{{"a", t}}), Error);
}

TEST_CASE("every_hostile_header_is_refused_with_its_reason") {
  const auto one = [](const char* dtype, const char* shape, const char* offsets) {
    return text(R"({"x":{"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)", offsets, "}}");
  };
  const std::string four(4, '\0'), eight(8, '\0');
  const std::string f32 = one("F32", "[1]", "[0,4]");
  CHECK(refusal(file_of(f32, four)) == "");
  CHECK(refusal(file_of(f32 + "   ", four)) == "");  // padding is allowed

  struct Row {
    std::string bytes;
    const char* reason;
  };
  std::string huge_length = file_of(f32, four), long_length = huge_length, limit = huge_length;
  std::memset(huge_length.data(), 0xff, 8);
  long_length[0] = static_cast<char>(huge_length.size());
  const uint64_t above = 100'000'001;
  std::memcpy(limit.data(), &above, 8);
  const std::string x = R"("x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::vector<Row> rows = {
      {"", "too few"},
      {"\x01", "too few"},
      {std::string(9, '\0'), "too few"},
      {std::string(10, '\0'), "does not begin with '{'"},
      {huge_length, "the header claims 18446744073709551615 bytes"},
      {long_length, "it is cut or damaged"},
      {limit, "the format allows 100000000"},
      {file_of(" " + f32, four), "does not begin with '{'"},
      {file_of("[]", four), "does not begin with '{'"},
      {file_of("{", four), "not valid JSON at byte"},
      {file_of(f32 + "x", four), "not valid JSON"},
      {file_of(f32 + std::string(1, '\0'), four), "zero byte at byte"},
      {file_of("{\"\xff\":1}", four), "not valid JSON"},
      {file_of("{" + x + "," + x + "}", four), "'x' appears twice"},
      {file_of("{\"__metadata__\":{},\"__metadata__\":{}}"), "'__metadata__' appears twice"},
      {file_of("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), "metadata key 'a' appears twice"},
      {file_of("{\"__metadata__\":{\"a\":1}}"), "has a number where it does not belong"},
      {file_of("{\"__metadata__\":{\"a\":{}}}"), "an object where it does not belong"},
      {file_of("{\"__metadata__\":[]}"), "an array where it does not belong"},
      {file_of("{\"x\":1}", four), "a number where it does not belong"},
      {file_of("{\"x\":null}", four), "null where it does not belong"},
      {file_of("{\"x\":{}}", four), "lacks its dtype, shape or two data_offsets"},
      {file_of(one("F32", "[1]", "[0]"), four), "lacks its dtype"},
      {file_of(one("F32", "[1]", "[0,4,8]"), four), "more than two data_offsets"},
      {file_of(one("F32", "[[1]]", "[0,4]"), four), "an array where it does not belong"},
      {file_of(one("F32", "[-1]", "[0,4]"), four), "a negative number"},
      {file_of(one("F32", "[1.0]", "[0,4]"), four), "not an integer"},
      {file_of(one("F32", "[true]", "[0,4]"), four), "a boolean"},
      {file_of(one("F32", "\"1\"", "[0,4]"), four), "a string where it does not belong"},
      {file_of(one("F32", "[1,1,1,1,1,1,1]", "[0,4]"), four), "more than 6 dimensions"},
      {file_of(one("F32", "[18446744073709551615]", "[0,4]"), four), "an extent of 18446744073709551615"},
      {file_of(one("F32", "[18446744073709551616]", "[0,4]"), four), "not an integer below 2^63"},
      {file_of(one("F32", "[4294967296,4294967296]", "[0,4]"), four), "more than 2^63 bytes"},
      {file_of(one("F32", "[0,4294967296,4294967296]", "[0,0]")), "more than 2^63 bytes"},
      {file_of(one("F32", "[2305843009213693952]", "[0,4]"), four), "more than 2^63 bytes"},
      {file_of(one("F8_E4M3", "[4]", "[0,4]"), four), "dtype F8_E4M3, which is not supported"},
      {file_of(one("f32", "[1]", "[0,4]"), four), "dtype f32, which is not supported"},
      {file_of(one("F32", "[2]", "[0,4]"), four), "needs 8 bytes, its data_offsets span 4"},
      {file_of(one("F16", "[1]", "[0,4]"), four), "needs 2 bytes, its data_offsets span 4"},
      {file_of(one("F32", "[0]", "[0,4]"), four), "needs 0 bytes, its data_offsets span 4"},
      {file_of(one("F32", "[1]", "[4,0]"), four), "lies at bytes 4 to 0"},
      {file_of(one("F32", "[1]", "[0,4]"), "abc"), "the file is cut or damaged"},
      {file_of(one("F32", "[1]", "[0,4]"), eight), "the tensors end at byte 4 of the data, which has 8"},
      {file_of(one("F32", "[1]", "[4,8]"), eight), "begins at byte 4 of the data, the one before ends at 0"},
      {file_of(one("F32", "[1]", "[18446744073709551612,18446744073709551616]"), four), "not an integer below 2^63"},
      {file_of("{" + x + R"(,"y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", "abcdef"), "begins at byte 2 of the data, the one before ends at 4"},
      {file_of("{" + x + R"(,"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", four), "begins at byte 0 of the data, the one before ends at 4"},
      {file_of("{" + x + R"(,"y":{"dtype":"F32","shape":[0],"data_offsets":[2,2]}})", four), "begins at byte 2 of the data"},
      {file_of(R"({"x":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", four), "two dtypes"},
      {file_of(R"({"x":{"dtype":"F32","shape":[],"shape":[1],"data_offsets":[0,4]}})", four), "two fields 'shape'"},
      {file_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"file":"/etc/passwd"}})", four), "unknown field 'file'"},
  };
  for (const Row& row : rows) {
    const std::string message = refusal(row.bytes);
    CAPTURE(message);
    CAPTURE(row.bytes.substr(row.bytes.size() < 8 ? 0 : 8));
    CAPTURE(std::string(row.reason));
    CHECK(message.starts_with("file: "));
    CHECK(message.find(row.reason) != std::string::npos);
  }
}

TEST_CASE("deep_nesting_and_many_names_stay_cheap") {
  CHECK(refusal(file_of("{\"x\":" + std::string(1'000'000, '['))) != "");
  std::string braces;
  for (int i = 0; i < 200'000; ++i) braces += "{\"x\":";
  CHECK(refusal(file_of(braces)) != "");
  std::string many = "{";
  for (int i = 0; i < 100'000; ++i) many += text(i ? "," : "", "\"t", i, R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  CHECK(parse(file_of(many + "}")).tensors.size() == 100'000);
}

TEST_CASE("a_file_cut_anywhere_is_refused") {
  const std::string whole = io::safetensors_bytes(sample(), kSampleMetadata);
  const test::TemporaryFolder folder;
  const std::string path = folder.file("cut.safetensors");
  for (size_t n = 0; n < whole.size(); ++n) {
    CHECK_MESSAGE(refusal(whole.substr(0, n)) != "", "cut to ", n, " bytes");
    if (n % 37 == 0) {
      std::ofstream(path, std::ios::binary) << whole.substr(0, n);
      CHECK_THROWS_AS(io::load_safetensors(path), Error);
    }
  }
  CHECK(refusal(whole + "x") != "");
}

TEST_CASE("a_flipped_bit_is_refused_or_harmless") {
  const std::string whole = io::safetensors_bytes(sample(), kSampleMetadata);
  const size_t header_end = whole.find("data_offsets", whole.find("\"codes\"")) + 40;
  int refused = 0;
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    refused += refusal(bytes) != "";
  }
  // The format has no checksum: a flip inside a name, a metadata text or the data passes; most flips in the header cannot.
  CHECK(refused > static_cast<int>(header_end * 8) / 2);
}

TEST_CASE("random_bytes_are_refused") {
  Rng rng(5, 0);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = file_of(std::string(static_cast<size_t>(rng.below(64)), '{'), std::string(static_cast<size_t>(rng.below(64)), '\0'));
    for (size_t i = 8; i < bytes.size(); ++i) {
      constexpr std::string_view alphabet = "{}[]\":,0123456789.-eF32x \\u";
      bytes[i] = alphabet[static_cast<size_t>(rng.below(static_cast<int64_t>(alphabet.size())))];
    }
    if (bytes.size() > 8) bytes[8] = '{';
    const std::string message = refusal(bytes);
    CHECK((message != "" || bytes.substr(8, 2) == "{}"));
  }
}

TEST_CASE("files_that_cannot_be_read_are_named") {
  CHECK_THROWS_WITH_AS(io::load_safetensors("/nonexistent.safetensors"), "cannot open /nonexistent.safetensors: No such file or directory", Error);
  CHECK_THROWS_WITH_AS(io::load_safetensors("/"), "cannot open /: Is a directory", Error);
  CHECK_FALSE(io::is_safetensors({}));
  const uint8_t onnx[] = {8, 8, 18, 7, 112, 121, 116, 111, 114, 99};
  CHECK_FALSE(io::is_safetensors(onnx));
}

TEST_CASE("real_weights_are_read_and_written_back_alike") {
  DETENT_DATA_FILE(path, "models/resnet20-cifar10.safetensors");
  const io::SafeTensors f = io::load_safetensors(path);
  CHECK(f.tensors.size() == 97);
  CHECK(f.metadata == io::Metadata{{"format", "pt"}});
  CHECK(f.tensors[0].name == "bn1.bias");
  REQUIRE(f.find("conv1.weight"));
  CHECK(f.find("conv1.weight")->shape() == Shape{16, 3, 3, 3});
  CHECK(f.find("linear.weight")->shape() == Shape{10, 64});
  int64_t parameters = 0;
  for (const io::NamedTensor& t : f.tensors) parameters += t.name.find("running_") == std::string::npos ? t.tensor.elements() : 0;
  CHECK(parameters == 269722);
  // All f32 in file order: the data section comes back byte for byte.
  const std::string original = read_file(path), again = io::safetensors_bytes(f.tensors, f.metadata);
  uint64_t header = 0;
  std::memcpy(&header, original.data(), 8);
  const std::string data = original.substr(8 + static_cast<size_t>(header));
  CHECK(again.ends_with(data));
  CHECK(parse(again).tensors.size() == 97);
}
