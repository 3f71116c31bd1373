#include "detent/io/data/upload.h"

#include <algorithm>
#include <cstring>

#include "detent/core/parallel.h"

namespace detent::io {

Uploader::Uploader(Device device) : device_(device), backend_(backend(device)) {}

Uploader::~Uploader() {
  backend_.wait_for_upload();
  if (staging_) backend_.release_pinned(staging_, staging_bytes_);
}

Tensor Uploader::start(const Tensor& host) {
  const auto bytes = static_cast<size_t>(host.bytes());
  Tensor there(host.shape(), host.dtype(), device_);
  backend_.wait_for_upload();  // the copy before this one has left the staging memory
  if (bytes > staging_bytes_) {
    if (staging_) backend_.release_pinned(staging_, staging_bytes_);
    staging_ = nullptr;
    staging_bytes_ = 0;
    staging_ = backend_.allocate_pinned(bytes);
    staging_bytes_ = bytes;
  }
  const char* from = static_cast<const char*>(host.raw());
  char* to = static_cast<char*>(staging_);
  constexpr int64_t kPiece = 4 << 20;
  parallel_for(host.bytes(), kPiece, [&](int64_t begin, int64_t end) { std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin)); });
  backend_.start_upload(there.raw(), staging_, bytes);
  return there;
}

void Uploader::finish() { backend_.finish_upload(); }

}  // namespace detent::io
