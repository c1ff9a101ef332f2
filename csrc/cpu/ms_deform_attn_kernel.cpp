// Multi-scale deformable attention on the CPU, forward and backward, from locations and weights or from raw inputs.
//
// Value rows of a head are read from a copy in which they lie side by side, padded to whole blocks of 64 bytes, and
// each thread copies one head at a time, so that the copies stay in its cache: forward tasks are blocks of queries of
// one (image, head) then. Where few rows will be read (decoders) and value can be used as it is, there are no copies:
// tasks are blocks of queries with all heads, which lie close together in memory, and rows are prefetched. A backward
// task owns all queries of one (image, head, level), so gradients of value need no atomics. The partition depends on
// shapes only: any number of threads gives the same bits. Channels are processed as vectors (GNU vector extension). The
// same loops, in ms_deform_attn_tasks.h, are compiled for AVX-512, AVX2 and the portable baseline; the best that the
// CPU has runs, or the one that the environment variable DINOX_CPU_ISA = avx512 | avx2 | portable names.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#pragma GCC diagnostic ignored "-Wuninitialized"  // in intrinsics' own functions, by mistake
#pragma GCC diagnostic ignored "-Wpsabi"          // no vector is passed between functions of different instruction sets
#include <immintrin.h>
#endif

#include "../checks.h"

namespace dinox {
namespace {

// ---------------------------------------------------------------- the problem

// Rows are padded to, and processed in, blocks of 64 bytes: this many channels.
template <typename T>
constexpr int64_t kBlock = 64 / sizeof(T);

constexpr size_t kLineBytes = 64;         // of the cache
constexpr int64_t kItemsPerTask = 128;    // forward: small enough to balance, large enough to amortise a task
constexpr int64_t kQueriesPerBlock = 32;  // backward: whose samples are located before rows are touched
constexpr int64_t kChunk = 16;            // samples located at a time
constexpr int64_t kQueriesAhead = 4;      // whose samples are prefetched
constexpr int64_t kSamplesAhead = 8;      // whose rows are prefetched in the backward pass

// As wide as T, so that one vector holds as many of them.
template <typename T>
using Integer = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

alignas(64) constexpr char kRowOfZeros[4 * 64] = {};  // as many blocks as are taken at a time

enum Corner { kTopLeft = 0, kTopRight = 1, kBottomLeft = 2, kBottomRight = 3 };
constexpr int32_t kAllCorners = 0b1111;

// Value rows of one (image, head) and those of their gradient, from the first token of the image on.
template <typename T>
struct LevelRows {
  const T* value;
  T* grad;
  int64_t stride;  // from token to token
};

// What a vectorised loop over kChunk samples needs of their levels.
template <typename T>
struct LevelsOfSamples {
  const T *widths, *heights;
  const Integer<T>*row_lengths, *starts;
};

// Per sample: of one (query, head), that is per (level, point), or of one level throughout.
template <typename T>
struct LevelTable {
  std::vector<T> widths, heights;
  std::vector<Integer<T>> row_lengths, starts;

  void append(const Level& level, int64_t count) {
    widths.insert(widths.end(), count, static_cast<T>(level.width));
    heights.insert(heights.end(), count, static_cast<T>(level.height));
    row_lengths.insert(row_lengths.end(), count, level.width);
    starts.insert(starts.end(), count, level.start);
  }
  LevelsOfSamples<T> from(int64_t first) const {
    return {widths.data() + first, heights.data() + first, row_lengths.data() + first, starts.data() + first};
  }
};

// What samples are given as: locations and attention weights or, with references, offsets and logits.
template <typename T>
struct Input {
  const T* pairs;                 // (B, Q, H, L, P, 2)
  const T* scalars;               // (B, Q, H, L, P)
  const T* references = nullptr;  // (B, Q, L, 2 or 4)
  int64_t reference_size = 0;

  const T* references_of(const Sizes& n, int64_t row) const { return references + row * n.levels * reference_size; }
};

template <typename T>
struct Problem {
  Sizes n;
  std::vector<Level> levels;
  Input<T> in;
  LevelTable<T> of_samples, of_levels;
  const void* value = nullptr;
  at::ScalarType value_type{};
  bool bfloat_rows = false;  // forward: value rows are kept in bfloat16
  void* output = nullptr;
  const T* grad_output = nullptr;
  // Null: nobody asks for it.
  void* grad_value = nullptr;
  T* grad_pairs = nullptr;
  T* grad_weights = nullptr;

  Problem(const Sizes& n, const std::vector<Level>& levels, const Input<T>& in) : n(n), levels(levels), in(in) {
    for (const Level& level : levels) {
      of_samples.append(level, n.points);
      of_levels.append(level, kChunk);
    }
    of_samples.append({0, 0, 0}, (samples() + kChunk - 1) / kChunk * kChunk - samples());
  }
  Problem(const Problem&) = delete;

  int64_t samples() const { return n.levels * n.points; }
  // Index of (image, query, head) in everything that is indexed so.
  int64_t index(int64_t image, int64_t query, int64_t head) const {
    return (image * n.queries + query) * n.heads + head;
  }
  LevelsOfSamples<T> levels_of_samples(int64_t first) const { return of_samples.from(first); }
  LevelsOfSamples<T> constants_of_level(int64_t level) const { return of_levels.from(level * kChunk); }
  int64_t forward_tasks_per_head() const { return (n.queries + kItemsPerTask - 1) / kItemsPerTask; }
  int64_t items() const { return n.images * n.queries * n.heads; }
  int64_t stride() const { return n.heads * n.channels; }  // from token to token of value
  // Where value has the first row of the image and head of the (image, query, head) number `index`.
  int64_t first_element(int64_t index) const {
    return (index / (n.queries * n.heads) * n.tokens * n.heads + index % n.heads) * n.channels;
  }
  // Blocks of channels; an even number where rows are bfloat16.
  int64_t blocks() const {
    const int64_t blocks = (n.channels + kBlock<T> - 1) / kBlock<T>;
    return bfloat_rows ? (blocks + 1) / 2 * 2 : blocks;
  }
};

// Room for numbers, uninitialised, from the start of a cache line on: no row of whole blocks shares one with another.
struct FreeRoom {
  void operator()(void* room) const { ::operator delete(room, std::align_val_t{kLineBytes}); }
};
template <typename T>
std::unique_ptr<T[], FreeRoom> make_room(int64_t count) {
  return std::unique_ptr<T[], FreeRoom>(
      static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kLineBytes})));
}

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
  void (*forward)(const Problem<T>&, int64_t, int64_t, void*);
  void (*backward)(const Problem<T>&, int64_t, T*);
  void (*softmax)(const Problem<T>&, const T*, T*, int64_t);
  void (*chain)(const Problem<T>&, const T*, T*, int64_t);

  template <typename Compiled>
  static Tasks of() {
    return {Compiled::forward, Compiled::backward, Compiled::softmax, Compiled::chain};
  }
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
  if (forced == "avx512" || (forced.empty() && has_avx512)) return Tasks<T>::template of<avx512::Tasks<T>>();
  if (forced == "avx2" || (forced.empty() && has_avx2)) return Tasks<T>::template of<avx2::Tasks<T>>();
#endif
  return Tasks<T>::template of<portable::Tasks<T>>();
}

template <typename T>
const Tasks<T>& tasks() {
  static const Tasks<T> chosen = choose_tasks<T>();
  return chosen;
}

// Calls run(task) for all tasks, in parallel.
template <typename F>
void for_each_task(int64_t tasks, int64_t grain, const F& run) {
  at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

// ---------------------------------------------------------------- the operators

// Copying all rows pays where samples outnumber tokens.
bool is_dense(const Sizes& n) { return n.queries * n.levels * n.points >= n.tokens; }

template <typename T>
at::Tensor run_forward(Problem<T>& p, const at::Tensor& value) {
  const Sizes& n = p.n;
  p.value_type = value.scalar_type();
  p.bfloat_rows = p.value_type == at::kBFloat16;
  const int64_t padded = p.blocks() * kBlock<T>;
  const bool in_place = p.value_type != at::kHalf && padded == n.channels && !is_dense(n);
  at::Tensor output =
      at::empty({n.images, n.queries, n.heads * n.channels},
                value.options().dtype(p.bfloat_rows ? at::kBFloat16 : c10::CppTypeToScalarType<T>::value));
  p.value = value.const_data_ptr();
  p.output = output.mutable_data_ptr();
  const auto run_tasks = tasks<T>().forward;
  const int64_t tasks_on_copies = n.images * n.heads * p.forward_tasks_per_head();
  const int64_t tasks_in_place = (p.items() + kItemsPerTask - 1) / kItemsPerTask;
  at::parallel_for(0, in_place ? tasks_in_place : tasks_on_copies, 1, [&](int64_t begin, int64_t end) {
    const auto copies = make_room<T>(in_place ? 0 : n.tokens * padded);
    run_tasks(p, begin, end, in_place ? nullptr : copies.get());
  });
  return output.to(p.value_type);
}

// A tensor like another one, its memory as it comes; undefined where nobody asks for it.
at::Tensor room_for(const at::Tensor& like, bool wanted) {
  return wanted ? at::empty(like.sizes(), like.options()) : at::Tensor();
}

template <typename T>
T* data_of(at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Returns grad_value if asked for, and fills p.grad_pairs and p.grad_weights, if there, with the gradients of locations
// and weights.
template <typename T>
at::Tensor run_backward(Problem<T>& p, const at::Tensor& grad_output, const at::Tensor& value, bool wants_value) {
  const Sizes& n = p.n;
  const at::Tensor grad = grad_output.to(c10::CppTypeToScalarType<T>::value);
  const bool in_place =
      value.scalar_type() == c10::CppTypeToScalarType<T>::value && n.channels % kBlock<T> == 0 && !is_dense(n);
  at::Tensor grad_value =
      in_place && wants_value ? at::zeros(value.sizes(), value.options()) : room_for(value, wants_value);
  if (!wants_value && p.grad_pairs == nullptr && p.grad_weights == nullptr) return grad_value;
  p.value = value.const_data_ptr();
  p.value_type = value.scalar_type();
  p.grad_output = grad.const_data_ptr<T>();
  p.grad_value = wants_value ? grad_value.mutable_data_ptr() : nullptr;
  int64_t largest = 0;
  for (const Level& level : p.levels) largest = std::max(largest, int64_t{level.height} * level.width);
  const auto run_task = tasks<T>().backward;
  at::parallel_for(0, n.images * n.heads * n.levels, 1, [&](int64_t begin, int64_t end) {
    const auto copies = make_room<T>(in_place ? 0 : 2 * largest * p.blocks() * kBlock<T>);
    for (int64_t task = begin; task < end; ++task) run_task(p, task, in_place ? nullptr : copies.get());
  });
  return grad_value;
}

template <typename T>
Input<T> input_of(const at::Tensor& pairs, const at::Tensor& scalars) {
  return {pairs.const_data_ptr<T>(), scalars.const_data_ptr<T>()};
}

template <typename T>
Input<T> input_of(const at::Tensor& pairs, const at::Tensor& scalars, const at::Tensor& references) {
  return {pairs.const_data_ptr<T>(), scalars.const_data_ptr<T>(), references.const_data_ptr<T>(), references.size(3)};
}

// Calls f with a number of the type that is computed with: double for double values, else float.
template <typename F>
auto with_precision(const at::Tensor& value, const F& f) {
  return value.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

at::Tensor precise(const at::Tensor& tensor, const at::Tensor& value) {
  return tensor.to(value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

at::Tensor ms_deform_attn(const at::Tensor& value, const at::Tensor& spatial_shapes,
                          const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const at::Tensor rows = value.contiguous(), locations = sampling_locations.contiguous();
  const at::Tensor weights = attention_weights.contiguous();
  return with_precision(value, [&](auto zero) {
    using T = decltype(zero);
    Problem<T> p(n, levels, input_of<T>(locations, weights));
    return run_forward(p, rows);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& spatial_shapes,
    const at::Tensor& sampling_locations, const at::Tensor& attention_weights, std::array<bool, 3> output_mask) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, n);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const at::Tensor rows = value.contiguous(), locations = sampling_locations.contiguous();
  const at::Tensor weights = attention_weights.contiguous(), grad = grad_output.contiguous();
  const auto [wants_value, wants_locations, wants_weights] = output_mask;
  at::Tensor grad_locations = room_for(locations, wants_locations), grad_weights = room_for(weights, wants_weights);
  const at::Tensor grad_value = with_precision(value, [&, wants_value = wants_value](auto zero) {
    using T = decltype(zero);
    Problem<T> p(n, levels, input_of<T>(locations, weights));
    p.grad_pairs = data_of<T>(grad_locations);
    p.grad_weights = data_of<T>(grad_weights);
    return run_backward(p, grad, rows, wants_value);
  });
  return {grad_value, grad_locations, grad_weights};
}

at::Tensor ms_deform_attn_fused(const at::Tensor& value, at::IntArrayRef spatial_shapes,
                                const at::Tensor& reference_points, const at::Tensor& sampling_offsets,
                                const at::Tensor& attention_logits) {
  const Sizes n = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const at::Tensor rows = value.contiguous(), references = reference_points.contiguous();
  const at::Tensor offsets = precise(sampling_offsets, value), logits = precise(attention_logits, value);
  return with_precision(value, [&](auto zero) {
    using T = decltype(zero);
    Problem<T> p(n, levels, input_of<T>(offsets, logits, references));
    return run_forward(p, rows);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_fused_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points, const at::Tensor& sampling_offsets, const at::Tensor& attention_logits,
    std::array<bool, 4> output_mask) {
  const Sizes n = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  check_grad_output(grad_output, value, n);
  const std::vector<Level> levels = check_levels(spatial_shapes, n.tokens);
  const at::Tensor rows = value.contiguous(), references = reference_points.contiguous();
  const at::Tensor offsets = precise(sampling_offsets, value), logits = precise(attention_logits, value);
  const at::Tensor grad = grad_output.contiguous();
  at::Tensor weights = at::empty(logits.sizes(), logits.options());
  const auto [wants_value, wants_references, wants_offsets, wants_logits] = output_mask;
  const bool has_chain = wants_references || wants_offsets || wants_logits;
  at::Tensor grad_references = room_for(references, wants_references);
  at::Tensor grad_offsets = room_for(offsets, wants_offsets || wants_references);  // those come from these
  at::Tensor grad_logits = room_for(logits, wants_logits);
  const at::Tensor grad_value = with_precision(value, [&, wants_value = wants_value](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kRowsPerTask = 64;
    const int64_t rows_of_queries = n.images * n.queries;
    Problem<T> p(n, levels, input_of<T>(offsets, weights, references));
    p.grad_pairs = data_of<T>(grad_offsets);
    p.grad_weights = data_of<T>(grad_logits);
    T* weight = weights.mutable_data_ptr<T>();
    const T* logit = logits.const_data_ptr<T>();
    for_each_task(rows_of_queries, kRowsPerTask, [&](int64_t row) { tasks<T>().softmax(p, logit, weight, row); });
    const at::Tensor result = run_backward(p, grad, rows, wants_value);
    if (!has_chain) return result;
    T* reference = data_of<T>(grad_references);
    const T* offset = offsets.const_data_ptr<T>();
    for_each_task(rows_of_queries, kRowsPerTask, [&](int64_t row) { tasks<T>().chain(p, offset, reference, row); });
    return result;
  });
  return {grad_value, grad_references, wants_offsets ? grad_offsets.to(sampling_offsets.scalar_type()) : at::Tensor(),
          wants_logits ? grad_logits.to(attention_logits.scalar_type()) : at::Tensor()};
}

}  // namespace
}  // namespace dinox

TORCH_LIBRARY_IMPL(dinox, CPU, m) {
  m.impl("ms_deform_attn", &dinox::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &dinox::ms_deform_attn_backward);
  m.impl("ms_deform_attn_fused", &dinox::ms_deform_attn_fused);
  m.impl("ms_deform_attn_fused_backward", &dinox::ms_deform_attn_fused_backward);
}
