// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) as in RFC 3720, and the masked form that TFRecord files store.
// Uses the processor's instruction when it has one, checked at run time. Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

namespace detent::io {

/// CRC of bytes behind others whose CRC is `crc`.
uint32_t crc32c(const void* data, size_t bytes, uint32_t crc = 0);
/// The table version, whatever the processor: the reference of the other.
uint32_t crc32c_table(const void* data, size_t bytes, uint32_t crc = 0);

/// Rotated and offset, so that the CRC of data that contains CRCs stays a good one.
constexpr uint32_t masked_crc(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8u; }
inline uint32_t masked_crc32c(const void* data, size_t bytes) { return masked_crc(crc32c(data, bytes)); }

}  // namespace detent::io
