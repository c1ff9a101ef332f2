// The loops of ms_deform_attn on the CPU. ms_deform_attn_kernel.cpp includes this file once per instruction set, each
// time inside a namespace of its own and with
//   DINOX_VECTOR_BYTES  size of a vector register
//   DINOX_TARGET        function attribute that selects the instruction set
// Every function here carries that attribute: compilers lower vector types function by function, before they inline.
// No include guard, by intention.

#define DINOX_INLINE inline __attribute__((always_inline)) DINOX_TARGET

#include "rows.h"

// ---------------------------------------------------------------- rows of value

// Copies `tokens` rows of `channels` numbers, filled up with zeros to `padded`. Strides are in elements.
template <typename to_t, typename from_t>
DINOX_INLINE void copy_rows(const from_t* from, int64_t from_stride, int64_t channels, to_t* to, int64_t to_stride,
                            int64_t padded, int64_t tokens) {
  constexpr int64_t kUsualChannels = 32;
  for (int64_t token = 0; token < tokens; ++token) {
    const from_t* __restrict source = from + token * from_stride;
    to_t* __restrict row = to + token * to_stride;
    if (channels == kUsualChannels) {  // a loop of known length is a few vector instructions
      for (int64_t c = 0; c < kUsualChannels; ++c) row[c] = static_cast<to_t>(source[c]);
    } else {
      for (int64_t c = 0; c < channels; ++c) row[c] = static_cast<to_t>(source[c]);
    }
    for (int64_t c = channels; c < padded; ++c) row[c] = static_cast<to_t>(0);
  }
}

// ---------------------------------------------------------------- what samples are given as

// kChunk samples: where they are, in pixels of their level, and their attention weights.
template <typename T>
struct Samples {
  alignas(64) T x[kChunk], y[kChunk], weight[kChunk];
};

// `count` pairs (x, y) side by side to two arrays; zeros behind them up to a whole chunk.
template <typename T>
DINOX_INLINE void split_pairs(const T* __restrict pairs, int64_t count, T* __restrict x, T* __restrict y) {
  if (count == kChunk) {  // the usual number of levels times points: a loop that compilers turn into shuffles
    for (int64_t i = 0; i < kChunk; ++i) {
      x[i] = pairs[2 * i];
      y[i] = pairs[2 * i + 1];
    }
    return;
  }
  for (int64_t i = 0; i < kChunk; ++i) {
    x[i] = i < count ? pairs[2 * i] : T(0);
    y[i] = i < count ? pairs[2 * i + 1] : T(0);
  }
}

template <typename T>
DINOX_INLINE void copy_chunk(const T* __restrict from, int64_t count, T* __restrict to) {
  if (count == kChunk) {
    __builtin_memcpy(to, from, kChunk * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < kChunk; ++i) to[i] = i < count ? from[i] : T(0);
}

// Greatest logit of one (query, head), and one over the sum of exp(logit - greatest).
template <typename T>
struct Softmax {
  T greatest, factor;
};

template <typename T>
DINOX_INLINE Softmax<T> softmax_of(const T* logits, int64_t count) {
  T greatest = logits[0];
  for (int64_t i = 1; i < count; ++i) greatest = logits[i] > greatest ? logits[i] : greatest;
  T sum = 0;
  for (int64_t first = 0; first < count; first += kChunk) {
    alignas(64) T powers[kChunk];
    const int64_t here = std::min(kChunk, count - first);
    copy_chunk(logits + first, here, powers);
    for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
      Vector<T> logit;
      load_vector(powers + i, logit);
      store_vector(powers + i, exp_of(logit - greatest));
    }
    for (int64_t i = 0; i < here; ++i) sum += powers[i];
  }
  return {greatest, 1 / sum};
}

template <typename T>
DINOX_INLINE void apply_softmax(const Softmax<T>& softmax, T* logits) {  // kChunk of them
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> logit;
    load_vector(logits + i, logit);
    store_vector(logits + i, exp_of(logit - softmax.greatest) * softmax.factor);
  }
}

// From locations in [0, 1] to pixels, in place.
template <typename T>
DINOX_INLINE void to_pixels(const LevelsOfSamples<T>& levels, Samples<T>& s) {
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> x, y, width, height;
    load_vector(s.x + i, x);
    load_vector(s.y + i, y);
    load_vector(levels.widths + i, width);
    load_vector(levels.heights + i, height);
    store_vector(s.x + i, x * width - T(0.5));
    store_vector(s.y + i, y * height - T(0.5));
  }
}

// ---------------------------------------------------------------- where samples fall

template <typename T>
struct Footprints {
  alignas(64) T x_fraction[kChunk];        // of the way from the left to the right corner
  alignas(64) T y_fraction[kChunk];        // from top to bottom
  alignas(64) T weight[kChunk];            // attention weight; 0 where the sample counts for nothing
  alignas(64) T factor[4][kChunk];         // weight times bilinear factor of each corner
  alignas(64) Integer<T> corners[kChunk];  // bit c is set: corner c lies inside the level; 0: the sample does not count
  alignas(64) Integer<T> token[kChunk];    // of the top left corner (meaningless where that corner is not inside)
};

// A sample counts if -1 < x < width and -1 < y < height in pixels, which no NaN fulfils: only then are coordinates
// turned into integers.
template <typename T>
DINOX_INLINE void locate(const LevelsOfSamples<T>& levels, const Samples<T>& s, Footprints<T>& f) {
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> x, y, weight, width, height;
    Integers<T> row_length, start;
    load_vector(s.x + i, x);
    load_vector(s.y + i, y);
    load_vector(s.weight + i, weight);
    load_vector(levels.widths + i, width);
    load_vector(levels.heights + i, height);
    load_vector(levels.row_lengths + i, row_length);
    load_vector(levels.starts + i, start);

    const Integers<T> counts = (x > T(-1)) & (x < width) & (y > T(-1)) & (y < height);  // true is -1, all bits set
    x = counts ? x : Vector<T>{};
    y = counts ? y : Vector<T>{};
    weight = counts ? weight : Vector<T>{};

    Integers<T> left = __builtin_convertvector(x, Integers<T>), top = __builtin_convertvector(y, Integers<T>);
    left += x < __builtin_convertvector(left, Vector<T>);  // towards zero -> downwards
    top += y < __builtin_convertvector(top, Vector<T>);
    const Vector<T> right_part = x - __builtin_convertvector(left, Vector<T>);
    const Vector<T> bottom_part = y - __builtin_convertvector(top, Vector<T>);
    const Vector<T> last_column = width - 1, last_row = height - 1;
    const Integers<T> columns = ((left >= 0) & 0b0101) | ((x < last_column) & 0b1010);
    const Integers<T> rows = ((top >= 0) & 0b0011) | ((y < last_row) & 0b1100);

    store_vector(f.x_fraction + i, right_part);
    store_vector(f.y_fraction + i, bottom_part);
    store_vector(f.weight + i, weight);
    store_vector(f.factor[kTopLeft] + i, weight * (1 - bottom_part) * (1 - right_part));
    store_vector(f.factor[kTopRight] + i, weight * (1 - bottom_part) * right_part);
    store_vector(f.factor[kBottomLeft] + i, weight * bottom_part * (1 - right_part));
    store_vector(f.factor[kBottomRight] + i, weight * bottom_part * right_part);
    store_vector(f.corners + i, counts & columns & rows);
    store_vector(f.token + i, start + top * row_length + left);
  }
}

// ---------------------------------------------------------------- forward

// Inputs of one head lie far apart from query to query: too far for the hardware to foresee.
template <typename T>
DINOX_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// The number `member` of the reference of each sample's level, for samples [first, first + kChunk).
template <typename T>
DINOX_INLINE void expand_references(const Problem<T>& p, const T* references, int64_t member, int64_t first,
                                    T* __restrict expanded) {
  constexpr int64_t kUsualPoints = 4;
  const int64_t size = p.in.reference_size;
  const int64_t count = std::min(kChunk, p.samples() - first);
  if (p.n.points == kUsualPoints && count == kChunk) {
    const T* from = references + first / kUsualPoints * size + member;
    for (int64_t level = 0; level < kChunk / kUsualPoints; ++level)
      for (int64_t point = 0; point < kUsualPoints; ++point) expanded[level * kUsualPoints + point] = from[level * size];
    return;
  }
  for (int64_t i = 0; i < kChunk; ++i)
    expanded[i] = i < count ? references[(first + i) / p.n.points * size + member] : T(0);
}

// From offsets in s to pixels, in place: offsets count cells around a point, or halves of a box shared by the points.
template <typename T>
DINOX_INLINE void offsets_to_pixels(const Problem<T>& p, const T* references, int64_t first,
                                    const LevelsOfSamples<T>& levels, Samples<T>& s) {
  alignas(64) T anchor_x[kChunk], anchor_y[kChunk], anchor_w[kChunk], anchor_h[kChunk];
  const bool boxes = p.in.reference_size == 4;
  expand_references(p, references, 0, first, anchor_x);
  expand_references(p, references, 1, first, anchor_y);
  if (boxes) {
    expand_references(p, references, 2, first, anchor_w);
    expand_references(p, references, 3, first, anchor_h);
  }
  const T share = T(0.5) / p.n.points;
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> x, y, from_x, from_y, width, height;
    load_vector(s.x + i, x);
    load_vector(s.y + i, y);
    load_vector(anchor_x + i, from_x);
    load_vector(anchor_y + i, from_y);
    load_vector(levels.widths + i, width);
    load_vector(levels.heights + i, height);
    if (boxes) {
      Vector<T> box_width, box_height;
      load_vector(anchor_w + i, box_width);
      load_vector(anchor_h + i, box_height);
      x *= box_width * width * share;
      y *= box_height * height * share;
    }
    store_vector(s.x + i, from_x * width - T(0.5) + x);
    store_vector(s.y + i, from_y * height - T(0.5) + y);
  }
}

// Samples [first, first + kChunk) of the (query, head) number `index`.
template <typename T, bool Raw>
DINOX_INLINE void read_samples(const Problem<T>& p, int64_t index, int64_t first, const Softmax<T>& softmax,
                               const LevelsOfSamples<T>& levels, Samples<T>& s) {
  const int64_t sample = index * p.samples() + first;
  const int64_t count = std::min(kChunk, p.samples() - first);
  split_pairs(p.in.pairs + 2 * sample, count, s.x, s.y);
  copy_chunk(p.in.scalars + sample, count, s.weight);
  if constexpr (Raw) {
    apply_softmax(softmax, s.weight);
    offsets_to_pixels(p, p.in.references_of(p.n, index / p.n.heads), first, levels, s);
  } else {
    to_pixels(levels, s);
  }
}

// Channels [channel, channel + Blocks * kBlock) of queries [begin, end) of one (image, head).
template <typename T, typename Stored, bool Raw, int Blocks>
DINOX_INLINE void forward_channels(const Problem<T>& p, const typename Stored::element* rows, int64_t stride,
                                   int64_t image, int64_t head, int64_t begin, int64_t end, int64_t channel) {
  typedef typename Stored::element element;
  const int64_t samples = p.samples();
  const element* base = rows + channel;
  Samples<T> s;
  Footprints<T> f;
  for (int64_t query = begin; query < end; ++query) {
    const int64_t index = p.index(image, query, head);
    const int64_t ahead = p.index(image, std::min(query + kQueriesAhead, end - 1), head) * samples;
    prefetch(p.in.pairs + 2 * ahead, 2 * samples);
    prefetch(p.in.scalars + ahead, samples);
    const Softmax<T> softmax = Raw ? softmax_of(p.in.scalars + index * samples, samples) : Softmax<T>{};
    Row<T, Blocks> sum;
    sum.zero();
    for (int64_t first = 0; first < samples; first += kChunk) {
      const int64_t count = std::min(kChunk, samples - first);
      const LevelsOfSamples<T> levels = p.levels_of_samples(first);
      read_samples<T, Raw>(p, index, first, softmax, levels, s);
      locate(levels, s, f);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t below = levels.row_lengths[i] * stride;
        const element* top_left = base + f.token[i] * stride;
        const element* corners[4] = {top_left, top_left + stride, top_left + below, top_left + below + stride};
        Row<T, Blocks> row;
        if (f.corners[i] == kAllCorners) {
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            Stored::load(corners[corner], row);
            sum.add(f.factor[corner][i], row);
          }
        } else if (f.corners[i] != 0) {
#pragma GCC unroll 1
          for (int corner = 0; corner < 4; ++corner) {
            if (!(f.corners[i] >> corner & 1)) continue;
            Stored::load(corners[corner], row);
            sum.add(f.factor[corner][i], row);
          }
        }
      }
    }
    element* to = static_cast<element*>(p.output) + index * p.n.channels + channel;
    Stored::store(sum, to, p.n.channels - channel);
  }
}

// Queries [begin, end) of one (image, head), whose value rows are `stride` elements apart.
template <typename T, typename Stored, bool Raw>
DINOX_INLINE void forward_queries(const Problem<T>& p, const typename Stored::element* rows, int64_t stride,
                                  int64_t image, int64_t head, int64_t begin, int64_t end) {
  const int64_t blocks = p.blocks();
  int64_t block = 0;
  for (; blocks - block >= 4; block += 4)
    forward_channels<T, Stored, Raw, 4>(p, rows, stride, image, head, begin, end, block * kBlock<T>);
  for (; blocks - block >= 2; block += 2)
    forward_channels<T, Stored, Raw, 2>(p, rows, stride, image, head, begin, end, block * kBlock<T>);
  if constexpr (!Stored::kInPairs) {
    if (blocks > block) forward_channels<T, Stored, Raw, 1>(p, rows, stride, image, head, begin, end, block * kBlock<T>);
  }
}

// ---------------------------------------------------------------- backward

// Samples of a block of queries of one (image, head, level), in chunks across queries; and their gradients.
template <typename T>
struct Block {
  std::vector<T> pairs, weights;          // as they are given, filled up with zeros; then the gradients
  std::vector<Footprints<T>> footprints;  // a chunk each
  std::vector<T> dots;                    // of grad_output with value at each corner of each sample: 4 each

  DINOX_TARGET explicit Block(int64_t points) {
    const int64_t chunks = (kQueriesPerBlock * points + kChunk - 1) / kChunk;
    pairs.resize(2 * chunks * kChunk);
    weights.resize(chunks * kChunk);
    footprints.resize(chunks);
    dots.resize(4 * chunks * kChunk);
  }
};

template <typename T>
DINOX_INLINE void copy_points(const T* __restrict from, int64_t count, T* __restrict to) {
  if (count == 4) {  // the usual numbers: copies of a fixed size are one instruction or two
    __builtin_memcpy(to, from, 4 * sizeof(T));
  } else if (count == 8) {
    __builtin_memcpy(to, from, 8 * sizeof(T));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

// Gathers the samples of queries [begin, begin + queries) and finds their footprints.
template <typename T>
DINOX_INLINE void read_block(const Problem<T>& p, int64_t image, int64_t head, int64_t level, int64_t begin,
                             int64_t queries, Block<T>& block) {
  const int64_t points = p.n.points, samples = queries * points;
  const T height = p.levels[level].height, width = p.levels[level].width;
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t sample = p.index(image, begin + q, head) * p.samples() + level * points;
    T* pairs = block.pairs.data() + 2 * q * points;
    copy_points(p.in.pairs + 2 * sample, 2 * points, pairs);
    copy_points(p.in.scalars + sample, points, block.weights.data() + q * points);
    if (p.in.references != nullptr) {
      const T* reference =
          p.in.references_of(p.n, image * p.n.queries + begin + q) + level * p.in.reference_size;
      const bool box = p.in.reference_size == 4;
      const T x_step = box ? reference[2] * (T(0.5) / points) : 1 / width;
      const T y_step = box ? reference[3] * (T(0.5) / points) : 1 / height;
      for (int64_t i = 0; i < points; ++i) {
        pairs[2 * i] = reference[0] + pairs[2 * i] * x_step;
        pairs[2 * i + 1] = reference[1] + pairs[2 * i + 1] * y_step;
      }
    }
  }
  const LevelsOfSamples<T> levels = p.constants_of_level(level);
  Samples<T> s;
  for (int64_t first = 0, chunk = 0; first < samples; first += kChunk, ++chunk) {
    const int64_t count = std::min(kChunk, samples - first);
    split_pairs(block.pairs.data() + 2 * first, count, s.x, s.y);
    copy_chunk(block.weights.data() + first, count, s.weight);
    to_pixels(levels, s);
    locate(levels, s, block.footprints[chunk]);
  }
}

// One corner of one sample: its share of the gradient of value. Returns the products of grad_output and value there.
template <typename T, int Blocks>
DINOX_INLINE Vector<T> visit_corner(const Row<T, Blocks>& grad, T factor, const T* value, T* grad_value) {
  Row<T, Blocks> row;
  row.load(value);
  const Vector<T> products = grad.dot(row);
  row.load(grad_value);
  row.add(factor, grad);
  row.store(grad_value);
  return products;
}

// Adds what comes through channels [channel, channel + Blocks * kBlock) to grad_value and to the dots of the block.
template <typename T, int Blocks>
DINOX_INLINE void visit_block(const Problem<T>& p, const LevelRows<T>& rows, int64_t image, int64_t head,
                              int64_t level, int64_t begin, int64_t queries, int64_t channel, Block<T>& block) {
  const int64_t stride = rows.stride, below = p.levels[level].width * stride;
  const int64_t steps[4] = {0, stride, below, below + stride};
  const int64_t left = p.n.channels - channel;
  int64_t sample = 0;
  for (int64_t q = 0; q < queries; ++q) {
    Row<T, Blocks> grad;
    const T* from = p.grad_output + p.index(image, begin + q, head) * p.n.channels + channel;
    if (left >= Row<T, Blocks>::kChannels) {
      grad.load(from);
    } else {
      alignas(64) T padded[Row<T, Blocks>::kChannels] = {};
      for (int64_t c = 0; c < left; ++c) padded[c] = from[c];
      grad.load(padded);
    }
    for (int64_t point = 0; point < p.n.points; ++point, ++sample) {
      const Footprints<T>& f = block.footprints[sample / kChunk];
      const int64_t i = sample % kChunk;
      if (f.corners[i] == 0) continue;
      const int64_t top_left = f.token[i] * stride + channel;
      Vector<T> products[4] = {};
      if (f.corners[i] == kAllCorners) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t at = top_left + steps[corner];
          products[corner] = visit_corner(grad, f.factor[corner][i], rows.value + at, rows.grad + at);
        }
      } else {
#pragma GCC unroll 1
        for (int corner = 0; corner < 4; ++corner) {
          if (!(f.corners[i] >> corner & 1)) continue;
          const int64_t at = top_left + steps[corner];
          products[corner] = visit_corner(grad, f.factor[corner][i], rows.value + at, rows.grad + at);
        }
      }
      alignas(32) T sums[4];
      sum_lanes(products, sums);
      T* dots = block.dots.data() + 4 * sample;
      for (int corner = 0; corner < 4; ++corner) dots[corner] += sums[corner];
    }
  }
}

// From the dots of a block to the gradients of its samples' locations and weights.
template <typename T>
DINOX_INLINE void write_block(const Problem<T>& p, int64_t image, int64_t head, int64_t level, int64_t begin,
                              int64_t queries, Block<T>& block) {
  const int64_t points = p.n.points, samples = queries * points;
  const T height = p.levels[level].height, width = p.levels[level].width;
  for (int64_t first = 0, chunk = 0; first < samples; first += kChunk, ++chunk) {
    const Footprints<T>& f = block.footprints[chunk];
    const T* __restrict dots = block.dots.data() + 4 * first;
    T* __restrict pairs = block.pairs.data() + 2 * first;
    T* __restrict weights = block.weights.data() + first;
    for (int64_t i = 0; i < kChunk; ++i) {
      const T top_slope = dots[4 * i + kTopRight] - dots[4 * i + kTopLeft];
      const T bottom_slope = dots[4 * i + kBottomRight] - dots[4 * i + kBottomLeft];
      const T top_dot = dots[4 * i + kTopLeft] + f.x_fraction[i] * top_slope;
      const T bottom_dot = dots[4 * i + kBottomLeft] + f.x_fraction[i] * bottom_slope;
      weights[i] = top_dot + f.y_fraction[i] * (bottom_dot - top_dot);
      pairs[2 * i] = f.weight[i] * width * (top_slope + f.y_fraction[i] * (bottom_slope - top_slope));
      pairs[2 * i + 1] = f.weight[i] * height * (bottom_dot - top_dot);
    }
  }
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t sample = p.index(image, begin + q, head) * p.samples() + level * points;
    copy_points(block.pairs.data() + 2 * q * points, 2 * points, p.grad_pairs + 2 * sample);
    copy_points(block.weights.data() + q * points, points, p.grad_weights + sample);
  }
}

// All queries of one (image, head, level).
template <typename T>
inline DINOX_TARGET void backward_task(const Problem<T>& p, const LevelRows<T>& rows, int64_t image, int64_t head,
                                int64_t level) {
  Block<T> block(p.n.points);
  for (int64_t begin = 0; begin < p.n.queries; begin += kQueriesPerBlock) {
    const int64_t queries = std::min(kQueriesPerBlock, p.n.queries - begin);
    read_block(p, image, head, level, begin, queries, block);
    std::fill(block.dots.begin(), block.dots.end(), T(0));
    const int64_t blocks = p.blocks();
    int64_t done = 0;
    for (; blocks - done >= 4; done += 4)
      visit_block<T, 4>(p, rows, image, head, level, begin, queries, done * kBlock<T>, block);
    for (; blocks - done >= 2; done += 2)
      visit_block<T, 2>(p, rows, image, head, level, begin, queries, done * kBlock<T>, block);
    if (blocks > done) visit_block<T, 1>(p, rows, image, head, level, begin, queries, done * kBlock<T>, block);
    write_block(p, image, head, level, begin, queries, block);
  }
}

// ---------------------------------------------------------------- the chain to raw inputs

// Attention weights of all heads of the query number `row` of (B, Q), from logits.
template <typename T>
DINOX_INLINE void softmax_row(const Problem<T>& p, const T* logits, T* weights, int64_t row) {
  const int64_t samples = p.samples();
  for (int64_t head = 0; head < p.n.heads; ++head) {
    const int64_t begin = (row * p.n.heads + head) * samples;
    const Softmax<T> softmax = softmax_of(logits + begin, samples);
    for (int64_t first = 0; first < samples; first += kChunk) {
      alignas(64) T chunk[kChunk];
      const int64_t count = std::min(kChunk, samples - first);
      copy_chunk(logits + begin + first, count, chunk);
      apply_softmax(softmax, chunk);
      for (int64_t i = 0; i < count; ++i) weights[begin + first + i] = chunk[i];
    }
  }
}

// In place, for the query number `row` of (B, Q): gradients of locations to those of offsets (and of references),
// gradients of weights to those of logits.
template <typename T>
DINOX_INLINE void chain_row(const Problem<T>& p, const T* offsets, T* grad_references, int64_t row) {
  const int64_t size = p.in.reference_size, points = p.n.points, samples = p.samples();
  const T* references = p.in.references_of(p.n, row);
  T* grad_reference = grad_references + row * p.n.levels * size;
  std::fill_n(grad_reference, p.n.levels * size, T(0));
  for (int64_t head = 0; head < p.n.heads; ++head) {
    const int64_t begin = (row * p.n.heads + head) * samples;
    const T* weights = p.in.scalars + begin;
    T* grad_weights = p.grad_weights + begin;
    T mean = 0;
    for (int64_t i = 0; i < samples; ++i) mean += weights[i] * grad_weights[i];
    for (int64_t i = 0; i < samples; ++i) grad_weights[i] = weights[i] * (grad_weights[i] - mean);
    for (int64_t level = 0; level < p.n.levels; ++level) {
      const T* reference = references + level * size;
      const T* pairs = offsets + 2 * (begin + level * points);
      T* grad_pairs = p.grad_pairs + 2 * (begin + level * points);
      const T share = T(0.5) / points;
      T sum_x = 0, sum_y = 0, sum_w = 0, sum_h = 0;
      for (int64_t i = 0; i < points; ++i) {
        sum_x += grad_pairs[2 * i];
        sum_y += grad_pairs[2 * i + 1];
        sum_w += grad_pairs[2 * i] * pairs[2 * i];
        sum_h += grad_pairs[2 * i + 1] * pairs[2 * i + 1];
      }
      const T x_step = size == 4 ? reference[2] * share : 1 / static_cast<T>(p.levels[level].width);
      const T y_step = size == 4 ? reference[3] * share : 1 / static_cast<T>(p.levels[level].height);
      for (int64_t i = 0; i < points; ++i) {
        grad_pairs[2 * i] *= x_step;
        grad_pairs[2 * i + 1] *= y_step;
      }
      grad_reference[level * size] += sum_x;
      grad_reference[level * size + 1] += sum_y;
      if (size == 4) {
        grad_reference[level * size + 2] += sum_w * share;
        grad_reference[level * size + 3] += sum_h * share;
      }
    }
  }
}

// ---------------------------------------------------------------- where gradients of value go

// All queries of one (image, head, level), on copies of the rows of value and of its gradient that lie side by side.
template <typename T, typename value_t>
DINOX_INLINE void backward_on_copies(const Problem<T>& p, int64_t image, int64_t head, int64_t level, T* copies) {
  const int64_t padded = p.blocks() * kBlock<T>, tokens = p.levels[level].height * int64_t{p.levels[level].width};
  const int64_t stride = p.n.heads * p.n.channels;
  const int64_t first = ((image * p.n.tokens + p.levels[level].start) * p.n.heads + head) * p.n.channels;
  copy_rows(static_cast<const value_t*>(p.value) + first, stride, p.n.channels, copies, 2 * padded, padded, tokens);
  for (int64_t token = 0; token < tokens; ++token) std::memset(copies + (2 * token + 1) * padded, 0, padded * sizeof(T));
  // Footprints count tokens from the first of the image.
  T* origin = copies - p.levels[level].start * 2 * padded;
  backward_task<T>(p, {origin, origin + padded, 2 * padded}, image, head, level);
  copy_rows(copies + padded, 2 * padded, p.n.channels, static_cast<value_t*>(p.grad_value) + first, stride,
            p.n.channels, tokens);
}

template <typename T>
DINOX_INLINE void backward_in_place(const Problem<T>& p, int64_t image, int64_t head, int64_t level) {
  const int64_t first = (image * p.n.tokens * p.n.heads + head) * p.n.channels;
  const LevelRows<T> rows{static_cast<const T*>(p.value) + first, static_cast<T*>(p.grad_value) + first,
                          p.n.heads * p.n.channels};
  backward_task(p, rows, image, head, level);
}

// ---------------------------------------------------------------- entry points

template <typename T>
struct Tasks {
  // Tasks [begin, end) of (image, head, block of queries). `copies`: room for all rows of a head; or null.
  DINOX_TARGET static void forward(const Problem<T>& p, int64_t begin, int64_t end, void* copies) {
    if constexpr (std::is_same_v<T, double>) {
      forward_range<Plain<double>, double>(p, begin, end, copies);
    } else if (p.value_type == at::kHalf) {
      forward_range<Plain<float>, c10::Half>(p, begin, end, copies);
    } else if (p.value_type == at::kBFloat16) {
      forward_range<BfloatPairs, uint16_t>(p, begin, end, copies);
    } else {
      forward_range<Plain<float>, float>(p, begin, end, copies);
    }
  }
  // Number `task` of (image, head, level). `copies`: room for the rows of the largest level, twice; or null.
  DINOX_TARGET static void backward(const Problem<T>& p, int64_t task, T* copies) {
    const int64_t level = task % p.n.levels, head = task / p.n.levels % p.n.heads, image = task / p.n.levels / p.n.heads;
    if (copies == nullptr) return backward_in_place(p, image, head, level);
    if constexpr (std::is_same_v<T, double>) {
      backward_on_copies<T, double>(p, image, head, level, copies);
    } else if (p.value_type == at::kHalf) {
      backward_on_copies<T, c10::Half>(p, image, head, level, copies);
    } else if (p.value_type == at::kBFloat16) {
      backward_on_copies<T, c10::BFloat16>(p, image, head, level, copies);
    } else {
      backward_on_copies<T, float>(p, image, head, level, copies);
    }
  }
  DINOX_TARGET static void softmax(const Problem<T>& p, const T* logits, T* weights, int64_t row) {
    softmax_row(p, logits, weights, row);
  }
  DINOX_TARGET static void chain(const Problem<T>& p, const T* offsets, T* grad_references, int64_t row) {
    chain_row(p, offsets, grad_references, row);
  }

 private:
  template <typename Stored, typename value_t>
  DINOX_INLINE static void forward_range(const Problem<T>& p, int64_t begin, int64_t end, void* room) {
    typedef typename Stored::element element;
    const int64_t tasks_per_head = p.forward_tasks_per_head(), padded = p.blocks() * kBlock<T>;
    const int64_t stride = p.n.heads * p.n.channels;
    element* copies = static_cast<element*>(room);
    int64_t copied = -1;  // which (image, head) is in the copies
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image_head = task / tasks_per_head;
      const int64_t image = image_head / p.n.heads, head = image_head % p.n.heads;
      const value_t* rows =
          static_cast<const value_t*>(p.value) + (image * p.n.tokens * p.n.heads + head) * p.n.channels;
      if (copies != nullptr && copied != image_head) {
        copy_rows(rows, stride, p.n.channels, copies, padded, padded, p.n.tokens);
        copied = image_head;
      }
      const int64_t first = task % tasks_per_head * kQueriesPerTask;
      const int64_t last = std::min(first + kQueriesPerTask, p.n.queries);
      const element* from = copies;
      if constexpr (std::is_same_v<element, value_t>) {
        if (copies == nullptr) from = rows;
      }
      const int64_t from_stride = copies == nullptr ? stride : padded;
      if (p.in.references != nullptr) forward_queries<T, Stored, true>(p, from, from_stride, image, head, first, last);
      else forward_queries<T, Stored, false>(p, from, from_stride, image, head, first, last);
    }
  }
};

#undef DINOX_INLINE
#undef DINOX_TARGET
#undef DINOX_VECTOR_BYTES
