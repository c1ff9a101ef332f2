// Samples: which a group of lanes takes, where they fall, and how lanes share what they know of them.
//
// A group of kLanes lanes serves one (image, query, head), each lane a part of the channels. The samples are taken
// kLanes at a time: each lane locates one of them, then all lanes go through them, told by shuffles. All lanes of a
// warp take the same way through these loops; groups without a query do so with samples that count for nothing.
#pragma once

#include "numbers.cuh"

namespace dinox {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kUsualPoints = 4;  // for which levels of samples are known at compile time

// ---------------------------------------------------------------- what a group works on

struct Work {
  int32_t image, query, head;  // query -1: nothing
  int64_t index;               // of (image, query, head)
  int32_t samples;             // 0: nothing
};

__device__ __forceinline__ int32_t query_of(const Problem& p, int32_t tile, int32_t slot) {
  const Tiles& tiles = p.tiles;
  if (!tiles.rectangles) {
    const int64_t query = (static_cast<int64_t>(tile) << tiles.log2_queries) + slot;
    return query < p.queries ? static_cast<int32_t>(query) : -1;
  }
  int level = 0;
  while (level + 1 < p.levels && tile >= tiles.first[level + 1]) ++level;
  const int32_t height = p.level[level].height, width = p.level[level].width;
  const int32_t tiles_per_row = (width + (1 << tiles.log2_width) - 1) >> tiles.log2_width;
  const int32_t in_level = tile - tiles.first[level], tile_row = in_level / tiles_per_row;
  const int32_t tile_column = in_level - tile_row * tiles_per_row;
  const int32_t row = (tile_row << (tiles.log2_queries - tiles.log2_width)) + (slot >> tiles.log2_width);
  const int32_t column = (tile_column << tiles.log2_width) + (slot & ((1 << tiles.log2_width) - 1));
  return row < height && column < width ? p.level[level].start + row * width + column : -1;
}

// Of the group number `group` of the block. Heads that lie side by side in a line of memory go to neighbouring groups.
__device__ __forceinline__ Work work_of(const Problem& p, int32_t image, int32_t first_head, int32_t tile, int group) {
  Work work;
  work.image = image;
  work.head = first_head + (group & ((1 << p.tiles.log2_heads) - 1));
  work.query = tile < p.tiles.count ? query_of(p, tile, group >> p.tiles.log2_heads) : -1;
  if (work.head >= p.heads) work.query = -1;
  work.samples = work.query < 0 ? 0 : p.samples;
  work.index = work.query < 0 ? 0 : index_of(image, p.queries, work.query, p.heads, work.head);
  return work;
}

// ---------------------------------------------------------------- lanes of a group

template <int kLanes, typename T>
__device__ __forceinline__ T sum_of_lanes(T x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance, kLanes);
  return x;
}

// Lane j receives the sums over lanes of values[j]: half of the shuffles of as many sums for all lanes, and fewer.
template <int kLanes, int kValues, typename T>
__device__ __forceinline__ void transposed_sum(T (&values)[kLanes][kValues], int lane) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int j = 0; j < half; ++j) {
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        const T keep = upper ? values[j + half][k] : values[j][k];
        const T give = upper ? values[j][k] : values[j + half][k];
        values[j][k] = keep + __shfl_xor_sync(kAllLanes, give, half, kLanes);
      }
    }
  }
}

// ---------------------------------------------------------------- attention weights

template <typename acc_t>
struct Softmax {
  acc_t greatest = 0, factor = 1;

  __device__ __forceinline__ acc_t weight(acc_t logit) const { return exponential(logit - greatest) * factor; }
};

template <int kLanes, typename acc_t>
__device__ __forceinline__ Softmax<acc_t> softmax_of(const Problem& p, const Work& work, int lane) {
  const int64_t first = work.index * p.samples;
  Softmax<acc_t> softmax;
  acc_t greatest = -INFINITY, sum = 0;
#pragma unroll 2
  for (int i = lane; i < work.samples; i += kLanes) {
    const acc_t logit = load_number<acc_t, true>(p.in.scalars, p.in.scalars_type, first + i);
    greatest = logit > greatest ? logit : greatest;
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    const acc_t other = __shfl_xor_sync(kAllLanes, greatest, distance, kLanes);
    greatest = other > greatest ? other : greatest;
  }
#pragma unroll 2
  for (int i = lane; i < work.samples; i += kLanes) {
    sum += exponential(load_number<acc_t, true>(p.in.scalars, p.in.scalars_type, first + i) - greatest);
  }
  softmax.greatest = greatest;
  softmax.factor = 1 / sum_of_lanes<kLanes>(sum);
  return softmax;
}

// ---------------------------------------------------------------- where samples fall

enum Corner { kTopLeft = 0, kTopRight = 1, kBottomLeft = 2, kBottomRight = 3 };

// Place: token of the top left corner, which may lie outside of the level, and a bit for each corner inside of it.
template <typename acc_t>
struct Sample {
  int32_t place = 0;  // no corner: the sample counts for nothing
  acc_t right = 0, bottom = 0, weight = 0;
};

// What the lane that located a sample keeps of it.
template <typename acc_t>
struct Located {
  Sample<acc_t> sample;
  int32_t left = 0, top = 0;
  acc_t x_step = 0, y_step = 0;  // location per offset
};

// kPoints 0: any number, known at run time.
template <int kPoints>
__device__ __forceinline__ int32_t level_of(const Problem& p, int32_t sample) {
  if constexpr (kPoints > 0) return sample / kPoints;
  return p.by_points(sample);
}

// Whether the samples may end before the number `j` of those that the lanes have located: they end with a level.
template <int kPoints>
__device__ __forceinline__ constexpr bool may_end_before(int j) {
  if constexpr (kPoints > 0) return j % kPoints == 0;
  return true;
}

template <typename acc_t>
__device__ __forceinline__ const acc_t* reference_of(const Problem& p, const Work& work, int32_t level) {
  const int64_t row = static_cast<int64_t>(work.image) * p.queries + work.query;
  return static_cast<const acc_t*>(p.in.references) + (row * p.levels + level) * p.in.reference_size;
}

// x = location * width - 0.5 in pixels; a sample counts if -1 < x < width and -1 < y < height, which no NaN fulfils:
// only then are coordinates turned into integers.
template <int kPoints, bool kFused, typename acc_t>
__device__ __forceinline__ Located<acc_t> locate(const Problem& p, const Work& work, int32_t i,
                                                 const Softmax<acc_t>& softmax) {
  Located<acc_t> located;
  if (i >= work.samples) return located;
  const int32_t l = level_of<kPoints>(p, i);
  const int32_t height = p.level[l].height, width = p.level[l].width;
  const int64_t index = work.index * p.samples + i;
  const Pair<acc_t> pair = load_pair<acc_t, kFused>(p.in.pairs, p.in.pairs_type, index);
  acc_t weight = load_number<acc_t, kFused>(p.in.scalars, p.in.scalars_type, index);
  acc_t x = pair.x * width - acc_t(0.5), y = pair.y * height - acc_t(0.5);
  if constexpr (kFused) {
    const acc_t* reference = reference_of<acc_t>(p, work, l);
    weight = softmax.weight(weight);
    acc_t x_offset = pair.x, y_offset = pair.y;  // in pixels
    located.x_step = acc_t(1) / width;
    located.y_step = acc_t(1) / height;
    if (p.in.reference_size == 4) {  // offsets count half sizes of the box, shared by the points
      located.x_step = __ldg(reference + 2) * (acc_t(0.5) / p.points);
      located.y_step = __ldg(reference + 3) * (acc_t(0.5) / p.points);
      x_offset *= located.x_step * width;
      y_offset *= located.y_step * height;
    }
    x = (__ldg(reference) * width - acc_t(0.5)) + x_offset;
    y = (__ldg(reference + 1) * height - acc_t(0.5)) + y_offset;
  }
  if (!(x > acc_t(-1) && x < width && y > acc_t(-1) && y < height)) return located;
  const acc_t floor_x = floor(x), floor_y = floor(y);
  located.left = static_cast<int32_t>(floor_x);
  located.top = static_cast<int32_t>(floor_y);
  const int columns = (located.left >= 0 ? 0b0101 : 0) | (located.left + 1 < width ? 0b1010 : 0);
  const int rows = (located.top >= 0 ? 0b0011 : 0) | (located.top + 1 < height ? 0b1100 : 0);
  const int32_t token = p.level[l].start + located.top * width + located.left;
  located.sample.place = token * (1 << kCornerBits) | (columns & rows);
  located.sample.right = x - floor_x;
  located.sample.bottom = y - floor_y;
  located.sample.weight = weight;
  return located;
}

// The sample that another lane of the group has located.
template <int kLanes, typename acc_t>
__device__ __forceinline__ Sample<acc_t> sample_of_lane(const Sample<acc_t>& own, int lane) {
  Sample<acc_t> sample;
  sample.place = __shfl_sync(kAllLanes, own.place, lane, kLanes);
  sample.right = __shfl_sync(kAllLanes, own.right, lane, kLanes);
  sample.bottom = __shfl_sync(kAllLanes, own.bottom, lane, kLanes);
  sample.weight = __shfl_sync(kAllLanes, own.weight, lane, kLanes);
  return sample;
}

template <typename acc_t>
struct Corners {
  int32_t top_left;    // token
  int32_t width;       // tokens from top to bottom
  uint32_t inside[4];  // not 0: the corner is a pixel of the level
  acc_t factor[4];     // bilinear factor times weight

  __device__ __forceinline__ Corners(const Sample<acc_t>& sample, int32_t width)
      : top_left(sample.place >> kCornerBits), width(width) {
    const acc_t right = sample.weight * sample.right, left = sample.weight - right;
    factor[kBottomRight] = right * sample.bottom;
    factor[kTopRight] = right - factor[kBottomRight];
    factor[kBottomLeft] = left * sample.bottom;
    factor[kTopLeft] = left - factor[kBottomLeft];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) inside[corner] = sample.place & (1 << corner);
  }
  __device__ __forceinline__ int32_t token(int corner) const {
    return top_left + (corner / 2 ? width : 0) + corner % 2;
  }
  // Of all four corners in rows of row_bytes, for a part of the row.
  template <typename offset_t>
  __device__ __forceinline__ void offsets(int32_t row_bytes, offset_t part, offset_t (&offset)[4]) const {
    offset[kTopLeft] = offset_of<offset_t>(top_left, row_bytes, part);
    offset[kTopRight] = offset[kTopLeft] + row_bytes;
    offset[kBottomLeft] = offset[kTopLeft] + static_cast<offset_t>(width) * static_cast<offset_t>(row_bytes);
    offset[kBottomRight] = offset[kBottomLeft] + row_bytes;
  }
};

// Offsets in an image: vectors are only used where those of all images are below 2^32.
template <int kVector>
using Offset = std::conditional_t<(kVector > 1), uint32_t, int64_t>;

// A part of the row of `head`, from the first token of an image on.
template <typename offset_t, typename T>
__device__ __forceinline__ offset_t part_of_row(const Problem& p, int32_t head, int32_t channel) {
  return (static_cast<offset_t>(head) * static_cast<offset_t>(p.channels) + static_cast<offset_t>(channel)) * sizeof(T);
}

template <typename T>
__device__ __forceinline__ T* rows_of_image(const Problem& p, T* all, int32_t image) {
  return all + index_of(image, p.tokens, 0, p.heads, 0) * p.channels;
}

// The channels of the lane at the four corners. Where a corner is not a pixel of the level, those of the image's first
// pixel: all lanes load, which is cheaper than choosing to, and nobody may use them, for they may be NaN.
template <int kVector, typename value_t, typename acc_t>
__device__ __forceinline__ void load_corners(const value_t* rows, int32_t row_bytes, Offset<kVector> part,
                                             const Corners<acc_t>& corners, Packed<value_t, kVector> (&packed)[4]) {
  Offset<kVector> offset[4];
  corners.offsets(row_bytes, part, offset);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    packed[corner] = Packed<value_t, kVector>::load(at_offset(rows, corners.inside[corner] ? offset[corner] : 0));
  }
}

}  // namespace dinox
