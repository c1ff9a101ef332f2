// Gradients of value in a fixed order of additions, from samples that backward.cuh has recorded.
//
// The cell of a sample is the place of its top left corner: pixels of a level from (-1, -1) on. Records are sorted by
// cell, those of a cell by their number. A pixel is a corner of the samples of four cells; one group of lanes sums
// them.
#pragma once

#include "samples.cuh"

namespace dinox {

// p is the problem of one image.
template <typename value_t, int kLanes, int kVector>
__global__ void __launch_bounds__(kThreads)
    ordered_kernel(const __grid_constant__ Problem p, const __grid_constant__ Ordered ordered) {
  using acc_t = Accumulator<value_t>;
  const int lane = threadIdx.x % kLanes, groups = kThreads / kLanes;
  const int32_t head = blockIdx.y;
  const uint32_t samples_per_query = p.heads * p.samples;
  for (int32_t token = blockIdx.x * groups + threadIdx.x / kLanes; token < p.tokens; token += gridDim.x * groups) {
    int32_t level = 0, first_cell = head * p.grad.cells_per_head;
    while (level + 1 < p.levels && token >= p.level[level + 1].start) {
      first_cell += (p.level[level].height + 1) * (p.level[level].width + 1);
      ++level;
    }
    const int32_t width = p.level[level].width, in_level = token - p.level[level].start;
    const int32_t row = in_level / width, column = in_level - row * width;
    for (int32_t channel = lane * kVector; channel < p.channels; channel += kLanes * kVector) {
      acc_t sum[kVector] = {};
#pragma unroll 1
      for (int corner = 0; corner < 4; ++corner) {  // that the pixel is of the samples of the cell
        const bool is_right = corner % 2, is_bottom = corner / 2;
        const int32_t cell = first_cell + (row + 1 - is_bottom) * (width + 1) + column + 1 - is_right;
        const int32_t end = ordered.starts[cell + 1];
        for (int32_t i = ordered.starts[cell]; i < end; ++i) {
          const int64_t number = ordered.order[i];
          const acc_t* record = static_cast<const acc_t*>(p.grad.records) + 3 * number;
          const acc_t right = record[0], bottom = record[1], weight = record[2];
          const acc_t factor = weight * (is_right ? right : 1 - right) * (is_bottom ? bottom : 1 - bottom);
          const int64_t query = static_cast<uint32_t>(number) / samples_per_query;
          const value_t* grad = static_cast<const value_t*>(p.grad.output) + (query * p.heads + head) * p.channels;
          acc_t grad_row[kVector];
          Packed<value_t, kVector>::load(grad + channel).unpack(grad_row);
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum[v] += factor * grad_row[v];
        }
      }
      value_t* to = static_cast<value_t*>(ordered.grad_value) +
                    (static_cast<int64_t>(token) * p.heads + head) * p.channels + channel;
      Packed<value_t, kVector>::pack(sum).store(to);
    }
  }
}

}  // namespace dinox
