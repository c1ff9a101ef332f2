// The forward pass. Included once per instruction set by ms_deform_attn_tasks.h, which says how.

// Inputs of one head lie far apart from query to query: too far for the hardware to foresee.
template <typename T>
DINOX_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

DINOX_INLINE void prefetch_bytes(int64_t address, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(reinterpret_cast<const void*>(address + i));
}

// The number `member` of the reference of each sample's level, for a vector of samples from number `first` on. It is
// put together in registers: a vector that is loaded from where numbers have just been stored one by one has to wait
// until all that was before them is done.
template <typename T>
DINOX_INLINE Vector<T> expand_references(const Problem<T>& p, const T* references, int64_t member, int64_t first) {
  constexpr int64_t kUsualPoints = 4;
  const int64_t size = p.in.reference_size, last = p.samples() - 1;
  Vector<T> expanded{};
  if (p.n.points == kUsualPoints && first + kLanes<T> - 1 <= last) {
    Integers<T> lanes;
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = lane;
    const T* from = references + first / kUsualPoints * size + member;
    for (int64_t begin = 0; begin < kLanes<T>; begin += kUsualPoints)
      expanded = lanes >= static_cast<Integer<T>>(begin) ? Vector<T>{} + from[begin / kUsualPoints * size] : expanded;
    return expanded;
  }
  for (int64_t lane = 0; lane < kLanes<T>; ++lane)
    expanded[lane] = references[std::min(first + lane, last) / p.n.points * size + member];
  return expanded;
}

// From offsets in s to pixels, in place: offsets count cells around a point, or halves of a box shared by the points.
template <typename T>
DINOX_INLINE void offsets_to_pixels(const Problem<T>& p, const T* references, int64_t first,
                                    const LevelsOfSamples<T>& levels, Samples<T>& s) {
  const T share = T(0.5) / p.n.points;
  for (int64_t i = 0; i < kChunk; i += kLanes<T>) {
    Vector<T> x, y, width, height;
    load_vector(s.x + i, x);
    load_vector(s.y + i, y);
    load_vector(levels.widths + i, width);
    load_vector(levels.heights + i, height);
    if (p.in.reference_size == 4) {
      x *= expand_references(p, references, 2, first + i) * width * share;
      y *= expand_references(p, references, 3, first + i) * height * share;
    }
    store_vector(s.x + i, expand_references(p, references, 0, first + i) * width - T(0.5) + x);
    store_vector(s.y + i, expand_references(p, references, 1, first + i) * height - T(0.5) + y);
  }
}

// Attention weights of one (query, head): powers, up to whole chunks, times a factor. The factor is left for the sum of
// all samples, so that they need not wait for it.
template <typename T>
struct Softmax {
  std::unique_ptr<T[], FreeRoom> room;
  T* powers;
  T factor = 0;

  DINOX_TARGET explicit Softmax(int64_t count) : room(make_room<T>(count)), powers(room.get()) {}
};

// Samples [first, first + kChunk) of the (query, head) number `index`, a head of the query number `row` of (B, Q).
template <typename T, bool Raw>
DINOX_INLINE void read_samples(const Problem<T>& p, int64_t index, int64_t row, int64_t first,
                               const LevelsOfSamples<T>& levels, const Softmax<T>& softmax, Samples<T>& s) {
  const int64_t sample = index * p.samples() + first;
  const int64_t count = std::min(kChunk, p.samples() - first);
  split_pairs(p.in.pairs + 2 * sample, count, s.x, s.y);
  if constexpr (Raw) {
    copy_chunk(softmax.powers + first, kChunk, s.weight);
    offsets_to_pixels(p, p.in.references_of(p.n, row), first, levels, s);
  } else {
    copy_chunk(p.in.scalars + sample, count, s.weight);
    to_pixels(levels, s);
  }
}

// A chunk of samples of one (query, head), ready to be summed: corners' rows and their factors.
template <typename T>
struct Chunk {
  Footprints<T> f;
  CornerRows rows;
  int64_t count;
  T scale;  // of the sum of all chunks
};

// The work of one call of forward_channels: `count` (query, head) numbers from `index` on, `step` apart.
template <typename element>
struct Items {
  int64_t index, step, count;
  const element* rows;  // the first of the image; of all heads if `in_place`, else of one
  int64_t row_bytes;    // from token to token
  bool in_place;
  int64_t first_row;  // of (B, Q), that of `index`

  // Of (B, Q). Only consecutive heads need a division each.
  template <typename T>
  DINOX_INLINE int64_t row(const Problem<T>& p, int64_t item) const {
    return in_place ? (index + item) / p.n.heads : first_row + item;
  }
  template <typename T>
  DINOX_INLINE int64_t address(const Problem<T>& p, int64_t item) const {
    return reinterpret_cast<int64_t>(rows + (in_place ? p.first_element(index + item * step) : 0));
  }
};

// Channels [channel, channel + Blocks * kBlock) of some items. Chunks are made ready one ahead of their sums, and far
// rows prefetched then.
template <typename T, typename Stored, bool Raw, int Blocks>
DINOX_INLINE void forward_channels(const Problem<T>& p, const Items<typename Stored::element>& items, int64_t channel) {
  typedef typename Stored::element element;
  constexpr int kSums = std::max(4 / Row<T, Blocks>::kVectors, 2);  // enough additions under way at a time
  const int64_t samples = p.samples(), chunks = (samples + kChunk - 1) / kChunk;
  const int64_t zeros = reinterpret_cast<int64_t>(kRowOfZeros);
  Chunk<T> ready[2];
  Softmax<T> softmax(Raw ? chunks * kChunk : 0);
  const auto make_ready = [&](int64_t item, int64_t chunk, Chunk<T>& c) DINOX_TARGET {
    const int64_t index = items.index + item * items.step, first = chunk * kChunk;
    if (Raw && chunk == 0) softmax.factor = softmax_powers(p.in.scalars + index * samples, samples, softmax.powers);
    const LevelsOfSamples<T> levels = p.levels_of_samples(first);
    Samples<T> s;
    read_samples<T, Raw>(p, index, items.row(p, item), first, levels, softmax, s);
    locate(levels, s, c.f);
    const int64_t rows = items.address(p, item) + channel * sizeof(element);
    find_rows(levels, c.f, rows, items.row_bytes, {zeros, zeros, zeros, zeros}, c.rows);
    c.count = std::min(kChunk, samples - first);
    c.scale = softmax.factor;
    if (!items.in_place) return;
    for (int64_t i = 0; i < c.count; ++i)
      for (int corner = 0; corner < 4; ++corner)
        prefetch_bytes(c.rows.address[corner][i], Blocks * kBlock<T> * sizeof(element));
  };
  if (items.count > 0 && chunks > 0) make_ready(0, 0, ready[0]);
  int64_t step = 0;
  for (int64_t item = 0; item < items.count; ++item) {
    const int64_t ahead = (items.index + std::min(item + kQueriesAhead, items.count - 1) * items.step) * samples;
    prefetch(p.in.pairs + 2 * ahead, 2 * samples);
    prefetch(p.in.scalars + ahead, samples);
    if (Raw && !items.in_place) {
      const int64_t row = items.row(p, std::min(item + kQueriesAhead, items.count - 1));
      prefetch(p.in.references_of(p.n, row), p.n.levels * p.in.reference_size);
    }
    Row<T, Blocks> sums[kSums];
    for (Row<T, Blocks>& sum : sums) sum.zero();
    for (int64_t chunk = 0; chunk < chunks; ++chunk, ++step) {
      const Chunk<T>& c = ready[step % 2];
      if (chunk + 1 < chunks)
        make_ready(item, chunk + 1, ready[(step + 1) % 2]);
      else if (item + 1 < items.count)
        make_ready(item + 1, 0, ready[(step + 1) % 2]);
#pragma GCC unroll 1
      for (int64_t i = 0; i < c.count; ++i) {
#pragma GCC unroll 4
        for (int corner = 0; corner < 4; ++corner) {
          Row<T, Blocks> row;
          Stored::load(reinterpret_cast<const element*>(c.rows.address[corner][i]), row);
          sums[corner % kSums].add(c.f.factor[corner][i], row);
        }
      }
    }
    for (int i = kSums / 2; i > 0; i /= 2)
      for (int j = 0; j < i; ++j) sums[j].add(1, sums[j + i]);
    if constexpr (Raw) {
      if (chunks > 0) sums[0].scale(ready[(step + 1) % 2].scale);
    }
    element* to = static_cast<element*>(p.output) + (items.index + item * items.step) * p.n.channels + channel;
    Stored::store(sums[0], to, p.n.channels - channel);
  }
}

template <typename T, typename Stored, bool Raw>
DINOX_INLINE void forward_items(const Problem<T>& p, const Items<typename Stored::element>& items) {
  const int64_t blocks = p.blocks();
  int64_t block = 0;
  for (; blocks - block >= 4; block += 4) forward_channels<T, Stored, Raw, 4>(p, items, block * kBlock<T>);
  for (; blocks - block >= 2; block += 2) forward_channels<T, Stored, Raw, 2>(p, items, block * kBlock<T>);
  if constexpr (!Stored::kInPairs) {
    if (blocks > block) forward_channels<T, Stored, Raw, 1>(p, items, block * kBlock<T>);
  }
}
