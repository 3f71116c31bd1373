#include "detent/io/keras_h5.h"

#define H5_USE_110_API
#include <hdf5.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "detent/core/file.h"

namespace detent::io {
namespace {

constexpr int kMaxDepth = 12;
constexpr int kMaxObjects = 20000;
constexpr int64_t kMaxElements = int64_t{1} << 29;
constexpr int64_t kBestCompression = 1100;  // deflate's limit

// A handle of the HDF5 library.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  explicit operator bool() const { return id_ >= 0; }
  hid_t id() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// The HDF5 library is not thread-safe, and prints its errors unless told otherwise.
class Quiet {
 public:
  Quiet() : lock_(mutex()) {
    H5Eget_auto2(H5E_DEFAULT, &function_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  ~Quiet() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex m;
    return m;
  }
  std::lock_guard<std::mutex> lock_;
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

struct Reader {
  std::string file;
  int64_t file_bytes = 0;
  int objects = 0;
  std::vector<NamedTensor> tensors;

  template <class... Args>
  [[noreturn]] void refuse(const std::string& path, const Args&... args) const {
    fail("weights ", file, ": ", path, ": ", args...);
  }
  void group(hid_t id, const std::string& path, int depth);
  void dataset(hid_t parent, const std::string& name, const std::string& path, const std::string& layer);
  void check_storage(hid_t set, const std::string& path, int64_t bytes) const;
  void keep(const std::string& layer, const std::string& kind, const std::vector<int64_t>& dims, const std::vector<float>& values, const std::string& path);
};

void Reader::group(hid_t id, const std::string& path, int depth) {
  if (depth > kMaxDepth) refuse(path, "groups nested deeper than ", kMaxDepth);
  H5G_info_t info;
  if (H5Gget_info(id, &info) < 0) refuse(path, "the group cannot be read");
  const std::string layer = path.substr(path.rfind('/') + 1);
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    if (++objects > kMaxObjects) refuse(path, "more than ", kMaxObjects, " objects");
    H5L_info_t link;
    const ssize_t length = H5Lget_name_by_idx(id, ".", H5_INDEX_NAME, H5_ITER_INC, i, nullptr, 0, H5P_DEFAULT);
    if (length < 0 || length > 4096) refuse(path, "entry ", static_cast<uint64_t>(i), " has no readable name");
    std::string name(static_cast<size_t>(length) + 1, '\0');
    H5Lget_name_by_idx(id, ".", H5_INDEX_NAME, H5_ITER_INC, i, name.data(), name.size(), H5P_DEFAULT);
    name.pop_back();
    const std::string below = path + "/" + name;
    if (H5Lget_info(id, name.c_str(), &link, H5P_DEFAULT) < 0) refuse(below, "the link cannot be read");
    if (link.type == H5L_TYPE_EXTERNAL) refuse(below, "a link to another file; such links are not followed");
    if (link.type != H5L_TYPE_HARD) refuse(below, "a symbolic link; such links are not followed");
    H5O_info_t object;
    if (H5Oget_info_by_name(id, name.c_str(), &object, H5P_DEFAULT) < 0) refuse(below, "the object cannot be read");
    if (object.type == H5O_TYPE_GROUP) {
      const Handle child(H5Gopen2(id, name.c_str(), H5P_DEFAULT), H5Gclose);
      if (!child) refuse(below, "the group cannot be opened");
      group(child.id(), below, depth + 1);
    } else if (object.type == H5O_TYPE_DATASET) {
      dataset(id, name, below, layer);
    }
  }
}

void Reader::check_storage(hid_t set, const std::string& path, int64_t bytes) const {
  const Handle plist(H5Dget_create_plist(set), H5Pclose);
  if (!plist) refuse(path, "its storage cannot be read");
  if (H5Pget_external_count(plist.id()) != 0) refuse(path, "its data lie in another file; such files are not read");
  const H5D_layout_t layout = H5Pget_layout(plist.id());
  if (layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED && layout != H5D_COMPACT) refuse(path, "a virtual data set; such data sets are not read");
  const int filters = H5Pget_nfilters(plist.id());
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    size_t values = 0;
    const H5Z_filter_t f = H5Pget_filter2(plist.id(), static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, nullptr);
    // Others could be loaded from plug-ins.
    if (f != H5Z_FILTER_DEFLATE && f != H5Z_FILTER_SHUFFLE && f != H5Z_FILTER_FLETCHER32) refuse(path, "filter ", static_cast<int>(f), "; only deflate, shuffle and fletcher32 are supported");
  }
  const auto stored = static_cast<int64_t>(H5Dget_storage_size(set));
  if (stored > file_bytes || bytes / kBestCompression > stored) refuse(path, "it declares ", bytes, " bytes, and ", stored, " are stored");
}

void Reader::dataset(hid_t parent, const std::string& name, const std::string& path, const std::string& layer) {
  const Handle set(H5Dopen2(parent, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!set) refuse(path, "the data set cannot be opened");
  const Handle type(H5Dget_type(set.id()), H5Tclose), space(H5Dget_space(set.id()), H5Sclose);
  if (!type || !space) refuse(path, "the data set cannot be read");
  if (H5Tget_class(type.id()) != H5T_FLOAT) return;  // counters and the like
  const int rank = H5Sget_simple_extent_ndims(space.id());
  if (rank < 1 || rank > 4) return;
  hsize_t extents[4] = {};
  H5Sget_simple_extent_dims(space.id(), extents, nullptr);
  std::vector<int64_t> dims;
  int64_t elements = 1;
  for (int i = 0; i < rank; ++i) {
    if (extents[i] < 1 || extents[i] > static_cast<hsize_t>(kMaxElements / elements)) refuse(path, "extent ", static_cast<uint64_t>(extents[i]), " of dimension ", i);
    dims.push_back(static_cast<int64_t>(extents[i]));
    elements *= dims.back();
  }
  check_storage(set.id(), path, elements * static_cast<int64_t>(H5Tget_size(type.id())));
  std::vector<float> values(static_cast<size_t>(elements));
  if (H5Dread(set.id(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) refuse(path, "its values cannot be read; the file is damaged");
  keep(layer, name.substr(0, name.find(':')), dims, values, path);
}

template <size_t R>
Tensor permuted(const std::vector<int64_t>& dims, const std::vector<float>& v, const int (&perm)[R]) {
  std::vector<int64_t> stride(R, 1), to, step;
  for (size_t i = R; i-- > 1;) stride[i - 1] = stride[i] * dims[i];
  for (const int p : perm) {
    to.push_back(dims[static_cast<size_t>(p)]);
    step.push_back(stride[static_cast<size_t>(p)]);
  }
  std::vector<float> out(v.size());
  std::vector<int64_t> at(R, 0);
  for (float& o : out) {
    int64_t from = 0;
    for (size_t i = 0; i < R; ++i) from += at[i] * step[i];
    o = v[static_cast<size_t>(from)];
    for (size_t i = R; i-- > 0;) {
      if (++at[i] < to[i]) break;
      at[i] = 0;
    }
  }
  return Tensor::from<float>(Shape(std::span<const int64_t>(to)), out);
}

void Reader::keep(const std::string& layer, const std::string& kind, const std::vector<int64_t>& dims, const std::vector<float>& values, const std::string& path) {
  static constexpr std::pair<std::string_view, std::string_view> kKinds[] = {{"kernel", "weight"}, {"bias", "bias"}, {"gamma", "weight"}, {"beta", "bias"}, {"moving_mean", "running_mean"}, {"moving_variance", "running_var"}};
  const auto found = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const auto& k) { return k.first == kind; });
  if (found == std::end(kKinds)) return;  // an optimizer's slot
  const std::string name = keras_layer_name(layer) + "." + std::string(found->second);
  if (std::any_of(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; })) refuse(path, "a second array for ", name);
  constexpr int kToOihw[] = {3, 2, 0, 1}, kToOutIn[] = {1, 0};
  if (kind == "kernel" && dims.size() == 4) {
    tensors.push_back({name, permuted(dims, values, kToOihw)});
  } else if (kind == "kernel" && dims.size() == 2) {
    tensors.push_back({name, permuted(dims, values, kToOutIn)});
  } else {
    tensors.push_back({name, Tensor::from<float>(Shape(std::span<const int64_t>(dims)), values)});
  }
}

}  // namespace

bool has_hdf5() { return true; }

std::vector<NamedTensor> load_keras_h5(const std::string& path) {
  Reader r;
  r.file = path;
  r.file_bytes = RandomAccessFile(path).size();
  const Quiet quiet;
  const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  DETENT_CHECK(file, "weights ", path, ": HDF5 cannot open it; it is damaged or truncated");
  // A whole model keeps its weights in a group of their own, beside the optimizer's.
  const bool model = H5Lexists(file.id(), "model_weights", H5P_DEFAULT) > 0;
  const Handle root(H5Gopen2(file.id(), model ? "/model_weights" : "/", H5P_DEFAULT), H5Gclose);
  DETENT_CHECK(root, "weights ", path, ": its root group cannot be read");
  if (model) {
    H5L_info_t link;
    DETENT_CHECK(H5Lget_info(file.id(), "model_weights", &link, H5P_DEFAULT) >= 0 && link.type == H5L_TYPE_HARD, "weights ", path, ": /model_weights: a link to another place; such links are not followed");
  }
  r.group(root.id(), model ? "/model_weights" : "", 0);
  DETENT_CHECK(!r.tensors.empty(), "weights ", path, ": an HDF5 file without Keras layers (kernel:0, bias:0, gamma:0 ...)");
  return std::move(r.tensors);
}

}  // namespace detent::io
