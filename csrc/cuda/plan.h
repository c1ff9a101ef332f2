// How a problem is cut into blocks of threads, and which of the compiled kernels takes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "problem.h"

namespace dinox {

// What a kernel is compiled for: how many lanes share a row, and how many channels each of them loads at a time.
struct Variant {
  int lanes, vector;  // vector 1: any number of channels
  bool usual_points;  // kUsualPoints per level
};

struct Device {
  int multiprocessors;
  int64_t shared_bytes;  // that a block can be given
};

struct Launch {
  dim3 grid;
  unsigned threads;
  int64_t shared_bytes;
};

constexpr int kVectorBytes = 16;                  // of one load
constexpr int kLineBytes = 128;                   // of memory, what L1 serves at a time
constexpr int kTileWidth = 8;                     // queries; with kThreads, tiles of 8 x 4 at 32 channels
constexpr int kBlocksPerMultiprocessor = 4;       // fewer for each of them: smaller blocks
constexpr int64_t kMaxGrid = 65535;               // in y and z
constexpr int64_t kUsualSharedBytes = 48 * 1024;  // more has to be asked for
constexpr int64_t kReservedSharedBytes = 1024;    // of each block, by the system
// Shared memory pays where a row takes several additions from a block before it goes to global memory. An addition of a
// number there costs several instructions (there is no float reduction in shared memory), one in global memory a
// quarter of one (sm_90) but a share of the L2 cache's rate; so measure before changing this.
constexpr int64_t kAdditionsPerSharedRow = 8;

inline int log2_floor(int64_t x) {
  int log2 = 0;
  while ((x >> (log2 + 1)) > 0) ++log2;
  return log2;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Variant choose_variant(const Sizes& n, Number value_type) {
  const int bytes = size_of(value_type);
  const int vector = kVectorBytes / bytes;
  const bool usual_points = n.points == 4;
  // Offsets inside an image are 32 bits wide in the kernels with vectors, also those of float gradients.
  const bool fits = n.tokens * n.heads * n.channels * 4 < (int64_t{1} << 32);
  if (fits && value_type != Number::kDouble && n.channels > 0 && n.channels % 32 == 0)
    return {32 / vector, vector, usual_points};
  if (fits && value_type != Number::kDouble && n.channels == 16) return {16 / vector, vector, false};
  return {8, 1, false};
}

inline Problem make_problem(const Sizes& n, const std::vector<Level>& levels, Number value_type) {
  Problem p{};
  p.images = n.images, p.tokens = n.tokens, p.heads = n.heads, p.channels = n.channels, p.queries = n.queries;
  p.levels = n.levels, p.points = n.points, p.samples = n.levels * n.points;
  p.row_bytes = n.heads * n.channels * size_of(value_type);
  std::copy(levels.begin(), levels.end(), p.level);
  p.by_points = Divider::by(std::max<int64_t>(n.points, 1));
  std::fill_n(p.grad.shared_start, kMaxLevels, -1);
  return p;
}

// Tiles of `groups` groups of lanes, `heads` of which (a power of two) take the same query.
inline void cut_tiles(Problem& p, int groups, int log2_heads) {
  Tiles& tiles = p.tiles;
  tiles.log2_heads = log2_heads;
  tiles.log2_queries = log2_floor(groups) - log2_heads;
  tiles.log2_width = std::min(log2_floor(kTileWidth), tiles.log2_queries);
  tiles.rectangles = p.queries == p.tokens;
  tiles.per_block = 1;
  if (!tiles.rectangles) {
    tiles.count = ceil_div(p.queries, int64_t{1} << tiles.log2_queries);
    return;
  }
  tiles.count = 0;
  for (int l = 0; l < p.levels; ++l) {
    tiles.first[l] = tiles.count;
    tiles.count += ceil_div(p.level[l].width, int64_t{1} << tiles.log2_width) *
                   ceil_div(p.level[l].height, int64_t{1} << (tiles.log2_queries - tiles.log2_width));
  }
}

// Heads whose rows share a line of memory go together: all of the line is used at once, and rows of neighbouring groups
// come from different banks. At least four queries stay together as well.
inline int log2_heads_together(const Problem& p, int groups) {
  const int64_t row_bytes = std::max<int64_t>(p.row_bytes / std::max(p.heads, 1), 1);
  const int64_t heads = std::min<int64_t>({kLineBytes / row_bytes, p.heads, groups / 4});
  return log2_floor(std::max<int64_t>(heads, 1));
}

inline Launch plan_blocks(Problem& p, const Variant& variant, unsigned threads) {
  const int groups = threads / variant.lanes;
  cut_tiles(p, groups, log2_heads_together(p, groups));
  const auto heads = static_cast<unsigned>(ceil_div(p.heads, int64_t{1} << p.tiles.log2_heads));
  return {dim3(p.tiles.count, heads, p.images), threads, 0};
}

// Blocks of the usual size, or smaller ones where those would not fill the device.
inline Launch plan_forward(Problem& p, const Variant& variant, const Device& device) {
  const Launch launch = plan_blocks(p, variant, kThreads);
  const int64_t blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (blocks >= int64_t{kBlocksPerMultiprocessor} * device.multiprocessors) return launch;
  return plan_blocks(p, variant, kFewThreads);
}

// What a thread keeps of its samples in the fused backward pass.
inline int64_t kept_bytes(const Problem& p, const Variant& variant, unsigned threads, int accumulator_bytes) {
  return p.in.references == nullptr ? 0 : ceil_div(p.samples, variant.lanes) * 3 * threads * accumulator_bytes;
}

// The largest number of samples of one (query, head) for which blocks of the fused backward pass have the room.
inline int64_t most_samples(const Variant& variant, int accumulator_bytes) {
  return kUsualSharedBytes / (3 * kFewThreads * accumulator_bytes) * variant.lanes;
}

inline Launch plan_backward(Problem& p, const Variant& variant, const Device& device, int accumulator_bytes) {
  Launch launch = plan_forward(p, variant, device);
  launch.shared_bytes = kept_bytes(p, variant, launch.threads, accumulator_bytes);
  if (launch.shared_bytes <= kUsualSharedBytes) return launch;
  launch = plan_blocks(p, variant, kFewThreads);
  launch.shared_bytes = kept_bytes(p, variant, launch.threads, accumulator_bytes);
  return launch;
}

// Chooses levels whose gradients a block accumulates in shared memory, the smallest first, for blocks that each take a
// part of the queries of one (image, head). False: none, and p is as it was.
inline bool plan_shared_backward(Problem& p, const Variant& variant, const Device& device, Launch& launch) {
  if (p.grad.value == nullptr) return false;
  if (variant.vector == 1 || variant.lanes * variant.vector != 32) return false;  // as compiled
  const int64_t pairs = int64_t{p.images} * p.heads;
  const int64_t blocks_per_pair = std::max<int64_t>(device.multiprocessors / std::max<int64_t>(pairs, 1), 1);
  const int64_t additions = ceil_div(p.queries, blocks_per_pair) * p.points * 4;  // of a block to a level
  const int64_t kept = kept_bytes(p, variant, kManyThreads, sizeof(float));
  const int64_t stride = p.channels + 1;  // an odd number: the same channel of different rows, in different banks
  int64_t room = (device.shared_bytes - kReservedSharedBytes - kept) / (stride * int64_t{sizeof(float)});
  std::vector<int> by_size(p.levels);
  for (int l = 0; l < p.levels; ++l) by_size[l] = l;
  const auto tokens = [&](int l) { return int64_t{p.level[l].height} * p.level[l].width; };
  std::stable_sort(by_size.begin(), by_size.end(), [&](int a, int b) { return tokens(a) < tokens(b); });
  int64_t rows = 0;
  for (const int l : by_size) {
    if (rows + tokens(l) > room || additions < kAdditionsPerSharedRow * tokens(l)) break;
    p.grad.shared_start[l] = rows;
    rows += tokens(l);
  }
  if (rows == 0) return false;
  p.grad.shared_rows = rows;
  p.grad.shared_stride = stride;
  cut_tiles(p, kManyThreads / variant.lanes, 0);
  p.tiles.per_block = ceil_div(p.tiles.count, std::min<int64_t>(blocks_per_pair, std::max(p.tiles.count, 1)));
  const auto blocks = static_cast<unsigned>(ceil_div(p.tiles.count, p.tiles.per_block));
  launch = {dim3(blocks, p.heads, p.images), kManyThreads, rows * stride * int64_t{sizeof(float)} + kept};
  return true;
}

inline Launch plan_ordered(const Problem& p, const Variant& variant) {
  const int64_t groups = kThreads / variant.lanes;
  return {dim3(static_cast<unsigned>(ceil_div(p.tokens, groups)), p.heads, 1), kThreads, 0};
}

}  // namespace dinox
