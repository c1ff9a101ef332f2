// Forward: a group of lanes sums the samples of one (image, query, head) in registers.
#pragma once

#include "samples.cuh"

namespace dinox {

// kVector > 1: whole multiples of kLanes * kVector channels. kPoints 0: any number.
template <typename value_t, bool kFused, int kLanes, int kVector, int kPoints>
__device__ __forceinline__ void forward_group(const Problem& p, const Work& work, int lane) {
  using acc_t = Accumulator<value_t>;
  constexpr int kTogether = kLanes < kUsualPoints ? kLanes : kUsualPoints;  // samples whose loads may overlap
  Softmax<acc_t> softmax;
  if constexpr (kFused) softmax = softmax_of<kLanes, acc_t>(p, work, lane);
  const value_t* rows = rows_of_image(p, static_cast<const value_t*>(p.value), work.image);
  for (int32_t channel = lane * kVector; channel - lane * kVector < p.channels; channel += kLanes * kVector) {
    const bool mine = kVector > 1 || channel < p.channels;
    const auto part = part_of_row<Offset<kVector>, value_t>(p, work.head, mine ? channel : 0);
    acc_t sum[kVector] = {};
    for (int32_t first = 0; first < p.samples; first += kLanes) {
      const Sample<acc_t> own = locate<kPoints, kFused>(p, work, first + lane, softmax).sample;
#pragma unroll 1
      for (int begin = 0; begin < kLanes && first + begin < p.samples; begin += kTogether) {
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (kPoints == 0 && first + begin + j >= p.samples) break;  // the same for all groups
          const int32_t level = level_of<kPoints>(p, first + begin + j);
          const Corners<acc_t> corners(sample_of_lane<kLanes>(own, begin + j), p.level[level].width);
          Packed<value_t, kVector> packed[4];
          load_corners<kVector>(rows, p.row_bytes, part, corners, packed);
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            acc_t row[kVector];
            packed[corner].unpack(row);
            multiply_add_if<kVector>(corners.inside[corner], corners.factor[corner], row, sum);
          }
        }
      }
    }
    if (work.query >= 0 && mine) {
      value_t* output = static_cast<value_t*>(p.output) + work.index * p.channels + channel;
      Packed<value_t, kVector>::pack(sum).store(output);
    }
  }
}

template <typename value_t, bool kFused, int kLanes, int kVector, int kPoints>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<Accumulator<value_t>>)
    forward_kernel(const __grid_constant__ Problem p) {
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const Work work = work_of(p, blockIdx.z, blockIdx.y << p.tiles.log2_heads, blockIdx.x, group);
  forward_group<value_t, kFused, kLanes, kVector, kPoints>(p, work, lane);
}

}  // namespace dinox
