#include "built_in.h"

#include <cstdlib>

#include "detent/core/error.h"
#include "detent/core/file.h"

namespace qat {

std::string cache_folder() {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  if (xdg && *xdg) return detent::join_path(xdg, "detent");
  const char* home = std::getenv("HOME");
  DETENT_CHECK(home && *home, "the built-in data set is kept in the cache folder: set XDG_CACHE_HOME or HOME");
  return detent::join_path(home, ".cache/detent");
}

std::string built_in_data(bool) { detent::fail("built-in data: to come"); }

}  // namespace qat
