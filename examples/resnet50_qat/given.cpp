#include "given.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/io/encodings.h"
#include "options.h"

namespace qat {

using namespace detent;

namespace {

// "" is not looked at.
void require_file(const char* option, const std::string& path) {
  if (path.empty() || file_exists(path)) return;
  fail(option, " ", path, folder_exists(path) ? ": this is a folder; give a file" : ": no such file");
}

// Size and FNV-1a: two files of one name differ by training, not by design.
std::string fingerprint(const std::string& path) {
  SequentialFile file(path, size_t{1} << 20);
  std::vector<unsigned char> part(size_t{1} << 20);
  uint64_t hash = 0xcbf29ce484222325u;
  while (const size_t n = file.read_some(part.data(), part.size())) {
    for (size_t i = 0; i < n; ++i) hash = (hash ^ part[i]) * 0x100000001b3u;
  }
  return text(file.size(), '-', hash);
}

void require_writable_folder(const char* option, const std::string& folder) {
  try {
    make_folders(folder);
    const AtomicFile probe(join_path(folder, ".writable"));
  } catch (const Error& e) {
    fail(option, " ", folder, ": ", e.what(), "; give a folder that can be written to");
  }
}

}  // namespace

quant::QuantConfig load_config(const std::string& name) {
  if (name.empty()) return quant::default_config();
  const bool is_name = name.find('/') == std::string::npos && name.find('.') == std::string::npos;
  if (is_name && !file_exists(name)) return quant::default_config(name);
  require_file("--config", name);
  return quant::parse_config(read_file(name, int64_t{64} << 20), name);
}

quant::EncodingMap read_ranges(const std::string& path) {
  require_file("--encodings", path);
  return path.empty() ? quant::EncodingMap() : io::read_encodings(read_file(path, int64_t{256} << 20), path);
}

std::map<std::string, std::string> contents_of_files(const Options& o) {
  std::map<std::string, std::string> contents;
  for (const auto& [option, path] : {std::pair{"weights", o.weights}, {"arch", o.arch}, {"config", o.config}, {"encodings", o.encodings}}) {
    if (!path.empty() && file_exists(path)) contents[option] = fingerprint(path);
  }
  return contents;
}

void require_files(const Options& o) {
  if (o.imported()) require_file("--arch", o.arch);
  require_file("--weights", o.weights);
  if (o.resume != "auto") require_file("--resume", o.resume);
}

void require_folders(const Options& o) {
  require_writable_folder("--output", o.output);
  if (!o.dump_layers.empty()) require_writable_folder("--dump-layers", o.dump_layers);
}

}  // namespace qat
