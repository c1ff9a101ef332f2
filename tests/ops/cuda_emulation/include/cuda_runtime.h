// A stand-in for CUDA's runtime: what csrc/cuda uses of it, on the CPU. emulation.cpp runs the threads of a block as
// fibers; shuffles and barriers wait until all threads they are for have come, and it is an error if some never come.
#pragma once

#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
void run(const dim3& grid, unsigned threads, size_t shared_bytes, void (*call)(void*), void* closure);
// All 32 threads of the warp exchange 64 bits; returns those of the thread number `from` of the warp.
uint64_t exchange(uint64_t bits, unsigned from);
void barrier();
}  // namespace emulation

template <typename T>
T shuffle_from(T x, unsigned from) {
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  bits = emulation::exchange(bits, from);
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}
template <typename T>
T __shfl_sync(unsigned, T x, int lane, int width) {
  const unsigned self = threadIdx.x % 32;
  return shuffle_from(x, self / width * width + lane % width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask, int width) {
  (void)width;
  return shuffle_from(x, (threadIdx.x % 32) ^ mask);
}
inline void __syncwarp() { emulation::exchange(0, 0); }
inline void __syncthreads() { emulation::barrier(); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T atomicAdd(T* to, T x) {
  return std::exchange(*to, *to + x);
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __expf(float x) { return std::exp(x); }

enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

template <typename F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** pointers, size_t shared_bytes,
                             cudaStream_t) {
  auto call = [&]() {
    size_t i = 0;
    std::tuple<Arguments...> arguments{*static_cast<Arguments*>(pointers[i++])...};
    std::apply(kernel, arguments);
  };
  emulation::run(grid, block.x, shared_bytes, [](void* closure) { (*static_cast<decltype(call)*>(closure))(); }, &call);
  return cudaSuccess;
}
