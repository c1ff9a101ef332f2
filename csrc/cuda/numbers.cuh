// Numbers and rows of them: how they are read, computed with, written and added to.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "problem.h"

namespace dinox {

// Sums, locations and weights are float; double beside double.
template <typename value_t>
using Accumulator = std::conditional_t<std::is_same_v<value_t, double>, double, float>;

__device__ __forceinline__ float bfloat_of(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float half_of(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ uint32_t bfloat_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ __forceinline__ uint32_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

// Of numbers <= 0, an error of a few roundings of the greatest (whose exponential is 1).
__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// ---------------------------------------------------------------- raw inputs, of a type known at run time

template <typename acc_t>
struct Pair {
  acc_t x, y;
};

// Beside double accumulators all is double; only the fused operator reads anything but accumulators.
template <typename acc_t, bool kFused>
__device__ __forceinline__ Pair<acc_t> load_pair(const void* from, Number type, int64_t index) {
  if constexpr (std::is_same_v<acc_t, double>) {
    const double2 pair = __ldg(static_cast<const double2*>(from) + index);
    return {pair.x, pair.y};
  } else {
    if (kFused && type != Number::kFloat) {
      const uint32_t bits = __ldg(static_cast<const unsigned int*>(from) + index);
      const uint32_t low = bits & 0xffff, high = bits >> 16;
      if (type == Number::kHalf) return {half_of(low), half_of(high)};
      return {bfloat_of(low), bfloat_of(high)};
    }
    const float2 pair = __ldg(static_cast<const float2*>(from) + index);
    return {pair.x, pair.y};
  }
}

template <typename acc_t, bool kFused>
__device__ __forceinline__ acc_t load_number(const void* from, Number type, int64_t index) {
  if constexpr (std::is_same_v<acc_t, float>) {
    if (kFused && type != Number::kFloat) {
      const uint32_t bits = __ldg(static_cast<const unsigned short*>(from) + index);
      return type == Number::kHalf ? half_of(bits) : bfloat_of(bits);
    }
  }
  return __ldg(static_cast<const acc_t*>(from) + index);
}

template <typename acc_t, bool kFused>
__device__ __forceinline__ void store_pair(void* to, Number type, int64_t index, acc_t x, acc_t y) {
  if constexpr (std::is_same_v<acc_t, double>) {
    static_cast<double2*>(to)[index] = make_double2(x, y);
  } else {
    if (kFused && type != Number::kFloat) {
      const bool half = type == Number::kHalf;
      const uint32_t low = half ? half_bits(x) : bfloat_bits(x), high = half ? half_bits(y) : bfloat_bits(y);
      static_cast<unsigned int*>(to)[index] = low | high << 16;
    } else {
      static_cast<float2*>(to)[index] = make_float2(x, y);
    }
  }
}

template <typename acc_t, bool kFused>
__device__ __forceinline__ void store_number(void* to, Number type, int64_t index, acc_t x) {
  if constexpr (std::is_same_v<acc_t, float>) {
    if (kFused && type != Number::kFloat) {
      const uint32_t bits = type == Number::kHalf ? half_bits(x) : bfloat_bits(x);
      static_cast<unsigned short*>(to)[index] = static_cast<unsigned short>(bits);
      return;
    }
  }
  static_cast<acc_t*>(to)[index] = x;
}

// ---------------------------------------------------------------- the part of a row that one lane holds

// As it lies in memory: kVector numbers in 16 bytes, or one number.
template <typename value_t, int kVector>
struct Packed {
  static_assert(kVector * sizeof(value_t) == 16);
  uint4 bits;

  __device__ __forceinline__ static Packed zero() { return {make_uint4(0, 0, 0, 0)}; }
  __device__ __forceinline__ static Packed load(const value_t* from) {
    return {__ldg(reinterpret_cast<const uint4*>(from))};
  }
  __device__ __forceinline__ void store(value_t* to) const { *reinterpret_cast<uint4*>(to) = bits; }

  __device__ __forceinline__ void unpack(float (&row)[kVector]) const {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<value_t, float>) {
        row[i] = __uint_as_float(words[i]);
      } else if constexpr (std::is_same_v<value_t, __half>) {
        row[2 * i] = half_of(words[i] & 0xffff);
        row[2 * i + 1] = half_of(words[i] >> 16);
      } else {
        row[2 * i] = bfloat_of(words[i]);
        row[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      }
    }
  }
  __device__ __forceinline__ static Packed pack(const float (&row)[kVector]) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<value_t, float>) {
        words[i] = __float_as_uint(row[i]);
      } else if constexpr (std::is_same_v<value_t, __half>) {
        words[i] = half_bits(row[2 * i]) | half_bits(row[2 * i + 1]) << 16;
      } else {
        words[i] = bfloat_bits(row[2 * i]) | bfloat_bits(row[2 * i + 1]) << 16;
      }
    }
    return {make_uint4(words[0], words[1], words[2], words[3])};
  }
};

template <typename value_t>
struct Packed<value_t, 1> {
  using acc_t = Accumulator<value_t>;
  acc_t number;

  __device__ __forceinline__ static Packed zero() { return {acc_t(0)}; }
  __device__ __forceinline__ static Packed load(const value_t* from) {
    if constexpr (std::is_same_v<value_t, acc_t>) return {__ldg(from)};
    const uint32_t bits = __ldg(reinterpret_cast<const unsigned short*>(from));
    return {std::is_same_v<value_t, __half> ? half_of(bits) : bfloat_of(bits)};
  }
  __device__ __forceinline__ void store(value_t* to) const {
    if constexpr (std::is_same_v<value_t, acc_t>) {
      *to = number;
    } else {
      const uint32_t bits = std::is_same_v<value_t, __half> ? half_bits(number) : bfloat_bits(number);
      *reinterpret_cast<unsigned short*>(to) = static_cast<unsigned short>(bits);
    }
  }
  __device__ __forceinline__ void unpack(acc_t (&row)[1]) const { row[0] = number; }
  __device__ __forceinline__ static Packed pack(const acc_t (&row)[1]) { return {row[0]}; }
};

// sum += factor * row if `wanted` is not 0.
template <int kVector, typename acc_t>
__device__ __forceinline__ void multiply_add_if(uint32_t wanted, acc_t factor, const acc_t (&row)[kVector],
                                                acc_t (&sum)[kVector]) {
#ifdef __CUDA_ARCH__
  constexpr bool kPredicated = kVector % 4 == 0;
#else
  constexpr bool kPredicated = false;
#endif
  if constexpr (kPredicated) {  // what compilers make of the loop below selects every sum
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      asm("{\n"
          "  .reg .pred wanted;\n"
          "  setp.ne.u32 wanted, %9, 0;\n"
          "  @wanted fma.rn.f32 %0, %4, %5, %0;\n"
          "  @wanted fma.rn.f32 %1, %4, %6, %1;\n"
          "  @wanted fma.rn.f32 %2, %4, %7, %2;\n"
          "  @wanted fma.rn.f32 %3, %4, %8, %3;\n"
          "}"
          : "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
          : "f"(factor), "f"(row[i]), "f"(row[i + 1]), "f"(row[i + 2]), "f"(row[i + 3]), "r"(wanted));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = wanted ? sum[i] + factor * row[i] : sum[i];
  }
}

// ---------------------------------------------------------------- additions to memory that others add to

// Reductions name the global memory: of pointers that come in a struct, the compiler does not know it.
__device__ __forceinline__ void add_to_global(float* to, float x) {
#ifdef __CUDA_ARCH__
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(x) : "memory");
#else
  atomicAdd(to, x);
#endif
}

__device__ __forceinline__ void add_to_global(double* to, double x) {
#ifdef __CUDA_ARCH__
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "d"(x) : "memory");
#else
  atomicAdd(to, x);
#endif
}

// to[...] += factor * row, 16 bytes at a time where the device can (sm_90).
template <int kVector, typename acc_t>
__device__ __forceinline__ void add_row_to_global(acc_t* to, acc_t factor, const acc_t (&row)[kVector]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kWide = kVector % 4 == 0;
#else
  constexpr bool kWide = false;
#endif
  if constexpr (kWide) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) {
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + i)),
                   "f"(factor * row[i]), "f"(factor * row[i + 1]), "f"(factor * row[i + 2]), "f"(factor * row[i + 3])
                   : "memory");
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) add_to_global(to + i, factor * row[i]);
  }
}

template <int kVector, typename acc_t>
__device__ __forceinline__ void add_row_to_shared(acc_t* to, acc_t factor, const acc_t (&row)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) atomicAdd(to + i, factor * row[i]);
}

}  // namespace dinox
