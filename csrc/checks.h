// What every backend of ms_deform_attn checks before it touches memory. The Python function checks first and says more;
// these checks keep direct calls of torch.ops.dinox.* memory safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "sizes.h"

namespace dinox {

// Kernels hold token indices inside one image in 32 bits (and may step one row and one pixel beyond a level).
constexpr int64_t kMaxTokens = int64_t{1} << 30;

inline void check_shape(const at::Tensor& tensor, const char* name, const char* legend, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "ms_deform_attn: ", name, ": expected shape ", legend, " = ", expected,
                    ", got ", tensor.sizes());
}

inline void check_value(const at::Tensor& value) {
  TORCH_CHECK_VALUE(value.dim() == 4, "ms_deform_attn: value: expected 4 dimensions (B, S, H, C), got ", value.sizes());
  TORCH_CHECK_VALUE(value.size(1) < kMaxTokens, "ms_deform_attn: value: expected fewer than ", kMaxTokens,
                    " tokens, got ", value.size(1));
}

// Coordinates are float beside values of any lower precision, double beside double.
inline void check_coordinates(const at::Tensor& tensor, const char* name, const at::Tensor& value) {
  const auto expected = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(tensor.scalar_type() == expected, "ms_deform_attn: ", name, ": expected ", expected,
                    " beside a value of ", value.scalar_type(), ", got ", tensor.scalar_type());
}

inline void check_device(const at::Tensor& tensor, const char* name, const at::Tensor& value) {
  TORCH_CHECK_VALUE(tensor.device() == value.device(), "ms_deform_attn: ", name, ": expected device ", value.device(),
                    " (that of value), got ", tensor.device());
}

// The sizes of value (B, S, H, C) and of `pairs` (B, Q, H, L, P, 2), with `scalars` (B, Q, H, L, P).
inline Sizes check_samples(const at::Tensor& value, int64_t levels, const at::Tensor& pairs, const char* pairs_name,
                           const at::Tensor& scalars, const char* scalars_name) {
  check_value(value);
  TORCH_CHECK_VALUE(pairs.dim() == 6, "ms_deform_attn: ", pairs_name,
                    ": expected 6 dimensions (B, Q, H, L, P, 2), got ", pairs.sizes());
  const Sizes n{value.size(0), value.size(1), value.size(2), value.size(3), pairs.size(1), levels, pairs.size(4)};
  check_shape(pairs, pairs_name, "(B, Q, H, L, P, 2)", {n.images, n.queries, n.heads, n.levels, n.points, 2});
  check_shape(scalars, scalars_name, "(B, Q, H, L, P)", {n.images, n.queries, n.heads, n.levels, n.points});
  check_device(pairs, pairs_name, value);
  check_device(scalars, scalars_name, value);
  return n;
}

// value (B, S, H, C), spatial_shapes (L, 2), sampling_locations (B, Q, H, L, P, 2), attention_weights (B, Q, H, L, P)
inline Sizes check_arguments(const at::Tensor& value, const at::Tensor& spatial_shapes,
                             const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  TORCH_CHECK_VALUE(spatial_shapes.dim() == 2 && spatial_shapes.size(1) == 2,
                    "ms_deform_attn: spatial_shapes: expected shape (L, 2), got ", spatial_shapes.sizes());
  TORCH_CHECK_VALUE(spatial_shapes.is_cpu() && spatial_shapes.scalar_type() == at::kLong,
                    "ms_deform_attn: spatial_shapes: expected an int64 tensor on the CPU, got ",
                    spatial_shapes.scalar_type(), " on ", spatial_shapes.device());
  const Sizes n = check_samples(value, spatial_shapes.size(0), sampling_locations, "sampling_locations",
                                attention_weights, "attention_weights");
  check_coordinates(sampling_locations, "sampling_locations", value);
  check_coordinates(attention_weights, "attention_weights", value);
  return n;
}

// The fused form: spatial_shapes height, width of each level in turn; reference_points (B, Q, L, 2 or 4);
// sampling_offsets (B, Q, H, L, P, 2) and attention_logits (B, Q, H, L, P) of any floating point dtype.
inline Sizes check_fused_arguments(const at::Tensor& value, at::IntArrayRef spatial_shapes,
                                   const at::Tensor& reference_points, const at::Tensor& sampling_offsets,
                                   const at::Tensor& attention_logits) {
  TORCH_CHECK_VALUE(!spatial_shapes.empty() && spatial_shapes.size() % 2 == 0,
                    "ms_deform_attn: spatial_shapes: expected height and width of each level, got ", spatial_shapes);
  const Sizes n = check_samples(value, spatial_shapes.size() / 2, sampling_offsets, "sampling_offsets",
                                attention_logits, "attention_logits");
  TORCH_CHECK_VALUE(reference_points.dim() == 4 && (reference_points.size(3) == 2 || reference_points.size(3) == 4),
                    "ms_deform_attn: reference_points: expected (B, Q, L, 2) or (B, Q, L, 4), got ",
                    reference_points.sizes());
  check_shape(reference_points, "reference_points", "(B, Q, L, 2 or 4)",
              {n.images, n.queries, n.levels, reference_points.size(3)});
  check_coordinates(reference_points, "reference_points", value);
  check_device(reference_points, "reference_points", value);
  for (const auto& [tensor, name] : {std::pair<const at::Tensor&, const char*>{sampling_offsets, "sampling_offsets"},
                                     {attention_logits, "attention_logits"}}) {
    TORCH_CHECK_VALUE(tensor.is_floating_point(), "ms_deform_attn: ", name, ": expected a floating point dtype, got ",
                      tensor.scalar_type());
  }
  return n;
}

// The table of levels; height and width of each in turn.
inline std::vector<Level> check_levels(at::IntArrayRef spatial_shapes, int64_t tokens) {
  std::vector<Level> levels;
  int64_t start = 0;
  for (size_t level = 0; level < spatial_shapes.size() / 2; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    TORCH_CHECK_VALUE(height > 0 && width > 0 && height <= tokens && width <= tokens,
                      "ms_deform_attn: spatial_shapes: expected positive heights and widths of at most ", tokens,
                      " tokens, got (", height, ", ", width, ") for level ", level);
    TORCH_CHECK_VALUE(start <= tokens, "ms_deform_attn: spatial_shapes: expected levels of ", tokens,
                      " tokens in all (those of value), got ", start, " in the levels before level ", level);
    levels.push_back({static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(start)});
    start += height * width;
  }
  TORCH_CHECK_VALUE(start == tokens, "ms_deform_attn: spatial_shapes: expected heights * widths to add up to the ",
                    tokens, " tokens of value, got ", start);
  return levels;
}

// The same from an int64 tensor (L, 2) on the CPU.
inline std::vector<Level> check_levels(const at::Tensor& spatial_shapes, int64_t tokens) {
  const at::Tensor shapes = spatial_shapes.contiguous();
  return check_levels(at::IntArrayRef(shapes.const_data_ptr<int64_t>(), shapes.numel()), tokens);
}

inline void check_grad_output(const at::Tensor& grad_output, const at::Tensor& value, const Sizes& n) {
  check_shape(grad_output, "grad_output", "(B, Q, H * C)", {n.images, n.queries, n.heads * n.channels});
  TORCH_CHECK_VALUE(grad_output.scalar_type() == value.scalar_type() && grad_output.device() == value.device(),
                    "ms_deform_attn: grad_output: expected ", value.scalar_type(), " on ", value.device(),
                    " (as value), got ", grad_output.scalar_type(), " on ", grad_output.device());
}

}  // namespace dinox
