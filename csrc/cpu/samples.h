// Samples: where they are and where they fall. Included once per instruction set by ms_deform_attn_tasks.h, which says
// how.

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
  if (count == kChunk) {  // by vectors, for it is vectors that will be loaded from there
    for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
      Vector<T> vector;
      load_vector(from + i, vector);
      store_vector(to + i, vector);
    }
    return;
  }
  for (int64_t i = 0; i < kChunk; ++i) to[i] = i < count ? from[i] : T(0);
}

// exp(logit - greatest logit) of the logits of one (query, head), zeros behind them up to whole chunks. Returns one
// over their sum.
template <typename T>
DINOX_INLINE T softmax_powers(const T* logits, int64_t count, T* powers) {
  // Whole chunks are loaded from where they are: what has just been copied in parts is not yet there for a vector.
  alignas(64) T last[kChunk];
  const int64_t whole = count / kChunk * kChunk;
  if (whole < count) {
    for (int64_t i = 0; i < kChunk; ++i)
      last[i] = whole + i < count ? logits[whole + i] : -std::numeric_limits<T>::infinity();
  }
  const auto load = [&](int64_t i) DINOX_TARGET -> Vector<T> {
    Vector<T> logit;
    load_vector(i < whole ? logits + i : last + (i - whole), logit);
    return logit;
  };
  const int64_t padded = (count + kChunk - 1) / kChunk * kChunk;
  Vector<T> greatest = Vector<T>{} - std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const Vector<T> logit = load(i);
    greatest = logit > greatest ? logit : greatest;
  }
  greatest = Vector<T>{} + over_lanes<T>(greatest, [](auto a, auto b) DINOX_TARGET { return a > b ? a : b; });
  Vector<T> sum{};
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const Vector<T> power = exp_of(load(i) - greatest);
    store_vector(powers + i, power);
    sum += power;
  }
  return 1 / over_lanes<T>(sum, [](auto a, auto b) DINOX_TARGET { return a + b; });
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

// ---------------------------------------------------------------- the rows of samples

// Numbers as wide as addresses, a vector of them.
typedef long long Wide __attribute__((vector_size(DINOX_VECTOR_BYTES)));
constexpr int64_t kWideLanes = DINOX_VECTOR_BYTES / sizeof(int64_t);

DINOX_INLINE void load_wide(const int64_t* from, Wide& numbers) { load_vector(from, numbers); }
DINOX_INLINE void load_wide(const int32_t* from, Wide& numbers) {
#if DINOX_VECTOR_BYTES == 64
  numbers = _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif DINOX_VECTOR_BYTES == 32
  numbers = _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  for (int64_t lane = 0; lane < kWideLanes; ++lane) numbers[lane] = from[lane];
#endif
}

// Addresses of the rows of each corner. Corners outside of the level have one of `nowhere`: loops over samples need no
// branches then, which would be mispredicted at every border.
struct CornerRows {
  alignas(64) int64_t address[4][kChunk];
};

// `rows`: address of the image's first row; rows are row_bytes apart. `nowhere`: an address for each corner.
template <typename T>
DINOX_INLINE void find_rows(const LevelsOfSamples<T>& levels, const Footprints<T>& f, int64_t rows, int64_t row_bytes,
                            const int64_t (&nowhere)[4], CornerRows& found) {
  for (int64_t i = 0; i < kChunk; i += kWideLanes) {
    Wide token, corners, row_length;
    load_wide(f.token + i, token);
    load_wide(f.corners + i, corners);
    load_wide(levels.row_lengths + i, row_length);
    const Wide top = rows + token * row_bytes, bottom = top + row_length * row_bytes;
    const Wide at[4] = {top, top + row_bytes, bottom, bottom + row_bytes};
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const Wide inside = (corners & (1 << corner)) != 0;
      store_vector(found.address[corner] + i, inside ? at[corner] : Wide{} + nowhere[corner]);
    }
  }
}
