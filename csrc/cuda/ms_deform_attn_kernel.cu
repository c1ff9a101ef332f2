// Multi-scale deformable attention on NVIDIA GPUs: the operators, between tensors and the kernels of forward.cu and
// backward.cu.
//
// A few lanes serve one (image, query, head), each a part of the channels by loads of 16 bytes; blocks take queries
// that lie close together in a level, and one head of them or a few, because what they share of the value in L1 decides
// the speed. Locations, weights and sums are float (double beside double): half precision cannot address pixels of
// large levels. Nothing here waits for the device or copies to it, so that calls can be captured in CUDA graphs.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <array>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace dinox {
namespace {

Number number_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Number::kFloat;
    case at::kDouble:
      return Number::kDouble;
    case at::kHalf:
      return Number::kHalf;
    case at::kBFloat16:
      return Number::kBfloat;
    default:
      TORCH_CHECK_VALUE(false, "ms_deform_attn: value: expected float, double, half or bfloat16, got ", type);
  }
}

// Contiguous, and where loads of 16 bytes can start.
at::Tensor dense(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  const auto address = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr());
  return address % kVectorBytes == 0 ? contiguous : contiguous.clone();
}

// Offsets and logits are read as they are; beside double, as double.
at::Tensor dense_raw(const at::Tensor& tensor, const at::Tensor& value) {
  const bool precise = value.scalar_type() == at::kDouble;
  if (!precise && tensor.scalar_type() == at::kDouble) return dense(tensor.to(at::kFloat));
  return dense(precise ? tensor.to(at::kDouble) : tensor);
}

Device current_device() {
  int index = 0, multiprocessors = 0, shared_bytes = 0;
  C10_CUDA_CHECK(cudaGetDevice(&index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  return {multiprocessors, shared_bytes};
}

// One call, its tensors laid out as kernels read them.
struct Call {
  Sizes n;
  at::Tensor value, pairs, scalars, references;  // references undefined: locations and weights
  std::vector<Level> levels;

  bool fused() const { return references.defined(); }
  at::ScalarType accumulator() const { return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  Number type() const { return number_of(value.scalar_type()); }
  Variant variant() const { return choose_variant(n, type()); }
  bool empty() const { return n.images * n.queries * n.heads * n.channels == 0; }

  // What kernels count in 32 bits.
  void check() const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(n.levels <= kMaxLevels, "ms_deform_attn: spatial_shapes: expected at most ", kMaxLevels,
                      " levels on CUDA devices, got ", n.levels);
    TORCH_CHECK_VALUE(n.tokens < kMaxTokensOnDevice, "ms_deform_attn: value: expected fewer than ", kMaxTokensOnDevice,
                      " tokens on CUDA devices, got ", n.tokens);
    TORCH_CHECK_VALUE(n.heads <= kMaxGrid && n.heads * n.channels <= kMost / 8 && n.queries <= kMost / 2 &&
                          n.levels * n.points <= kMost / kMaxLevels / 8,
                      "ms_deform_attn: expected at most ", kMaxGrid, " heads, ", kMost / 8, " channels of all heads, ",
                      kMost / 2, " queries and ", kMost / kMaxLevels / 8, " points on CUDA devices, got value ",
                      value.sizes(), " and samples ", scalars.sizes());
  }

  // Some images of the call: those that one grid may have.
  Problem problem(int64_t first, int64_t images) const {
    Sizes some = n;
    some.images = images;
    Problem p = make_problem(some, levels, type());
    p.value = at(value, first);
    p.in = {at(pairs, first),
            at(scalars, first),
            number_of(pairs.scalar_type()),
            number_of(scalars.scalar_type()),
            fused() ? at(references, first) : nullptr,
            fused() ? static_cast<int32_t>(references.size(3)) : 0};
    return p;
  }
  static const void* at(const at::Tensor& tensor, int64_t image) {
    return static_cast<const char*>(tensor.const_data_ptr()) + image * tensor.stride(0) * tensor.element_size();
  }
  // Null for tensors that nobody asks for.
  static void* mutable_at(at::Tensor& tensor, int64_t image) {
    if (!tensor.defined()) return nullptr;
    return static_cast<char*>(tensor.mutable_data_ptr()) + image * tensor.stride(0) * tensor.element_size();
  }
};

// Those that nobody asks for are undefined.
struct Grads {
  at::Tensor value, pairs, scalars, references;
};

struct Wanted {
  bool value, pairs, scalars, references;

  bool samples() const { return pairs || scalars || references; }
};

at::Tensor forward(const Call& call) {
  call.check();
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Sizes& n = call.n;
  at::Tensor output = at::empty({n.images, n.queries, n.heads * n.channels}, call.value.options());
  if (call.empty()) return output;
  if (n.points == 0) return output.zero_();
  for (int64_t image = 0; image < n.images; image += kMaxGrid) {
    Problem p = call.problem(image, std::min(n.images - image, kMaxGrid));
    p.output = Call::mutable_at(output, image);
    C10_CUDA_CHECK(launch_forward(p, call.variant(), call.type(), current_device(), c10::cuda::getCurrentCUDAStream()));
  }
  return output;
}

Problem backward_problem(const Call& call, const at::Tensor& grad_output, Grads& grads, int64_t first, int64_t images) {
  Problem p = call.problem(first, images);
  p.grad.output = Call::at(grad_output, first);
  p.grad.pairs = Call::mutable_at(grads.pairs, first);
  p.grad.scalars = Call::mutable_at(grads.scalars, first);
  p.grad.references = Call::mutable_at(grads.references, first);
  return p;
}

// Gradients of value, if wanted, by additions in the order in which they happen.
void add_backward(const Call& call, const at::Tensor& grad_output, bool wants_value, Grads& grads) {
  at::Tensor sums;
  if (wants_value) sums = at::zeros(call.value.sizes(), call.value.options().dtype(call.accumulator()));
  for (int64_t image = 0; image < call.n.images; image += kMaxGrid) {
    Problem p = backward_problem(call, grad_output, grads, image, std::min(call.n.images - image, kMaxGrid));
    p.grad.value = Call::mutable_at(sums, image);
    C10_CUDA_CHECK(
        launch_backward(p, call.variant(), call.type(), current_device(), c10::cuda::getCurrentCUDAStream()));
  }
  if (wants_value) grads.value = sums.to(call.value.scalar_type());
}

// Gradients of value by additions in one order: samples are recorded, sorted by their place and then summed.
void ordered_backward(const Call& call, const at::Tensor& grad_output, Grads& grads) {
  const Sizes& n = call.n;
  const int64_t records = n.queries * n.heads * n.levels * n.points;
  int64_t cells = 0;
  for (const Level& level : call.levels) cells += (level.height + int64_t{1}) * (level.width + int64_t{1});
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(records < kMost && n.heads * cells < kMost, "ms_deform_attn: expected fewer than ", kMost,
                    " samples and cells of an image in deterministic backward passes on CUDA devices, got ", records,
                    " and ", n.heads * cells);
  const at::TensorOptions integers = call.value.options().dtype(at::kInt);
  grads.value = at::empty(call.value.sizes(), call.value.options());
  at::Tensor numbers = at::empty({records}, integers);
  at::Tensor samples = at::empty({records, 3}, call.value.options().dtype(call.accumulator()));
  const at::Tensor bounds = at::arange(n.heads * cells + 1, integers);
  for (int64_t image = 0; image < n.images; ++image) {
    Problem p = backward_problem(call, grad_output, grads, image, 1);
    p.grad.cells = numbers.mutable_data_ptr<int32_t>();
    p.grad.records = samples.mutable_data_ptr();
    p.grad.cells_per_head = static_cast<int32_t>(cells);
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    C10_CUDA_CHECK(launch_backward(p, call.variant(), call.type(), current_device(), stream));
    const auto [sorted, order] = at::sort(numbers, /*stable=*/true, /*dim=*/0, /*descending=*/false);
    const at::Tensor starts = at::searchsorted(sorted, bounds, /*out_int32=*/true);
    const Ordered ordered{order.const_data_ptr<int64_t>(), starts.const_data_ptr<int32_t>(),
                          Call::mutable_at(grads.value, image)};
    C10_CUDA_CHECK(launch_ordered(p, ordered, call.variant(), call.type(), stream));
  }
}

Grads backward(const Call& call, const at::Tensor& grad_output, const Wanted& wanted) {
  call.check();
  check_grad_output(grad_output, call.value, call.n);
  const c10::cuda::CUDAGuard guard(call.value.device());
  const Sizes& n = call.n;
  const at::TensorOptions precise = call.value.options().dtype(call.accumulator());
  Grads grads;
  if (wanted.pairs) grads.pairs = at::empty(call.pairs.sizes(), call.pairs.options());
  if (wanted.scalars) grads.scalars = at::empty(call.scalars.sizes(), call.scalars.options());
  if (wanted.references)
    grads.references = at::empty({n.images, n.queries, n.heads, n.levels, call.references.size(3)}, precise);
  if (call.fused()) {
    const int64_t most = most_samples(call.variant(), call.value.scalar_type() == at::kDouble ? 8 : 4);
    TORCH_CHECK_VALUE(n.levels * n.points <= most, "ms_deform_attn: sampling_offsets: expected at most ", most,
                      " points of all levels in backward passes on CUDA devices, got ", n.levels * n.points);
  }
  if (call.empty() || n.points == 0) {
    for (at::Tensor* grad : {&grads.pairs, &grads.scalars, &grads.references}) {
      if (grad->defined()) grad->zero_();
    }
    if (wanted.value) grads.value = at::zeros(call.value.sizes(), call.value.options());
  } else if (wanted.value && at::globalContext().deterministicAlgorithms()) {
    ordered_backward(call, dense(grad_output), grads);
  } else if (wanted.value || wanted.samples()) {
    add_backward(call, dense(grad_output), wanted.value, grads);
  }
  if (wanted.references) grads.references = grads.references.sum(2);
  return grads;
}

// ---------------------------------------------------------------- the operators

Call call_of(const at::Tensor& value, const at::Tensor& spatial_shapes, const at::Tensor& sampling_locations,
             const at::Tensor& attention_weights) {
  const Sizes n = check_arguments(value, spatial_shapes, sampling_locations, attention_weights);
  return {n,
          dense(value),
          dense(sampling_locations),
          dense(attention_weights),
          at::Tensor(),
          check_levels(spatial_shapes, n.tokens)};
}

Call call_of(const at::Tensor& value, at::IntArrayRef spatial_shapes, const at::Tensor& reference_points,
             const at::Tensor& sampling_offsets, const at::Tensor& attention_logits) {
  const Sizes n = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  return {n,
          dense(value),
          dense_raw(sampling_offsets, value),
          dense_raw(attention_logits, value),
          dense(reference_points),
          check_levels(spatial_shapes, n.tokens)};
}

at::Tensor ms_deform_attn(const at::Tensor& value, const at::Tensor& spatial_shapes,
                          const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  const c10::cuda::CUDAGuard guard(value.device());
  return forward(call_of(value, spatial_shapes, sampling_locations, attention_weights));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& spatial_shapes,
    const at::Tensor& sampling_locations, const at::Tensor& attention_weights, std::array<bool, 3> output_mask) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Wanted wanted{output_mask[0], output_mask[1], output_mask[2], false};
  const Call call = call_of(value, spatial_shapes, sampling_locations, attention_weights);
  const Grads grads = backward(call, grad_output, wanted);
  return {grads.value, grads.pairs, grads.scalars};
}

at::Tensor ms_deform_attn_fused(const at::Tensor& value, at::IntArrayRef spatial_shapes,
                                const at::Tensor& reference_points, const at::Tensor& sampling_offsets,
                                const at::Tensor& attention_logits) {
  const c10::cuda::CUDAGuard guard(value.device());
  return forward(call_of(value, spatial_shapes, reference_points, sampling_offsets, attention_logits));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_fused_backward(
    const at::Tensor& grad_output, const at::Tensor& value, at::IntArrayRef spatial_shapes,
    const at::Tensor& reference_points, const at::Tensor& sampling_offsets, const at::Tensor& attention_logits,
    std::array<bool, 4> output_mask) {
  const c10::cuda::CUDAGuard guard(value.device());
  const Wanted wanted{output_mask[0], output_mask[2], output_mask[3], output_mask[1]};
  const Call call = call_of(value, spatial_shapes, reference_points, sampling_offsets, attention_logits);
  const Grads grads = backward(call, grad_output, wanted);
  return {grads.value, grads.references, wanted.pairs ? grads.pairs.to(sampling_offsets.scalar_type()) : at::Tensor(),
          wanted.scalars ? grads.scalars.to(attention_logits.scalar_type()) : at::Tensor()};
}

}  // namespace
}  // namespace dinox

TORCH_LIBRARY_IMPL(dinox, CUDA, m) {
  m.impl("ms_deform_attn", &dinox::ms_deform_attn);
  m.impl("ms_deform_attn_backward", &dinox::ms_deform_attn_backward);
  m.impl("ms_deform_attn_fused", &dinox::ms_deform_attn_fused);
  m.impl("ms_deform_attn_fused_backward", &dinox::ms_deform_attn_fused_backward);
}
