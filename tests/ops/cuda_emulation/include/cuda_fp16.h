// A stand-in: what csrc/cuda uses of half precision.
#pragma once

#include <cstring>

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) {
  _Float16 y;
  std::memcpy(&y, &x, 2);
  return static_cast<float>(y);
}
inline __half __float2half_rn(float x) {
  const _Float16 y = static_cast<_Float16>(x);
  __half z;
  std::memcpy(&z, &y, 2);
  return z;
}
