// How much memory this process may still take. Linux only; elsewhere nothing is known. Thread-safe.
#pragma once

#include <cstdint>

namespace detent {

/// Bytes that can be taken without the system ending a process for it: of the machine and of the process's control group (v2), swap included; -1: unknown.
int64_t available_host_memory();

}  // namespace detent
