// One call of an operator as kernels see it: the argument of each of them.
#pragma once

#include <cstdint>

#include "../sizes.h"
#include "index.h"

namespace dinox {

constexpr int kMaxLevels = 64;  // their table travels as a kernel argument: no copy, no wait

// A place is a token and a mask of four corners in 32 bits; it may lie one row and one pixel before the level.
constexpr int kCornerBits = 4;
constexpr int64_t kMaxTokensOnDevice = int64_t{1} << (30 - kCornerBits);

enum class Number : int32_t { kFloat, kDouble, kHalf, kBfloat };

// Threads of a block: usually, for few queries (to fill the device), and for blocks with many rows in shared memory, of
// which one fits a multiprocessor. More threads in a block share more pixels in L1.
constexpr int kThreads = 256;
constexpr int kFewThreads = 64;
constexpr int kManyThreads = 512;

// Blocks of kThreads that a multiprocessor shall hold: they bound the registers of a thread to 65536 / (blocks *
// threads). More blocks hide more of the latency of loads, more registers let a thread have more loads under way; 64
// and 128 are the fewest with which no kernel spills on sm_80 and newer. With double, kernels need twice as many and
// speed is no concern.
template <typename acc_t>
constexpr int kForwardBlocks = sizeof(acc_t) == 8 ? 2 : 4;
template <typename acc_t>
constexpr int kBackwardBlocks = sizeof(acc_t) == 8 ? 1 : 2;

constexpr int size_of(Number type) { return type == Number::kDouble ? 8 : type == Number::kFloat ? 4 : 2; }

// What samples are given as: locations and attention weights or, with references, offsets and logits.
struct Input {
  const void* pairs;    // (B, Q, H, L, P, 2)
  const void* scalars;  // (B, Q, H, L, P)
  Number pairs_type, scalars_type;
  const void* references;  // (B, Q, L, 2 or 4), or null
  int32_t reference_size;
};

// A block takes consecutive tiles of queries. Tiles are runs of queries or, where the queries are the tokens of the
// levels themselves, rectangles of a level: their samples share more pixels.
struct Tiles {
  int32_t count, per_block;
  int32_t log2_queries;  // of a tile
  int32_t log2_width;    // of a rectangle
  int32_t log2_heads;    // heads that a block takes side by side
  bool rectangles;
  int32_t first[kMaxLevels];  // tile of each level
};

// Where gradients go, in the accumulator's type unless said otherwise. Null: nobody asks for it.
struct Gradients {
  const void* output;  // (B, Q, H, C), in value's type
  void* value;         // (B, S, H, C), zeros at first; null also where samples are recorded instead
  void* pairs;         // as Input::pairs, in its type
  void* scalars;       // as Input::scalars, in its type
  void* references;    // (B, Q, H, L, 2 or 4): still to be summed over heads
  int32_t* cells;      // (Q, H, L, P): number of the cell of each sample, see ordered.cuh
  void* records;       // (Q, H, L, P, 3): right, bottom, weight of each sample
  int32_t cells_per_head;
  int32_t shared_rows;               // rows of a head that a block accumulates in shared memory,
  int32_t shared_stride;             // numbers from one to the next,
  int32_t shared_start[kMaxLevels];  // and the first of each level, or -1
};

struct Problem {
  int32_t images, tokens, heads, channels, queries, levels, points, samples;  // samples: levels * points
  int32_t row_bytes;                                                          // from token to token of value
  Level level[kMaxLevels];
  Divider by_points;
  Tiles tiles;
  Input in;
  const void* value;
  void* output;
  Gradients grad;
};

// Records of the samples of one image, sorted by cell: see ordered.cuh.
struct Ordered {
  const int64_t* order;   // numbers of the records (Q, H, L, P), sorted by cell
  const int32_t* starts;  // where each cell's records begin therein; one more for the end
  void* grad_value;       // (S, H, C) of the image, in value's type
};

}  // namespace dinox
