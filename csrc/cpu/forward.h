// The forward pass. Included once per instruction set by ms_deform_attn_tasks.h, which says how.

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
