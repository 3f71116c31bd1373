// Thrown when a device or the host has no memory left: an Error that work which can give some back, or do without, may want to tell apart.
#pragma once

#include "detent/core/error.h"

namespace detent {

class OutOfMemory : public Error {
 public:
  using Error::Error;
};

}  // namespace detent
