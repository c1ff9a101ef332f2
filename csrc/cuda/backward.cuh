// Backward: the groups of the forward pass, with gradients.
//
// Each lane keeps its part of the three sums over channels that a sample's gradients need; a transposed sum then hands
// those of a sample to the lane that located it, which writes them once. Gradients of value are added to memory: rows
// of coarse levels, that many samples share, in shared memory first if the host has chosen so (their additions are
// loops there, but much fewer rows reach the L2 cache, where equal addresses queue); else directly. With p.grad.cells
// nothing is added: samples are recorded, and ordered.cuh sums them in a fixed order.
#pragma once

#include "samples.cuh"

namespace dinox {

// Shared memory of a block: rows of gradients of value, then three numbers for each sample of a thread (fused only).
template <typename acc_t>
__device__ __forceinline__ acc_t* shared_memory() {
  extern __shared__ __align__(16) unsigned char dinox_shared_memory[];
  return reinterpret_cast<acc_t*>(dinox_shared_memory);
}

// The gradients by weight and location of the samples of one group, until all of them are known.
template <int kLanes, typename acc_t>
struct Kept {
  acc_t* of_thread;  // one number for each thread of the block side by side: no bank conflicts

  // number `which` (0: weight, 1: x, 2: y) of sample i of the group
  __device__ __forceinline__ acc_t& at(int32_t i, int which, int lane) const {
    return of_thread[(i / kLanes * 3 + which) * static_cast<int32_t>(blockDim.x) + i % kLanes - lane];
  }
};

// Where gradients of value go, for the channels of one lane.
template <typename acc_t, typename offset_t>
struct ValueGradients {
  acc_t* image;
  offset_t part;  // of the row
  acc_t* shared;  // the same part of the first row in shared memory
};

template <bool kShared, int kVector, typename acc_t>
__device__ __forceinline__ void add_corners(const Problem& p, int32_t level, const Corners<acc_t>& corners,
                                            const acc_t (&grad)[kVector],
                                            const ValueGradients<acc_t, Offset<kVector>>& to) {
  const int32_t shared_start = kShared ? p.grad.shared_start[level] : -1;
  Offset<kVector> offset[4];
  corners.offsets(p.heads * p.channels * static_cast<int32_t>(sizeof(acc_t)), to.part, offset);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (!corners.inside[corner]) continue;
    if (kShared && shared_start >= 0) {
      const int32_t row = corners.token(corner) - p.level[level].start + shared_start;
      add_row_to_shared<kVector>(to.shared + row * p.grad.shared_stride, corners.factor[corner], grad);
    } else {
      add_row_to_global<kVector>(at_offset(to.image, offset[corner]), corners.factor[corner], grad);
    }
  }
}

// Sums over the channels of this lane: gradients of the sampled value by weight, and by x and y in pixels before
// weights.
template <int kVector, typename value_t, typename acc_t>
__device__ __forceinline__ void add_slopes(const Sample<acc_t>& sample, const uint32_t (&inside)[4],
                                           const Packed<value_t, kVector> (&packed)[4], const acc_t (&grad)[kVector],
                                           acc_t (&slopes)[3]) {
  acc_t dot[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    acc_t row[kVector];
    packed[corner].unpack(row);
    dot[corner] = grad[0] * row[0];
#pragma unroll
    for (int v = 1; v < kVector; ++v) dot[corner] += grad[v] * row[v];
    dot[corner] = inside[corner] ? dot[corner] : acc_t(0);
  }
  const acc_t top_slope = dot[kTopRight] - dot[kTopLeft], bottom_slope = dot[kBottomRight] - dot[kBottomLeft];
  const acc_t top = dot[kTopLeft] + sample.right * top_slope, bottom = dot[kBottomLeft] + sample.right * bottom_slope;
  slopes[0] += top + sample.bottom * (bottom - top);
  slopes[1] += top_slope + sample.bottom * (bottom_slope - top_slope);
  slopes[2] += bottom - top;
}

template <typename acc_t>
__device__ __forceinline__ void record(const Problem& p, const Work& work, int32_t i, int32_t level,
                                       const Located<acc_t>& located) {
  const int64_t at = (static_cast<int64_t>(work.query) * p.heads + work.head) * p.samples + i;
  int32_t cell = p.heads * p.grad.cells_per_head;  // of samples that count for nothing: behind all others
  if (located.sample.place & ((1 << kCornerBits) - 1)) {
    // A level has cells (top, left) from (-1, -1) on: its rows and columns and one more of each; so have those before.
    int32_t first = 0;
    for (int l = 0; l < level; ++l) first += (p.level[l].height + 1) * (p.level[l].width + 1);
    cell =
        work.head * p.grad.cells_per_head + first + (located.top + 1) * (p.level[level].width + 1) + located.left + 1;
  }
  p.grad.cells[at] = cell;
  acc_t* numbers = static_cast<acc_t*>(p.grad.records) + 3 * at;
  numbers[0] = located.sample.right;
  numbers[1] = located.sample.bottom;
  numbers[2] = located.sample.weight;
}

// Gradients of logits, which need all samples of the group.
template <typename value_t, int kLanes, typename acc_t>
__device__ __forceinline__ void finish_logits(const Problem& p, const Work& work, int lane,
                                              const Softmax<acc_t>& softmax, const Kept<kLanes, acc_t>& kept) {
  const int64_t base = work.index * p.samples;
  acc_t mean = 0;
#pragma unroll 2
  for (int32_t i = lane; i < work.samples; i += kLanes) {
    const acc_t logit = load_number<acc_t, true>(p.in.scalars, p.in.scalars_type, base + i);
    mean += softmax.weight(logit) * kept.at(i, 0, lane);
  }
  mean = sum_of_lanes<kLanes>(mean);
#pragma unroll 2
  for (int32_t i = lane; i < work.samples; i += kLanes) {
    const acc_t weight = softmax.weight(load_number<acc_t, true>(p.in.scalars, p.in.scalars_type, base + i));
    store_number<acc_t, true>(p.grad.scalars, p.in.scalars_type, base + i, weight * (kept.at(i, 0, lane) - mean));
  }
}

// Gradients of references, which need all samples of the group.
template <typename value_t, int kLanes, typename acc_t>
__device__ __forceinline__ void finish_references(const Problem& p, const Work& work, int lane,
                                                  const Kept<kLanes, acc_t>& kept) {
  const int64_t base = work.index * p.samples;
  __syncwarp();  // lanes read what others have kept
  const int32_t size = p.in.reference_size;
  for (int32_t level = lane; level < (work.samples > 0 ? p.levels : 0); level += kLanes) {
    acc_t x = 0, y = 0, w = 0, h = 0;
#pragma unroll 2
    for (int32_t point = 0; point < p.points; ++point) {
      const int32_t i = level * p.points + point;
      const acc_t grad_x = kept.at(i, 1, lane), grad_y = kept.at(i, 2, lane);
      x += grad_x;
      y += grad_y;
      if (size == 4) {
        const Pair<acc_t> offset = load_pair<acc_t, true>(p.in.pairs, p.in.pairs_type, base + i);
        w += grad_x == 0 ? acc_t(0) : grad_x * offset.x;  // an offset that is nowhere has no gradient
        h += grad_y == 0 ? acc_t(0) : grad_y * offset.y;
      }
    }
    acc_t* to = static_cast<acc_t*>(p.grad.references) + (work.index * p.levels + level) * size;
    to[0] = x;
    to[1] = y;
    if (size == 4) {
      to[2] = w * (acc_t(0.5) / p.points);
      to[3] = h * (acc_t(0.5) / p.points);
    }
  }
  __syncwarp();  // before the next tile's samples take their place
}

// The gradients of value of the samples that the lanes have located, one sample at a time: additions to shared memory
// are loops, whose code would not fit the instruction cache several times.
template <int kLanes, int kVector, int kPoints, typename acc_t>
__device__ __forceinline__ void add_samples(const Problem& p, int32_t first, const Sample<acc_t>& own,
                                            const acc_t (&grad)[kVector],
                                            const ValueGradients<acc_t, Offset<kVector>>& to) {
#pragma unroll 1
  for (int j = 0; j < kLanes && first + j < p.samples; ++j) {
    const int32_t level = level_of<kPoints>(p, first + j);
    const Corners<acc_t> corners(sample_of_lane<kLanes>(own, j), p.level[level].width);
    add_corners<true, kVector>(p, level, corners, grad, to);
  }
}

template <typename value_t, bool kFused, int kLanes, int kVector, int kPoints, bool kShared>
__device__ __forceinline__ void backward_group(const Problem& p, const Work& work, int lane,
                                               Accumulator<value_t>* shared_rows, Accumulator<value_t>* of_thread) {
  using acc_t = Accumulator<value_t>;
  Softmax<acc_t> softmax;
  if constexpr (kFused) softmax = softmax_of<kLanes, acc_t>(p, work, lane);
  const Kept<kLanes, acc_t> kept{of_thread};
  using offset_t = Offset<kVector>;
  const value_t* rows = rows_of_image(p, static_cast<const value_t*>(p.value), work.image);
  acc_t* grad_rows = rows_of_image(p, static_cast<acc_t*>(p.grad.value), work.image);
  const value_t* grad_output = static_cast<const value_t*>(p.grad.output) + work.index * p.channels;
  for (int32_t first = 0; first < p.samples; first += kLanes) {
    const Located<acc_t> located = locate<kPoints, kFused>(p, work, first + lane, softmax);
    acc_t slopes[kLanes][3] = {};
    for (int32_t channel = lane * kVector; channel - lane * kVector < p.channels; channel += kLanes * kVector) {
      const bool mine = work.query >= 0 && (kVector > 1 || channel < p.channels);
      const int32_t at = kVector > 1 || channel < p.channels ? channel : 0;
      const offset_t part = part_of_row<offset_t, value_t>(p, work.head, at);
      const ValueGradients<acc_t, offset_t> to{grad_rows, part_of_row<offset_t, acc_t>(p, work.head, at),
                                               shared_rows + at};
      Packed<value_t, kVector> packed_grad = Packed<value_t, kVector>::zero();
      if (mine) packed_grad = Packed<value_t, kVector>::load(grad_output + channel);
      acc_t grad[kVector];
      packed_grad.unpack(grad);
#pragma unroll
      for (int j = 0; j < kLanes; ++j) {
        if (may_end_before<kPoints>(j) && first + j >= p.samples) break;  // the same for all groups
        const int32_t level = level_of<kPoints>(p, first + j);
        const Sample<acc_t> sample = sample_of_lane<kLanes>(located.sample, j);
        Corners<acc_t> corners(sample, p.level[level].width);
        if constexpr (kVector == 1) {
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) corners.inside[corner] = mine ? corners.inside[corner] : 0;
        }
        Packed<value_t, kVector> packed[4];
        load_corners<kVector>(rows, p.row_bytes, part, corners, packed);
        add_slopes<kVector>(sample, corners.inside, packed, grad, slopes[j]);
        if (!kShared && p.grad.value != nullptr) add_corners<false, kVector>(p, level, corners, grad, to);
      }
      if constexpr (kShared) add_samples<kLanes, kVector, kPoints>(p, first, located.sample, grad, to);
    }
    transposed_sum<kLanes, 3>(slopes, lane);
    const int32_t i = first + lane;
    if (i >= work.samples) continue;
    const int32_t level = level_of<kPoints>(p, i);
    const acc_t grad_x = located.sample.weight * p.level[level].width * slopes[0][1];
    const acc_t grad_y = located.sample.weight * p.level[level].height * slopes[0][2];
    const int64_t index = work.index * p.samples + i;
    if constexpr (kFused) {
      kept.at(i, 0, lane) = slopes[0][0];
      kept.at(i, 1, lane) = grad_x;
      kept.at(i, 2, lane) = grad_y;
      if (p.grad.pairs != nullptr)
        store_pair<acc_t, true>(p.grad.pairs, p.in.pairs_type, index, grad_x * located.x_step, grad_y * located.y_step);
    } else {
      if (p.grad.scalars != nullptr) store_number<acc_t, false>(p.grad.scalars, p.in.scalars_type, index, slopes[0][0]);
      if (p.grad.pairs != nullptr) store_pair<acc_t, false>(p.grad.pairs, p.in.pairs_type, index, grad_x, grad_y);
    }
    if (p.grad.cells != nullptr) record(p, work, i, level, located);
  }
  if constexpr (kFused) {
    if (p.grad.scalars != nullptr) finish_logits<value_t, kLanes>(p, work, lane, softmax, kept);
    if (p.grad.references != nullptr) finish_references<value_t, kLanes>(p, work, lane, kept);
  }
}

// The rows in shared memory of one head to its rows of the gradient of value.
template <int kVector, typename acc_t>
__device__ __forceinline__ void flush_shared_rows(const Problem& p, int32_t image, int32_t head, const acc_t* shared) {
  const int32_t parts = p.channels / kVector;
  acc_t* rows = static_cast<acc_t*>(p.grad.value) + index_of(image, p.tokens, 0, p.heads, head) * p.channels;
  for (int32_t l = 0; l < p.levels; ++l) {
    const int32_t start = p.grad.shared_start[l];
    if (start < 0) continue;
    const int32_t tokens = p.level[l].height * p.level[l].width;
    for (int32_t i = threadIdx.x; i < tokens * parts; i += blockDim.x) {
      const int32_t token = i / parts, channel = (i - token * parts) * kVector;
      acc_t row[kVector];
      bool any = false;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        row[v] = shared[(start + token) * p.grad.shared_stride + channel + v];
        any = any || row[v] != 0;
      }
      if (!any) continue;
      acc_t* to = rows + static_cast<int64_t>(p.level[l].start + token) * (p.heads * p.channels) + channel;
      add_row_to_global<kVector>(to, acc_t(1), row);
    }
  }
}

template <typename value_t, bool kFused, int kLanes, int kVector, int kPoints, bool kShared>
__global__ void __launch_bounds__(kShared ? kManyThreads : kThreads,
                                  kShared ? 1 : kBackwardBlocks<Accumulator<value_t>>)
    backward_kernel(const __grid_constant__ Problem p) {
  using acc_t = Accumulator<value_t>;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  acc_t* shared = shared_memory<acc_t>();
  const int32_t shared_numbers = kShared ? p.grad.shared_rows * p.grad.shared_stride : 0;
  acc_t* of_thread = shared + shared_numbers + threadIdx.x;
  const int32_t image = blockIdx.z, head = blockIdx.y << p.tiles.log2_heads;
  if constexpr (kShared) {
    for (int32_t i = threadIdx.x; i < shared_numbers; i += blockDim.x) shared[i] = 0;
    __syncthreads();
  }
  for (int32_t t = 0; t < p.tiles.per_block; ++t) {
    const Work work = work_of(p, image, head, blockIdx.x * p.tiles.per_block + t, group);
    backward_group<value_t, kFused, kLanes, kVector, kPoints, kShared>(p, work, lane, shared, of_thread);
  }
  if constexpr (kShared) {
    __syncthreads();
    flush_shared_rows<kVector>(p, image, head, shared);
  }
}

}  // namespace dinox
