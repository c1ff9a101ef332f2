// Multi-scale deformable attention on the CPU, forward and backward.
//
// Each head's value rows are first copied to a contiguous buffer of float (double for double), padded to whole blocks
// of 64 bytes, unless few rows will be read (decoders) and value can be used as it is. Forward tasks are blocks of
// queries of one (image, head). A backward task owns all queries of one (image, head), so gradients of value need no
// atomics. The partition depends on shapes only: any number of threads gives the same bits. Channels are processed as
// vectors (GNU vector extension). The same loops, in ms_deform_attn_tasks.h, are compiled for AVX-512, AVX2 and the
// portable baseline; the best that the CPU has runs, or the one that the environment variable DINOX_CPU_ISA = avx512 |
// avx2 | portable names.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../checks.h"

namespace dinox {
namespace {

// ---------------------------------------------------------------- the problem

// Rows are padded to, and processed in, blocks of 64 bytes: this many channels.
template <typename T>
constexpr int64_t kBlock = 64 / sizeof(T);

template <typename T>
int64_t padded_channels(const Sizes& n) {
  return (n.channels + kBlock<T> - 1) / kBlock<T> * kBlock<T>;
}

constexpr int64_t kQueriesPerTask = 128;  // forward: small enough to balance, large enough to amortise a task
constexpr int64_t kChunk = 16;            // samples located at a time
constexpr int64_t kQueriesAhead = 4;      // whose locations and weights are prefetched

// As wide as T, so that one vector holds as many of them.
template <typename T>
using Integer = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

enum Corner { kTopLeft = 0, kTopRight = 1, kBottomLeft = 2, kBottomRight = 3 };
constexpr int32_t kAllCorners = 0b1111;

// Value rows of one (image, head, token): at image * image + head * head + token * token elements.
struct Strides {
  int64_t image, head, token;
};

template <typename T>
struct Problem {
  Sizes n;
  // Per sample of one (query, head), that is per (level, point): what a vectorised loop over samples needs of its
  // level. Filled up with zeros to whole chunks.
  std::vector<T> heights, widths;
  std::vector<Integer<T>> row_lengths, starts;
  const T* locations;
  const T* weights;
  const T* value;
  Strides strides;
  // forward
  T* output = nullptr;
  // backward
  const T* grad_output = nullptr;
  T* grad_value = nullptr;  // zeros at first; strides as value
  T* grad_locations = nullptr;
  T* grad_weights = nullptr;

  Problem(const Sizes& n, const std::vector<Level>& levels, const at::Tensor& locations, const at::Tensor& weights)
      : n(n), locations(locations.const_data_ptr<T>()), weights(weights.const_data_ptr<T>()) {
    for (const Level& level : levels) {
      heights.insert(heights.end(), n.points, static_cast<T>(level.height));
      widths.insert(widths.end(), n.points, static_cast<T>(level.width));
      row_lengths.insert(row_lengths.end(), n.points, level.width);
      starts.insert(starts.end(), n.points, level.start);
    }
    const int64_t padded = (samples() + kChunk - 1) / kChunk * kChunk;
    heights.resize(padded);
    widths.resize(padded);
    row_lengths.resize(padded);
    starts.resize(padded);
  }
  int64_t samples() const { return n.levels * n.points; }
  // Index of (image, query, head) in everything that is indexed so.
  int64_t index(int64_t image, int64_t query, int64_t head) const {
    return (image * n.queries + query) * n.heads + head;
  }
};

// ---------------------------------------------------------------- instruction sets

namespace portable {
#define DINOX_VECTOR_BYTES 16
#define DINOX_TARGET
#include "ms_deform_attn_tasks.h"
}  // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define DINOX_VECTOR_BYTES 32
#define DINOX_TARGET __attribute__((target("avx2,fma")))
#include "ms_deform_attn_tasks.h"
}  // namespace avx2

namespace avx512 {
#define DINOX_VECTOR_BYTES 64
#define DINOX_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#include "ms_deform_attn_tasks.h"
}  // namespace avx512
#endif

template <typename T>
struct Tasks {
  void (*forward)(const Problem<T>&, int64_t);
  void (*backward)(const Problem<T>&, int64_t);
};

template <typename T>
Tasks<T> choose_tasks() {
  const char* variable = std::getenv("DINOX_CPU_ISA");
  const std::string forced = variable == nullptr ? "" : variable;
  TORCH_CHECK_VALUE(forced.empty() || forced == "avx512" || forced == "avx2" || forced == "portable",
                    "DINOX_CPU_ISA: expected avx512, avx2 or portable, got ", forced);
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  const bool has_avx2 = false, has_avx512 = false;
#endif
  TORCH_CHECK_VALUE(!(forced == "avx512" && !has_avx512) && !(forced == "avx2" && !has_avx2),
                    "DINOX_CPU_ISA: this CPU has no ", forced);
#if defined(__x86_64__)
  if (forced == "avx512" || (forced.empty() && has_avx512))
    return {avx512::Tasks<T>::forward, avx512::Tasks<T>::backward};
  if (forced == "avx2" || (forced.empty() && has_avx2)) return {avx2::Tasks<T>::forward, avx2::Tasks<T>::backward};
#endif
  return {portable::Tasks<T>::forward, portable::Tasks<T>::backward};
}

template <typename T>
const Tasks<T>& tasks() {
  static const Tasks<T> chosen = choose_tasks<T>();
  return chosen;
}

// ---------------------------------------------------------------- value rows: per head or as they are

// Copying all rows pays where samples outnumber tokens, and is needed to convert or to pad.
template <typename T>
bool needs_packing(const Sizes& n, const at::Tensor& value) {
  return value.scalar_type() != c10::CppTypeToScalarType<T>::value || n.channels != padded_channels<T>(n) ||
         n.queries * n.levels * n.points >= n.tokens;
}

// Calls copy(image, head, token) for every value row, in parallel.
template <typename F>
void for_each_row(const Sizes& n, const F& copy) {
  constexpr int64_t kTokensPerTask = 1024;
  const int64_t blocks = (n.tokens + kTokensPerTask - 1) / kTokensPerTask;
  at::parallel_for(0, n.images * n.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / blocks / n.heads, head = task / blocks % n.heads;
      const int64_t first = task % blocks * kTokensPerTask;
      for (int64_t token = first; token < std::min(first + kTokensPerTask, n.tokens); ++token) copy(image, head, token);
    }
  });
}

// (B, S, H, C) of any dtype to (B, H, S, padded C) of T.
template <typename T>
at::Tensor pack(const Sizes& n, const at::Tensor& value) {
  const int64_t padded = padded_channels<T>(n);
  at::Tensor packed =
      at::empty({n.images, n.heads, n.tokens, padded}, value.options().dtype(c10::CppTypeToScalarType<T>::value));
  T* to = packed.mutable_data_ptr<T>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    const scalar_t* from = value.const_data_ptr<scalar_t>();
    for_each_row(n, [&](int64_t image, int64_t head, int64_t token) {
      const scalar_t* __restrict source = from + ((image * n.tokens + token) * n.heads + head) * n.channels;
      T* __restrict row = to + ((image * n.heads + head) * n.tokens + token) * padded;
      for (int64_t c = 0; c < n.channels; ++c) row[c] = static_cast<T>(source[c]);
      for (int64_t c = n.channels; c < padded; ++c) row[c] = T(0);
    });
  });
  return packed;
}

// The way back, to a tensor like value.
template <typename T>
at::Tensor unpack(const Sizes& n, const at::Tensor& packed, const at::Tensor& value) {
  const int64_t padded = padded_channels<T>(n);
  at::Tensor unpacked = at::empty(value.sizes(), value.options());
  const T* from = packed.const_data_ptr<T>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn_backward", [&] {
    scalar_t* to = unpacked.mutable_data_ptr<scalar_t>();
    for_each_row(n, [&](int64_t image, int64_t head, int64_t token) {
      const T* __restrict source = from + ((image * n.heads + head) * n.tokens + token) * padded;
      scalar_t* __restrict row = to + ((image * n.tokens + token) * n.heads + head) * n.channels;
      for (int64_t c = 0; c < n.channels; ++c) row[c] = static_cast<scalar_t>(source[c]);
    });
  });
  return unpacked;
}

template <typename T>
Strides strides_of_rows(const Sizes& n, bool packed) {
  if (!packed) return {n.tokens * n.heads * n.channels, n.channels, n.heads * n.channels};
  const int64_t padded = padded_channels<T>(n);
  return {n.heads * n.tokens * padded, n.tokens * padded, padded};
}

// ---------------------------------------------------------------- the two operators

template <typename T>
at::Tensor run_forward(const Sizes& n, const std::vector<Level>& levels, const at::Tensor& value,
                       const at::Tensor& locations, const at::Tensor& weights) {
  const bool packed = needs_packing<T>(n, value);
  const at::Tensor rows = packed ? pack<T>(n, value) : value;
  at::Tensor output = at::empty({n.images, n.queries, n.heads * n.channels}, rows.options());
  Problem<T> problem(n, levels, locations, weights);
  problem.value = rows.const_data_ptr<T>();
  problem.strides = strides_of_rows<T>(n, packed);
  problem.output = output.mutable_data_ptr<T>();
  const int64_t blocks = (n.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  const auto run_task = tasks<T>().forward;
  at::parallel_for(0, n.images * n.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run_task(problem, task);
  });
  return output.to(value.scalar_type());
}

template <typename T>
std::tuple<at::Tensor, at::Tensor, at::Tensor> run_backward(const Sizes& n, const std::vector<Level>& levels,
                                                            const at::Tensor& grad_output, const at::Tensor& value,
                                                            const at::Tensor& locations, const at::Tensor& weights) {
  const bool packed = needs_packing<T>(n, value);
  const at::Tensor rows = packed ? pack<T>(n, value) : value;
  const at::Tensor grad = grad_output.to(rows.scalar_type());
  at::Tensor grad_rows = at::zeros(rows.sizes(), rows.options());
  at::Tensor grad_locations = at::zeros(locations.sizes(), locations.options());
  at::Tensor grad_weights = at::zeros(weights.sizes(), weights.options());
  Problem<T> problem(n, levels, locations, weights);
  problem.value = rows.const_data_ptr<T>();
  problem.strides = strides_of_rows<T>(n, packed);
  problem.grad_output = grad.const_data_ptr<T>();
  problem.grad_value = grad_rows.mutable_data_ptr<T>();
  problem.grad_locations = grad_locations.mutable_data_ptr<T>();
  problem.grad_weights = grad_weights.mutable_data_ptr<T>();
  const auto run_task = tasks<T>().backward;
  at::parallel_for(0, n.images * n.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run_task(problem, task);
  });
  return {packed ? unpack<T>(n, grad_rows, value) : grad_rows, grad_locations, grad_weights};
}

at::Tensor ms_deform_attn(const at::Tensor& value, const at::Tensor& spatial_shapes,
                          const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const auto run = value.scalar_type() == at::kDouble ? run_forward<double> : run_forward<float>;
  return run(n, levels, value.contiguous(), sampling_locations.contiguous(), attention_weights.contiguous());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(const at::Tensor& grad_output,
                                                                       const at::Tensor& value,
                                                                       const at::Tensor& spatial_shapes,
                                                                       const at::Tensor& sampling_locations,
                                                                       const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, n);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const auto run = value.scalar_type() == at::kDouble ? run_backward<double> : run_backward<float>;
  return run(n, levels, grad_output.contiguous(), value.contiguous(), sampling_locations.contiguous(),
             attention_weights.contiguous());
}

}  // namespace
}  // namespace dinox

TORCH_LIBRARY_IMPL(dinox, CPU, m) {
  m.impl("ms_deform_attn", &dinox::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &dinox::ms_deform_attn_backward);
}
