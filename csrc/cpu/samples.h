// Samples: where they are and where they fall. Included once per instruction set by ms_deform_attn_tasks.h, which says how.

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
