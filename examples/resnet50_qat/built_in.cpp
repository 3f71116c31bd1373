#include "built_in.h"

#include <cstdlib>

#include "detent/core/error.h"
#include "detent/core/file.h"
#include "detent/io/data/synthetic.h"
#include "progress.h"

namespace qat {

std::string cache_folder() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg && *xdg) return detent::join_path(xdg, "detent");
  const char* home = std::getenv("HOME");
  DETENT_CHECK(home && *home, "the built-in data set is kept in the cache folder: set XDG_CACHE_HOME or HOME");
  return detent::join_path(home, ".cache/detent");
}

std::string built_in_data(bool quiet) {
  const detent::io::SyntheticOptions options;
  const std::string folder = detent::join_path(cache_folder(), detent::text("figures-", options.image_size, "-", options.train_images, "-", options.difficulty));
  // labels.txt is written last: without it an earlier run was interrupted, and the same bytes are made again.
  if (!detent::file_exists(detent::join_path(folder, "labels.txt"))) {
    say(quiet, detent::text("making ", options.train_images, " training and ", options.valid_images, " validation images in ", folder));
    detent::io::write_synthetic(folder, options);
  }
  return folder;
}

}  // namespace qat
