// The built-in data set and the float weights trained on it, made once and kept in the user's cache folder.
#pragma once

#include <cstdint>
#include <string>

namespace qat {

inline constexpr int64_t kBuiltInClasses = 10;
inline constexpr int64_t kBuiltInImageSize = 64;

/// $XDG_CACHE_HOME/detent or ~/.cache/detent.
std::string cache_folder();
/// The data set's folder; generates it at the first call.
std::string built_in_data(bool quiet);

}  // namespace qat
