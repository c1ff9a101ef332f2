// Calls of kernels, with the types and sizes they are compiled for chosen at run time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "plan.h"

namespace dinox {

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), const Launch& plan, cudaStream_t stream, Arguments... arguments) {
  if (plan.shared_bytes > kUsualSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {&arguments...};
  return cudaLaunchKernel(kernel, plan.grid, dim3(plan.threads), pointers, plan.shared_bytes, stream);
}

// Calls f with a number of value's type.
template <typename F>
cudaError_t with_value_type(Number type, const F& f) {
  switch (type) {
    case Number::kFloat:
      return f(float{});
    case Number::kDouble:
      return f(double{});
    case Number::kHalf:
      return f(__half{});
    default:
      return f(__nv_bfloat16{});
  }
}

template <int kLanes_, int kVector_, int kPoints_>
struct Compiled {
  static constexpr int kLanes = kLanes_, kVector = kVector_, kPoints = kPoints_;
};

// Calls f with the Compiled of a variant.
template <typename value_t, typename F>
cudaError_t with_variant(const Variant& variant, const F& f) {
  if constexpr (sizeof(value_t) < sizeof(double)) {
    constexpr int kVector = kVectorBytes / sizeof(value_t);
    if (variant.vector > 1 && variant.lanes * kVector == 16) return f(Compiled<16 / kVector, kVector, 0>{});
    if (variant.vector > 1 && variant.usual_points) return f(Compiled<32 / kVector, kVector, 4>{});
    if (variant.vector > 1) return f(Compiled<32 / kVector, kVector, 0>{});
  }
  return f(Compiled<8, 1, 0>{});
}

}  // namespace dinox
