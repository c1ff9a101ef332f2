// Rows of channels as vectors. Included once per instruction set by ms_deform_attn_tasks.h, which says how.

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

template <typename V>
DINOX_INLINE void load_vector(const void* from, V& vector) {
  __builtin_memcpy(&vector, from, sizeof(V));
}

template <typename V>
DINOX_INLINE void store_vector(void* to, const V& vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

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
    for (int v = 0; v < kVectors; ++v) load_vector(from + v * kLanes<T>, part[v]);
  }
  DINOX_INLINE void store(T* to) const {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store_vector(to + v * kLanes<T>, part[v]);
  }
  DINOX_INLINE void scale(T factor) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) part[v] *= factor;
  }
  // this += factor * row
  DINOX_INLINE void add(T factor, const Row& row) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) part[v] += factor * row.part[v];
  }
  // The dot product with another row, but for the sum over the lanes of the vector.
  DINOX_INLINE Vector<T> dot(const Row& row) const {
    Vector<T> product = part[0] * row.part[0];
#pragma GCC unroll 16
    for (int v = 1; v < kVectors; ++v) product += part[v] * row.part[v];
    return product;
  }
};

// ---------------------------------------------------------------- how rows are stored

// As numbers of the type that is computed with, channels in order.
template <typename T>
struct Plain {
  typedef T element;
  static constexpr bool kInPairs = false;  // of blocks
  template <int Blocks>
  DINOX_INLINE static void load(const T* from, Row<T, Blocks>& row) {
    row.load(from);
  }
  // `count` channels of a row to where the output has them.
  template <int Blocks>
  DINOX_INLINE static void store(const Row<T, Blocks>& row, T* to, int64_t count) {
    if (count >= Row<T, Blocks>::kChannels) return row.store(to);
    alignas(64) T padded[Row<T, Blocks>::kChannels];
    row.store(padded);
    for (int64_t c = 0; c < count; ++c) to[c] = padded[c];
  }
};

// As bfloat16. A vector of them is taken for 32-bit words: the even channels are the words' lower halves, the odd ones
// the upper, and each becomes a float by one shift or one mask. So a row in registers has the even channels of each
// stored vector before its odd ones. Blocks come in pairs, for a stored vector fills two of floats.
struct BfloatPairs {
  typedef uint16_t element;
  static constexpr bool kInPairs = true;
  template <int Blocks>
  DINOX_INLINE static void load(const uint16_t* from, Row<float, Blocks>& row) {
#pragma GCC unroll 16
    for (int v = 0; v < Row<float, Blocks>::kVectors; v += 2) {
      Integers<float> words;
      load_vector(from + v * kLanes<float>, words);
      row.part[v] = reinterpret_cast<Vector<float>>(words << 16);
      row.part[v + 1] = reinterpret_cast<Vector<float>>(words & static_cast<int32_t>(0xffff0000));
    }
  }
  template <int Blocks>
  DINOX_INLINE static void store(const Row<float, Blocks>& row, uint16_t* to, int64_t count) {
    alignas(64) uint16_t padded[Row<float, Blocks>::kChannels];
#pragma GCC unroll 16
    for (int v = 0; v < Row<float, Blocks>::kVectors; v += 2) {
      const Integers<float> even = rounded(row.part[v]), odd = rounded(row.part[v + 1]);
      store_vector(padded + v * kLanes<float>, ((even >> 16) & 0xffff) | (odd & static_cast<int32_t>(0xffff0000)));
    }
    __builtin_memcpy(to, padded, std::min<int64_t>(count, Row<float, Blocks>::kChannels) * sizeof(uint16_t));
  }
  // The upper half is the nearest bfloat16, ties to even; NaN stays NaN.
  DINOX_INLINE static Integers<float> rounded(const Vector<float>& x) {
    typedef uint32_t words __attribute__((vector_size(DINOX_VECTOR_BYTES)));
    words bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    const words nearest = bits + 0x7fff + ((bits >> 16) & 1);
    const Integers<float> result = reinterpret_cast<Integers<float>>(nearest);
    return x == x ? result : Integers<float>{} + 0x7fc00000;
  }
};

// ---------------------------------------------------------------- sums over lanes

// Halves of a vector onto each other by an operation on two vectors, until 16 bytes are left.
template <typename T, typename V, typename F>
DINOX_INLINE auto over_parts(const V& vector, const F& f) {
  if constexpr (sizeof(V) == 16) {
    return vector;
  } else {
    typedef T Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    __builtin_memcpy(halves, &vector, sizeof(V));
    return over_parts<T>(f(halves[0], halves[1]), f);
  }
}

// One number of all lanes, by an operation on two vectors or two numbers.
template <typename T, typename F>
DINOX_INLINE T over_lanes(const Vector<T>& vector, const F& f) {
  const auto part = over_parts<T>(vector, f);
  T result = part[0];
  for (size_t lane = 1; lane < 16 / sizeof(T); ++lane) result = f(result, part[lane]);
  return result;
}

// Adds the sums over the lanes of four vectors to four numbers.
template <typename T>
DINOX_INLINE void add_lanes(const Vector<T> (&vectors)[4], T* sums) {
  for (int i = 0; i < 4; ++i) sums[i] += over_lanes<T>(vectors[i], [](auto a, auto b) DINOX_TARGET { return a + b; });
}

#if defined(__x86_64__)
#if DINOX_VECTOR_BYTES == 64
#define DINOX_INTRINSIC(name) _mm512_##name
#elif DINOX_VECTOR_BYTES == 32
#define DINOX_INTRINSIC(name) _mm256_##name
#else
#define DINOX_INTRINSIC(name) _mm_##name
#endif

// By turns of additions and of shuffles inside of 16 bytes; then the parts of 16 bytes are added.
template <>
DINOX_INLINE void add_lanes<float>(const Vector<float> (&vectors)[4], float* sums) {
  const auto pairs = [](const Vector<float>& a, const Vector<float>& b) DINOX_TARGET -> Vector<double> {
    const Vector<float> low = DINOX_INTRINSIC(unpacklo_ps)(a, b), high = DINOX_INTRINSIC(unpackhi_ps)(a, b);
    return reinterpret_cast<Vector<double>>(low + high);  // a, b, a, b in each part
  };
  const Vector<double> ab = pairs(vectors[0], vectors[1]), cd = pairs(vectors[2], vectors[3]);
  const Vector<double> low = DINOX_INTRINSIC(unpacklo_pd)(ab, cd), high = DINOX_INTRINSIC(unpackhi_pd)(ab, cd);
  const auto add = [](auto a, auto b) DINOX_TARGET { return a + b; };
  const Vector<float> parts = reinterpret_cast<Vector<float>>(low) + reinterpret_cast<Vector<float>>(high);
  auto sum = over_parts<float>(parts, add);
  load_vector(sums, sum);
  store_vector(sums, sum + over_parts<float>(parts, add));
}
#undef DINOX_INTRINSIC
#endif

// ---------------------------------------------------------------- the exponential

// Of x <= 0; 0 where the result would be denormal. Relative error below 2e-7.
DINOX_INLINE Vector<float> exp_of(const Vector<float>& x) {
  const Integers<float> tiny = x < -87.0f;
  const Vector<float> clamped = tiny ? Vector<float>{} : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that the product with n is exact.
  const Integers<float> n = __builtin_convertvector(clamped * 1.44269504f - 0.5f, Integers<float>);
  const Vector<float> whole = __builtin_convertvector(n, Vector<float>);
  const Vector<float> r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector<float> power = r * (1.0f / 720) + 1.0f / 120;  // Taylor series of e^r
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  const Vector<float> scale = reinterpret_cast<Vector<float>>((n + 127) << 23);
  return tiny ? Vector<float>{} : power * scale;
}

DINOX_INLINE Vector<double> exp_of(const Vector<double>& x) {
  Vector<double> result;
  for (int lane = 0; lane < kLanes<double>; ++lane) result[lane] = std::exp(x[lane]);
  return result;
}

// ---------------------------------------------------------------- copies

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
