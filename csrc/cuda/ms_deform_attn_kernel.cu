// Multi-scale deformable attention on NVIDIA GPUs, forward and backward.
//
// Forward: one thread per output element. Backward: one warp per (image, query, head), whose lanes share the channels;
// the gradients of locations and weights are warp sums written once, that of value is accumulated with atomics in float
// (double for double) and converted once. Indices of tensors are 64 bits wide. Locations and weights are float, never
// half precision: half precision cannot address pixels of large levels.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../checks.h"

namespace dinox {
namespace {

constexpr int kThreads = 256;  // per block
constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = int64_t{1} << 20;  // more work than that is looped over
constexpr int64_t kMaxLevels = 64;                // the table of levels travels as a kernel argument: no copy, no wait

struct Levels {
  Level level[kMaxLevels];
};

template <typename value_t>
using Accumulator = std::conditional_t<std::is_same_v<value_t, double>, double, float>;

// The place of one sample in a level.
template <typename acc_t>
struct Footprint {
  bool counts;          // false: outside of the level, NaN or infinite
  acc_t right, bottom;  // fractions of the way to the right and to the bottom corners
  int64_t token[4];     // of the top left, top right, bottom left, bottom right corner, inside one image
  bool inside[4];       // whether that corner is a pixel of the level; others are zeros
  acc_t factor[4];      // bilinear factor of the corner
};

// x = location * width - 0.5 in pixels; a sample counts if -1 < x < width and -1 < y < height, which no NaN fulfils:
// only then are coordinates turned into integers.
template <typename acc_t>
__device__ __forceinline__ Footprint<acc_t> locate(const Level& level, const acc_t* location) {
  Footprint<acc_t> f;
  const acc_t x = location[0] * level.width - acc_t(0.5);
  const acc_t y = location[1] * level.height - acc_t(0.5);
  f.counts = x > acc_t(-1) && x < level.width && y > acc_t(-1) && y < level.height;
  if (!f.counts) return f;
  const acc_t floor_x = floor(x), floor_y = floor(y);
  const int left = static_cast<int>(floor_x), top = static_cast<int>(floor_y);
  f.right = x - floor_x;
  f.bottom = y - floor_y;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int column = left + corner % 2, row = top + corner / 2;
    f.inside[corner] = column >= 0 && column < level.width && row >= 0 && row < level.height;
    f.token[corner] = level.start + static_cast<int64_t>(row) * level.width + column;
    f.factor[corner] = (corner % 2 ? f.right : 1 - f.right) * (corner / 2 ? f.bottom : 1 - f.bottom);
  }
  return f;
}

// value (B, S, H, C), locations (B, Q, H, L, P, 2), weights (B, Q, H, L, P) -> output (B, Q, H, C)
template <typename value_t, typename acc_t>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Sizes n, const Levels levels, const value_t* __restrict__ value,
                   const acc_t* __restrict__ locations, const acc_t* __restrict__ weights,
                   value_t* __restrict__ output) {
  const int64_t elements = n.images * n.queries * n.heads * n.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; element < elements;
       element += step) {
    const int64_t channel = element % n.channels;
    const int64_t index = element / n.channels;  // of (image, query, head)
    const int64_t head = index % n.heads;
    const int64_t image = index / n.heads / n.queries;
    const value_t* rows = value + (image * n.tokens * n.heads + head) * n.channels + channel;
    const int64_t stride = n.heads * n.channels;  // from token to token
    int64_t sample = index * n.levels * n.points;
    acc_t sum = 0;
    for (int64_t l = 0; l < n.levels; ++l) {
      for (int64_t point = 0; point < n.points; ++point, ++sample) {
        const Footprint<acc_t> f = locate(levels.level[l], locations + 2 * sample);
        if (!f.counts) continue;
        acc_t sampled = 0;
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (f.inside[corner]) sampled += f.factor[corner] * static_cast<acc_t>(rows[f.token[corner] * stride]);
        }
        sum += weights[sample] * sampled;
      }
    }
    output[element] = static_cast<value_t>(sum);
  }
}

template <typename acc_t>
__device__ __forceinline__ acc_t warp_sum(acc_t x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

// Writes grad_locations and grad_weights, adds to grad_value (zeros at first). All lanes of a warp take the same way
// through the loops over samples, so that the warp sums are met by all of them.
template <typename value_t, typename acc_t>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Sizes n, const Levels levels, const value_t* __restrict__ grad_output,
                    const value_t* __restrict__ value, const acc_t* __restrict__ locations,
                    const acc_t* __restrict__ weights, acc_t* __restrict__ grad_value,
                    acc_t* __restrict__ grad_locations, acc_t* __restrict__ grad_weights) {
  const int lane = threadIdx.x % kWarp;
  const int64_t rows_in_output = n.images * n.queries * n.heads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
       index < rows_in_output; index += step) {
    const int64_t head = index % n.heads;
    const int64_t image = index / n.heads / n.queries;
    const int64_t first_row = (image * n.tokens * n.heads + head) * n.channels;
    const int64_t stride = n.heads * n.channels;  // from token to token
    int64_t sample = index * n.levels * n.points;
    for (int64_t l = 0; l < n.levels; ++l) {
      const Level level = levels.level[l];
      for (int64_t point = 0; point < n.points; ++point, ++sample) {
        const Footprint<acc_t> f = locate(level, locations + 2 * sample);
        acc_t dot[4] = {0, 0, 0, 0};  // of grad_output with value at each corner
        acc_t weight = 0;
        if (f.counts) {
          weight = weights[sample];
          for (int64_t channel = lane; channel < n.channels; channel += kWarp) {
            const acc_t grad = static_cast<acc_t>(grad_output[index * n.channels + channel]);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!f.inside[corner]) continue;
              const int64_t at = first_row + f.token[corner] * stride + channel;
              dot[corner] += grad * static_cast<acc_t>(value[at]);
              atomicAdd(grad_value + at, weight * f.factor[corner] * grad);
            }
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) dot[corner] = warp_sum(dot[corner]);
        }
        if (lane != 0) continue;
        acc_t grad_weight = 0, grad_x = 0, grad_y = 0;
        if (f.counts) {
          const acc_t top_slope = dot[1] - dot[0], bottom_slope = dot[3] - dot[2];
          const acc_t top_dot = dot[0] + f.right * top_slope, bottom_dot = dot[2] + f.right * bottom_slope;
          grad_weight = top_dot + f.bottom * (bottom_dot - top_dot);
          grad_x = weight * level.width * (top_slope + f.bottom * (bottom_slope - top_slope));
          grad_y = weight * level.height * (bottom_dot - top_dot);
        }
        grad_weights[sample] = grad_weight;
        grad_locations[2 * sample] = grad_x;
        grad_locations[2 * sample + 1] = grad_y;
      }
    }
  }
}

Levels level_table(const at::Tensor& spatial_shapes, const Sizes& n) {
  TORCH_CHECK_VALUE(n.levels <= kMaxLevels, "ms_deform_attn: spatial_shapes: expected at most ", kMaxLevels,
                    " levels on CUDA devices, got ", n.levels);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  Levels table{};
  std::copy(levels.begin(), levels.end(), table.level);
  return table;
}

unsigned int blocks_for(int64_t threads) {
  return static_cast<unsigned int>(std::min((threads + kThreads - 1) / kThreads, kMaxBlocks));
}

at::Tensor ms_deform_attn(const at::Tensor& value, const at::Tensor& spatial_shapes,
                          const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const Levels levels = level_table(spatial_shapes, n);
  const c10::cuda::CUDAGuard guard(value.device());
  at::Tensor output = at::empty({n.images, n.queries, n.heads * n.channels}, value.options());
  if (output.numel() == 0) return output;
  const at::Tensor value_ = value.contiguous();
  const at::Tensor locations = sampling_locations.contiguous(), weights = attention_weights.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    using acc_t = Accumulator<scalar_t>;
    forward_kernel<scalar_t, acc_t><<<blocks_for(output.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        n, levels, value_.const_data_ptr<scalar_t>(), locations.const_data_ptr<acc_t>(),
        weights.const_data_ptr<acc_t>(), output.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(const at::Tensor& grad_output,
                                                                       const at::Tensor& value,
                                                                       const at::Tensor& spatial_shapes,
                                                                       const at::Tensor& sampling_locations,
                                                                       const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, n);
  at::globalContext().alertNotDeterministic("ms_deform_attn_backward on CUDA");  // atomics add in any order
  const Levels levels = level_table(spatial_shapes, n);
  const c10::cuda::CUDAGuard guard(value.device());
  const at::Tensor value_ = value.contiguous(), grad = grad_output.contiguous();
  const at::Tensor locations = sampling_locations.contiguous(), weights = attention_weights.contiguous();
  at::Tensor grad_value = at::zeros(value.sizes(), locations.options());  // in the accumulator's dtype
  at::Tensor grad_locations = at::empty(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  const int64_t warps = n.images * n.queries * n.heads;
  if (warps > 0) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
      using acc_t = Accumulator<scalar_t>;
      backward_kernel<scalar_t, acc_t><<<blocks_for(warps * kWarp), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
          n, levels, grad.const_data_ptr<scalar_t>(), value_.const_data_ptr<scalar_t>(),
          locations.const_data_ptr<acc_t>(), weights.const_data_ptr<acc_t>(), grad_value.mutable_data_ptr<acc_t>(),
          grad_locations.mutable_data_ptr<acc_t>(), grad_weights.mutable_data_ptr<acc_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {grad_value.to(value.scalar_type()), grad_locations, grad_weights};
}

}  // namespace
}  // namespace dinox

TORCH_LIBRARY_IMPL(dinox, CUDA, m) {
  m.impl("ms_deform_attn", &dinox::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &dinox::ms_deform_attn_backward);
}
