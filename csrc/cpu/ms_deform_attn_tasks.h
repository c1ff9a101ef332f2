// The loops of ms_deform_attn on the CPU. ms_deform_attn_kernel.cpp includes this file once per instruction set, each
// time inside a namespace of its own and with
//   DINOX_VECTOR_BYTES  size of a vector register
//   DINOX_TARGET        function attribute that selects the instruction set
// Every function here carries that attribute: compilers lower vector types function by function, before they inline.
// No include guard, by intention.

#define DINOX_INLINE inline __attribute__((always_inline)) DINOX_TARGET

// ---------------------------------------------------------------- rows of channels

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(DINOX_VECTOR_BYTES)));
  typedef int32_t integers __attribute__((vector_size(DINOX_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(DINOX_VECTOR_BYTES)));
  typedef int64_t integers __attribute__((vector_size(DINOX_VECTOR_BYTES)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using Integers = typename VectorOf<T>::integers;

template <typename T>
constexpr int kLanes = DINOX_VECTOR_BYTES / sizeof(T);

// `Blocks` blocks of 64 bytes: kBlock<T> channels each, whatever the size of a vector.
template <typename T, int Blocks>
struct Row {
  static constexpr int kVectors = Blocks * kBlock<T> / kLanes<T>;
  static constexpr int kChannels = Blocks * kBlock<T>;
  Vector<T> part[kVectors];

  DINOX_INLINE void zero() {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) part[v] = Vector<T>{};
  }
  DINOX_INLINE void load(const T* from) {  // any alignment
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) __builtin_memcpy(&part[v], from + v * kLanes<T>, DINOX_VECTOR_BYTES);
  }
  DINOX_INLINE void store(T* to) const {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) __builtin_memcpy(to + v * kLanes<T>, &part[v], DINOX_VECTOR_BYTES);
  }
  // this += factor * row
  DINOX_INLINE void add(T factor, const Row& row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) part[v] += factor * row.part[v];
  }
  // The dot product with another row, but for the sum over the lanes of one vector.
  DINOX_INLINE void dot(const Row& row, T* lanes) const {
    Vector<T> product = part[0] * row.part[0];
#pragma GCC unroll 16
    for (int v = 1; v < kVectors; ++v) product += part[v] * row.part[v];
    __builtin_memcpy(lanes, &product, DINOX_VECTOR_BYTES);
  }
  // The same for a row of fewer channels: the others read as zeros and are not written.
  DINOX_INLINE void load_first(const T* from, int64_t count) {
    if (count >= kChannels) return load(from);
    alignas(64) T padded[kChannels] = {};
    for (int64_t c = 0; c < count; ++c) padded[c] = from[c];
    load(padded);
  }
  DINOX_INLINE void store_first(T* to, int64_t count) const {
    if (count >= kChannels) return store(to);
    alignas(64) T padded[kChannels];
    store(padded);
    for (int64_t c = 0; c < count; ++c) to[c] = padded[c];
  }
};

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

template <typename V>
DINOX_INLINE void load_vector(const void* from, V& vector) {
  __builtin_memcpy(&vector, from, sizeof(V));
}

template <typename V>
DINOX_INLINE void store_vector(void* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

// Samples [first, first + count), at most kChunk, of one (query, head). A sample counts if -1 < x < width and -1 < y <
// height in pixels (x = location * width - 0.5), which no NaN fulfils: only then are coordinates turned into integers.
template <typename T>
DINOX_INLINE void locate(const Problem<T>& p, const T* locations, const T* weights, int64_t first, int64_t count,
                         Footprints<T>& f) {
  alignas(64) T xs[kChunk] = {}, ys[kChunk] = {}, attention[kChunk] = {};
  for (int64_t i = 0; i < count; ++i) {
    xs[i] = locations[2 * i];
    ys[i] = locations[2 * i + 1];
    attention[i] = weights[i];
  }
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> x, y, weight, width, height;
    Integers<T> row_length, start;
    load_vector(xs + i, x);
    load_vector(ys + i, y);
    load_vector(attention + i, weight);
    load_vector(p.widths.data() + first + i, width);
    load_vector(p.heights.data() + first + i, height);
    load_vector(p.row_lengths.data() + first + i, row_length);
    load_vector(p.starts.data() + first + i, start);

    x = x * width - T(0.5);
    y = y * height - T(0.5);
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

// Locations and weights of one head lie far apart from query to query: too far for the hardware to foresee.
template <typename T>
DINOX_INLINE void prefetch(const Problem<T>& p, int64_t sample) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < 2 * kChunk; i += kLine) __builtin_prefetch(p.locations + 2 * sample + i);
  for (int64_t i = 0; i < kChunk; i += kLine) __builtin_prefetch(p.weights + sample + i);
}

// ---------------------------------------------------------------- forward

// Channels [channel, channel + Blocks * kBlock) of queries [begin, end) of one (image, head).
template <typename T, int Blocks>
DINOX_INLINE void forward_channels(const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t end,
                                   int64_t channel) {
  const int64_t samples = p.samples();
  const int64_t stride = p.strides.token;
  const T* rows = p.value + image * p.strides.image + head * p.strides.head + channel;
  Footprints<T> f;
  for (int64_t query = begin; query < end; ++query) {
    const int64_t index = p.index(image, query, head);
    const int64_t ahead = p.index(image, std::min(query + kQueriesAhead, end - 1), head);
    Row<T, Blocks> sum;
    sum.zero();
    for (int64_t first = 0; first < samples; first += kChunk) {
      const int64_t count = std::min(kChunk, samples - first);
      const int64_t sample = index * samples + first;
      prefetch(p, ahead * samples + first);
      locate(p, p.locations + 2 * sample, p.weights + sample, first, count, f);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t steps[4] = {0, 1, p.row_lengths[first + i], p.row_lengths[first + i] + 1};
        const int64_t top_left = f.token[i] * stride;
        Row<T, Blocks> row;
        if (f.corners[i] == kAllCorners) {
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            row.load(rows + top_left + steps[corner] * stride);
            sum.add(f.factor[corner][i], row);
          }
        } else if (f.corners[i] != 0) {
#pragma GCC unroll 1
          for (int corner = 0; corner < 4; ++corner) {
            if (!(f.corners[i] >> corner & 1)) continue;
            row.load(rows + top_left + steps[corner] * stride);
            sum.add(f.factor[corner][i], row);
          }
        }
      }
    }
    sum.store_first(p.output + index * p.n.channels + channel, p.n.channels - channel);
  }
}

template <typename T>
DINOX_INLINE void forward_task(const Problem<T>& p, int64_t task) {
  const int64_t tasks_per_head = (p.n.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  const int64_t image = task / tasks_per_head / p.n.heads;
  const int64_t head = task / tasks_per_head % p.n.heads;
  const int64_t begin = task % tasks_per_head * kQueriesPerTask;
  const int64_t end = std::min(begin + kQueriesPerTask, p.n.queries);
  const int64_t blocks = padded_channels<T>(p.n) / kBlock<T>;
  int64_t block = 0;
  for (; blocks - block >= 4; block += 4) forward_channels<T, 4>(p, image, head, begin, end, block * kBlock<T>);
  for (; blocks - block >= 2; block += 2) forward_channels<T, 2>(p, image, head, begin, end, block * kBlock<T>);
  for (; blocks - block >= 1; block += 1) forward_channels<T, 1>(p, image, head, begin, end, block * kBlock<T>);
}

// ---------------------------------------------------------------- backward

// sums[i] = sum of the lanes of vector i. Halving loops that compilers vectorise.
template <typename T>
DINOX_INLINE void sum_lanes(const T* __restrict vectors, int64_t count, T* __restrict sums) {
  constexpr int kParts = kLanes<T> < 4 ? kLanes<T> : 4;
  alignas(64) T partial[4 * kChunk * kParts];
  for (int64_t i = 0; i < count; ++i) {
    for (int part = 0; part < kParts; ++part) {
      T sum = vectors[i * kLanes<T> + part];
      for (int lane = part + kParts; lane < kLanes<T>; lane += kParts) sum += vectors[i * kLanes<T> + lane];
      partial[i * kParts + part] = sum;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    T sum = partial[i * kParts];
    for (int part = 1; part < kParts; ++part) sum += partial[i * kParts + part];
    sums[i] = sum;
  }
}

// One corner of one sample: grad_output times the value there, and its share of the gradient of that value.
template <typename T, int Blocks>
DINOX_INLINE void visit_corner(const Row<T, Blocks>& grad, T factor, const T* rows, T* grad_rows, int64_t offset,
                               T* product) {
  Row<T, Blocks> row;
  row.load(rows + offset);
  grad.dot(row, product);
  row.load(grad_rows + offset);
  row.add(factor, grad);
  row.store(grad_rows + offset);
}

// Adds the gradients that come through channels [channel, channel + Blocks * kBlock) of one (image, head).
template <typename T, int Blocks>
DINOX_INLINE void backward_channels(const Problem<T>& p, int64_t image, int64_t head, int64_t channel) {
  const int64_t samples = p.samples();
  const int64_t stride = p.strides.token;
  const int64_t offset = image * p.strides.image + head * p.strides.head + channel;
  const T* rows = p.value + offset;
  T* grad_rows = p.grad_value + offset;
  Footprints<T> f;
  alignas(64) T products[4 * kChunk * kLanes<T>];  // grad_output times value at each corner of each sample
  alignas(64) T dots[4 * kChunk];                  // their sums over channels
  for (int64_t query = 0; query < p.n.queries; ++query) {
    const int64_t index = p.index(image, query, head);
    const int64_t ahead = p.index(image, std::min(query + kQueriesAhead, p.n.queries - 1), head);
    Row<T, Blocks> grad;
    grad.load_first(p.grad_output + index * p.n.channels + channel, p.n.channels - channel);
    for (int64_t first = 0; first < samples; first += kChunk) {
      const int64_t count = std::min(kChunk, samples - first);
      const int64_t sample = index * samples + first;
      prefetch(p, ahead * samples + first);
      locate(p, p.locations + 2 * sample, p.weights + sample, first, count, f);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t steps[4] = {0, 1, p.row_lengths[first + i], p.row_lengths[first + i] + 1};
        const int64_t top_left = f.token[i] * stride;
        T* product = products + 4 * i * kLanes<T>;
        if (f.corners[i] == kAllCorners) {
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; ++corner) {
            visit_corner(grad, f.factor[corner][i], rows, grad_rows, top_left + steps[corner] * stride,
                         product + corner * kLanes<T>);
          }
        } else {
#pragma GCC unroll 1
          for (int corner = 0; corner < 4; ++corner) {
            std::fill_n(product + corner * kLanes<T>, kLanes<T>, T(0));
            if (!(f.corners[i] >> corner & 1)) continue;
            visit_corner(grad, f.factor[corner][i], rows, grad_rows, top_left + steps[corner] * stride,
                         product + corner * kLanes<T>);
          }
        }
      }
      sum_lanes(products, 4 * count, dots);
      T* __restrict grad_locations = p.grad_locations + 2 * sample;
      T* __restrict grad_weights = p.grad_weights + sample;
      const T* widths = p.widths.data() + first;
      const T* heights = p.heights.data() + first;
      for (int64_t i = 0; i < count; ++i) {
        const T* dot = dots + 4 * i;
        const T right = f.x_fraction[i], bottom = f.y_fraction[i];
        const T top_slope = dot[kTopRight] - dot[kTopLeft];
        const T bottom_slope = dot[kBottomRight] - dot[kBottomLeft];
        const T top_dot = dot[kTopLeft] + right * top_slope;
        const T bottom_dot = dot[kBottomLeft] + right * bottom_slope;
        grad_weights[i] += top_dot + bottom * (bottom_dot - top_dot);
        grad_locations[2 * i] += f.weight[i] * widths[i] * (top_slope + bottom * (bottom_slope - top_slope));
        grad_locations[2 * i + 1] += f.weight[i] * heights[i] * (bottom_dot - top_dot);
      }
    }
  }
}

template <typename T>
DINOX_INLINE void backward_task(const Problem<T>& p, int64_t task) {
  const int64_t image = task / p.n.heads;
  const int64_t head = task % p.n.heads;
  const int64_t blocks = padded_channels<T>(p.n) / kBlock<T>;
  int64_t block = 0;
  for (; blocks - block >= 4; block += 4) backward_channels<T, 4>(p, image, head, block * kBlock<T>);
  for (; blocks - block >= 2; block += 2) backward_channels<T, 2>(p, image, head, block * kBlock<T>);
  for (; blocks - block >= 1; block += 1) backward_channels<T, 1>(p, image, head, block * kBlock<T>);
}

template <typename T>
struct Tasks {
  DINOX_TARGET static void forward(const Problem<T>& p, int64_t task) { forward_task(p, task); }
  DINOX_TARGET static void backward(const Problem<T>& p, int64_t task) { backward_task(p, task); }
};

#undef DINOX_INLINE
#undef DINOX_TARGET
#undef DINOX_VECTOR_BYTES
