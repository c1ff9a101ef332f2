// Index arithmetic. Tensors may have more than 2^31 elements; what is counted inside one image may not.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace dinox {

// Number of (image, row, head) in a tensor (B, rows, H, ...), rows being tokens or queries.
__host__ __device__ __forceinline__ int64_t index_of(int32_t image, int32_t rows, int32_t row, int32_t heads,
                                                     int32_t head) {
  return (static_cast<int64_t>(image) * rows + row) * heads + head;
}

// Bytes from the first token of an image to a part of the row of `token` (which may lie before it, as long as nothing
// is read there). In 32 bits, where all of an image is that small: the hardware adds them to a common base by itself.
template <typename offset_t>
__host__ __device__ __forceinline__ offset_t offset_of(int32_t token, int32_t row_bytes, offset_t part) {
  return static_cast<offset_t>(token) * static_cast<offset_t>(row_bytes) + part;
}

template <typename T, typename offset_t>
__host__ __device__ __forceinline__ T* at_offset(T* base, offset_t offset) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(base) + static_cast<uint64_t>(offset));
}

// i / divisor for i * divisor < 2^32, by a multiplication.
struct Divider {
  uint64_t reciprocal;

  static Divider by(uint32_t divisor) { return {((uint64_t{1} << 32) + divisor - 1) / divisor}; }
  __host__ __device__ __forceinline__ int32_t operator()(int32_t i) const {
    return static_cast<int32_t>((static_cast<uint32_t>(i) * reciprocal) >> 32);
  }
};

}  // namespace dinox
