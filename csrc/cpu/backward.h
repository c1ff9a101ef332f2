// The backward pass. Included once per instruction set by ms_deform_attn_tasks.h, which says how.

// Samples of a block of queries of one (image, head, level), in chunks across queries; and their gradients.
template <typename T>
struct Block {
  std::vector<T> pairs, weights;          // as they are given, filled up with zeros; then the gradients
  std::vector<Footprints<T>> footprints;  // a chunk each
  std::vector<CornerRows> value_rows, grad_rows;
  std::vector<T> dots;  // of grad_output with value at each corner of each sample: 4 each
  alignas(64) char sinks[4][sizeof(kRowOfZeros)] = {};  // take gradients of pixels that are not there, a corner each

  DINOX_TARGET explicit Block(int64_t points) {
    const int64_t chunks = (kQueriesPerBlock * points + kChunk - 1) / kChunk;
    pairs.resize(2 * chunks * kChunk);
    weights.resize(chunks * kChunk);
    footprints.resize(chunks);
    value_rows.resize(chunks);
    grad_rows.resize(chunks);
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
DINOX_INLINE void read_block(const Problem<T>& p, const LevelRows<T>& rows, int64_t image, int64_t head, int64_t level,
                             int64_t begin, int64_t queries, Block<T>& block) {
  const int64_t points = p.n.points, samples = queries * points;
  const T height = p.levels[level].height, width = p.levels[level].width;
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t sample = p.index(image, begin + q, head) * p.samples() + level * points;
    if (begin + q + kQueriesPerBlock < p.n.queries) {  // what the next block reads here and this one writes
      const int64_t ahead = sample + kQueriesPerBlock * p.n.heads * p.samples();
      prefetch(p.in.pairs + 2 * ahead, 2 * points);
      prefetch(p.in.scalars + ahead, points);
    }
    if (p.grad_pairs != nullptr) prefetch(p.grad_pairs + 2 * sample, 2 * points);
    if (p.grad_weights != nullptr) prefetch(p.grad_weights + sample, points);
    T* pairs = block.pairs.data() + 2 * q * points;
    copy_points(p.in.pairs + 2 * sample, 2 * points, pairs);
    copy_points(p.in.scalars + sample, points, block.weights.data() + q * points);
    if (p.in.references != nullptr) {
      const T* reference = p.in.references_of(p.n, image * p.n.queries + begin + q) + level * p.in.reference_size;
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
  const auto address = [](const void* pointer) DINOX_TARGET { return reinterpret_cast<int64_t>(pointer); };
  const int64_t zeros = address(kRowOfZeros), row_bytes = rows.stride * static_cast<int64_t>(sizeof(T));
  Samples<T> s;
  for (int64_t first = 0, chunk = 0; first < samples; first += kChunk, ++chunk) {
    const int64_t count = std::min(kChunk, samples - first);
    split_pairs(block.pairs.data() + 2 * first, count, s.x, s.y);
    copy_chunk(block.weights.data() + first, count, s.weight);
    to_pixels(levels, s);
    const Footprints<T>& f = block.footprints[chunk];
    locate(levels, s, block.footprints[chunk]);
    find_rows(levels, f, address(rows.value), row_bytes, {zeros, zeros, zeros, zeros}, block.value_rows[chunk]);
    find_rows(levels, f, address(rows.grad), row_bytes,
              {address(block.sinks[0]), address(block.sinks[1]), address(block.sinks[2]), address(block.sinks[3])},
              block.grad_rows[chunk]);
  }
}

// Adds what comes through channels [channel, channel + Blocks * kBlock) to grad_value and to the dots of the block.
template <typename T, int Blocks>
DINOX_INLINE void visit_block(const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t queries,
                              int64_t channel, bool far, Block<T>& block) {
  const int64_t left = p.n.channels - channel, samples = queries * p.n.points;
  const bool of_value = p.grad_value != nullptr, of_samples = p.grad_pairs != nullptr || p.grad_weights != nullptr;
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
      if (far) {
        const int64_t ahead = std::min(sample + kSamplesAhead, samples - 1);
        for (int corner = 0; corner < 4; ++corner) {
          constexpr int64_t kBytes = Row<T, Blocks>::kChannels * sizeof(T);
          const int64_t step = channel * sizeof(T);
          prefetch_bytes(block.value_rows[ahead / kChunk].address[corner][ahead % kChunk] + step, kBytes);
          if (of_value) prefetch_bytes(block.grad_rows[ahead / kChunk].address[corner][ahead % kChunk] + step, kBytes);
        }
      }
      const int64_t chunk = sample / kChunk, i = sample % kChunk;
      const Footprints<T>& f = block.footprints[chunk];
      if (f.corners[i] == 0) continue;
      const auto row_at = [&](const CornerRows& rows, int corner) DINOX_TARGET {
        const bool inside = f.corners[i] >> corner & 1;
        return reinterpret_cast<T*>(rows.address[corner][i]) + (inside ? channel : 0);
      };
      if (of_samples) {
        Vector<T> products[4];
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          Row<T, Blocks> row;
          row.load(row_at(block.value_rows[chunk], corner));
          products[corner] = grad.dot(row);
        }
        add_lanes(products, block.dots.data() + 4 * sample);
      }
      if (of_value) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          T* to = row_at(block.grad_rows[chunk], corner);
          Row<T, Blocks> row;
          row.load(to);
          row.add(f.factor[corner][i], grad);
          row.store(to);
        }
      }
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
    T* __restrict dots = block.dots.data() + 4 * first;
    T* __restrict pairs = block.pairs.data() + 2 * first;
    T* __restrict weights = block.weights.data() + first;
    for (int64_t i = 0; i < kChunk; ++i) {
      // A gradient that is not finite has made no zero of pixels that are not there.
      for (int corner = 0; corner < 4; ++corner)
        dots[4 * i + corner] = f.corners[i] >> corner & 1 ? dots[4 * i + corner] : 0;
    }
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
    if (p.grad_pairs != nullptr)
      copy_points(block.pairs.data() + 2 * q * points, 2 * points, p.grad_pairs + 2 * sample);
    if (p.grad_weights != nullptr) copy_points(block.weights.data() + q * points, points, p.grad_weights + sample);
  }
}

// All queries of one (image, head, level).
template <typename T>
inline DINOX_TARGET void backward_task(const Problem<T>& p, const LevelRows<T>& rows, int64_t image, int64_t head,
                                       int64_t level, bool far) {
  Block<T> block(p.n.points);
  for (int64_t begin = 0; begin < p.n.queries; begin += kQueriesPerBlock) {
    const int64_t queries = std::min(kQueriesPerBlock, p.n.queries - begin);
    read_block(p, rows, image, head, level, begin, queries, block);
    std::fill(block.dots.begin(), block.dots.end(), T(0));
    const int64_t blocks = p.blocks();
    int64_t done = 0;
    for (; blocks - done >= 4; done += 4)
      visit_block<T, 4>(p, image, head, begin, queries, done * kBlock<T>, far, block);
    for (; blocks - done >= 2; done += 2)
      visit_block<T, 2>(p, image, head, begin, queries, done * kBlock<T>, far, block);
    if (blocks > done) visit_block<T, 1>(p, image, head, begin, queries, done * kBlock<T>, far, block);
    write_block(p, image, head, level, begin, queries, block);
  }
}

// ---------------------------------------------------------------- the chain to raw inputs

// Attention weights of all heads of the query number `row` of (B, Q), from logits.
template <typename T>
DINOX_INLINE void softmax_row(const Problem<T>& p, const T* logits, T* weights, int64_t row) {
  const int64_t samples = p.samples();
  std::vector<T> powers((samples + kChunk - 1) / kChunk * kChunk);
  for (int64_t head = 0; head < p.n.heads; ++head) {
    const int64_t begin = (row * p.n.heads + head) * samples;
    const T factor = softmax_powers(logits + begin, samples, powers.data());
    for (int64_t i = 0; i < samples; ++i) weights[begin + i] = powers[i] * factor;
  }
}

// In place: the gradients of the weights of one (query, head) to those of its logits.
template <typename T>
DINOX_INLINE void weights_to_logits(const T* weights, int64_t samples, T* grads) {
  T mean = 0;
  for (int64_t i = 0; i < samples; ++i) mean += weights[i] * grads[i];
  for (int64_t i = 0; i < samples; ++i) grads[i] = weights[i] * (grads[i] - mean);
}

// Adds what the locations of one (query, head, level) give to the gradient of their reference.
template <typename T>
DINOX_INLINE void add_to_reference(const T* grads, const T* offsets, int64_t points, int64_t size, T* grad_reference) {
  T sum_x = 0, sum_y = 0, sum_w = 0, sum_h = 0;
  for (int64_t i = 0; i < points; ++i) {
    sum_x += grads[2 * i];
    sum_y += grads[2 * i + 1];
    sum_w += grads[2 * i] * offsets[2 * i];
    sum_h += grads[2 * i + 1] * offsets[2 * i + 1];
  }
  grad_reference[0] += sum_x;
  grad_reference[1] += sum_y;
  if (size == 4) {
    grad_reference[2] += sum_w * (T(0.5) / points);
    grad_reference[3] += sum_h * (T(0.5) / points);
  }
}

// In place, for the query number `row` of (B, Q): gradients of locations to those of offsets (and of references),
// gradients of weights to those of logits; of what there is.
template <typename T>
DINOX_INLINE void chain_row(const Problem<T>& p, const T* offsets, T* grad_references, int64_t row) {
  const int64_t size = p.in.reference_size, points = p.n.points, samples = p.samples();
  const T* references = p.in.references_of(p.n, row);
  T* grad_reference = grad_references == nullptr ? nullptr : grad_references + row * p.n.levels * size;
  if (grad_reference != nullptr) std::fill_n(grad_reference, p.n.levels * size, T(0));
  for (int64_t head = 0; head < p.n.heads; ++head) {
    const int64_t begin = (row * p.n.heads + head) * samples;
    if (p.grad_weights != nullptr) weights_to_logits(p.in.scalars + begin, samples, p.grad_weights + begin);
    if (p.grad_pairs == nullptr) continue;
    for (int64_t level = 0; level < p.n.levels; ++level) {
      const T* reference = references + level * size;
      const int64_t first = 2 * (begin + level * points);
      T* grad_pairs = p.grad_pairs + first;
      if (grad_reference != nullptr)
        add_to_reference(grad_pairs, offsets + first, points, size, grad_reference + level * size);
      const T share = T(0.5) / points;
      const T x_step = size == 4 ? reference[2] * share : 1 / static_cast<T>(p.levels[level].width);
      const T y_step = size == 4 ? reference[3] * share : 1 / static_cast<T>(p.levels[level].height);
      for (int64_t i = 0; i < points; ++i) {
        grad_pairs[2 * i] *= x_step;
        grad_pairs[2 * i + 1] *= y_step;
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
  if (p.grad_value != nullptr) {
    for (int64_t token = 0; token < tokens; ++token)
      std::memset(copies + (2 * token + 1) * padded, 0, padded * sizeof(T));
  }
  // Footprints count tokens from the first of the image.
  T* origin = copies - p.levels[level].start * 2 * padded;
  backward_task<T>(p, {origin, origin + padded, 2 * padded}, image, head, level, false);
  if (p.grad_value == nullptr) return;
  copy_rows(copies + padded, 2 * padded, p.n.channels, static_cast<value_t*>(p.grad_value) + first, stride,
            p.n.channels, tokens);
}

template <typename T>
DINOX_INLINE void backward_in_place(const Problem<T>& p, int64_t image, int64_t head, int64_t level) {
  const int64_t first = (image * p.n.tokens * p.n.heads + head) * p.n.channels;
  T* grad_value = static_cast<T*>(p.grad_value);
  const LevelRows<T> rows{static_cast<const T*>(p.value) + first, grad_value == nullptr ? nullptr : grad_value + first,
                          p.n.heads * p.n.channels};
  backward_task(p, rows, image, head, level, true);
}
