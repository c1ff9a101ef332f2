// What every backend of ms_deform_attn checks before it touches memory. The Python function checks first and says more;
// these checks keep direct calls of torch.ops.dinox.* memory safe.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <vector>

namespace dinox {

// B images, S tokens (all levels, flattened), H heads, C channels per head, Q queries, L levels, P points per level.
struct Sizes {
  int64_t images, tokens, heads, channels, queries, levels, points;
};

// One level of the feature pyramid: its size and the index of its first token.
struct Level {
  int32_t height, width, start;
};

// Kernels hold token indices inside one image in 32 bits (and may step one row and one pixel beyond a level).
constexpr int64_t kMaxTokens = int64_t{1} << 30;

inline void check_shape(const at::Tensor& tensor, const char* name, const char* legend, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "ms_deform_attn: ", name, ": expected shape ", legend, " = ", expected,
                    ", got ", tensor.sizes());
}

// value (B, S, H, C), spatial_shapes (L, 2), sampling_locations (B, Q, H, L, P, 2), attention_weights (B, Q, H, L, P)
inline Sizes check_arguments(const at::Tensor& value, const at::Tensor& spatial_shapes,
                             const at::Tensor& sampling_locations, const at::Tensor& attention_weights) {
  TORCH_CHECK_VALUE(value.dim() == 4, "ms_deform_attn: value: expected 4 dimensions (B, S, H, C), got ", value.sizes());
  TORCH_CHECK_VALUE(spatial_shapes.dim() == 2 && spatial_shapes.size(1) == 2,
                    "ms_deform_attn: spatial_shapes: expected shape (L, 2), got ", spatial_shapes.sizes());
  TORCH_CHECK_VALUE(spatial_shapes.is_cpu() && spatial_shapes.scalar_type() == at::kLong,
                    "ms_deform_attn: spatial_shapes: expected an int64 tensor on the CPU, got ",
                    spatial_shapes.scalar_type(), " on ", spatial_shapes.device());
  TORCH_CHECK_VALUE(sampling_locations.dim() == 6,
                    "ms_deform_attn: sampling_locations: expected 6 dimensions (B, Q, H, L, P, 2), got ",
                    sampling_locations.sizes());
  const Sizes n{value.size(0),
                value.size(1),
                value.size(2),
                value.size(3),
                sampling_locations.size(1),
                spatial_shapes.size(0),
                sampling_locations.size(4)};
  check_shape(sampling_locations, "sampling_locations", "(B, Q, H, L, P, 2)",
              {n.images, n.queries, n.heads, n.levels, n.points, 2});
  check_shape(attention_weights, "attention_weights", "(B, Q, H, L, P)",
              {n.images, n.queries, n.heads, n.levels, n.points});

  const auto coordinates = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto check_placement = [&](const at::Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == coordinates, "ms_deform_attn: ", name, ": expected ", coordinates,
                      " beside a value of ", value.scalar_type(), ", got ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.device() == value.device(), "ms_deform_attn: ", name, ": expected device ", value.device(),
                      " (that of value), got ", tensor.device());
  };
  check_placement(sampling_locations, "sampling_locations");
  check_placement(attention_weights, "attention_weights");
  return n;
}

// The table of levels; spatial_shapes has passed check_arguments.
inline std::vector<Level> check_levels(const at::Tensor& spatial_shapes, int64_t tokens) {
  TORCH_CHECK_VALUE(tokens < kMaxTokens, "ms_deform_attn: value: expected fewer than ", kMaxTokens, " tokens, got ",
                    tokens);
  const at::Tensor shapes = spatial_shapes.contiguous();
  const int64_t* size = shapes.const_data_ptr<int64_t>();
  std::vector<Level> levels;
  int64_t start = 0;
  for (int64_t level = 0; level < shapes.size(0); ++level, size += 2) {
    TORCH_CHECK_VALUE(size[0] > 0 && size[1] > 0 && size[0] <= tokens && size[1] <= tokens,
                      "ms_deform_attn: spatial_shapes: expected positive heights and widths of at most ", tokens,
                      " tokens, got (", size[0], ", ", size[1], ") for level ", level);
    TORCH_CHECK_VALUE(start <= tokens, "ms_deform_attn: spatial_shapes: expected levels of ", tokens,
                      " tokens in all (those of value), got ", start, " in the levels before level ", level);
    levels.push_back({static_cast<int32_t>(size[0]), static_cast<int32_t>(size[1]), static_cast<int32_t>(start)});
    start += size[0] * size[1];
  }
  TORCH_CHECK_VALUE(start == tokens, "ms_deform_attn: spatial_shapes: expected heights * widths to add up to the ",
                    tokens, " tokens of value, got ", start);
  return levels;
}

inline void check_grad_output(const at::Tensor& grad_output, const at::Tensor& value, const Sizes& n) {
  check_shape(grad_output, "grad_output", "(B, Q, H * C)", {n.images, n.queries, n.heads * n.channels});
  TORCH_CHECK_VALUE(grad_output.scalar_type() == value.scalar_type() && grad_output.device() == value.device(),
                    "ms_deform_attn: grad_output: expected ", value.scalar_type(), " on ", value.device(),
                    " (as value), got ", grad_output.scalar_type(), " on ", grad_output.device());
}

}  // namespace dinox
