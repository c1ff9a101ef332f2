// Schemas of multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3).
// Kernels register themselves per device (cpu/, cuda/); shape inference, autograd and the pure-PyTorch reference that
// serves every other device are registered in dinox/ops/ms_deform_attn.py and dinox/ops/fused.py. The Python twin of
// these schemas, for installations without this library, is in dinox/ops/library.py.
//
//   value              (B, S, H, C)         B images, S tokens of all levels, H heads, C channels per head
//   spatial_shapes     (L, 2)               (height, width) of each level; int64 on the CPU, whatever value's device
//   sampling_locations (B, Q, H, L, P, 2)   (x, y) in [0, 1] of each level; float32 (float64 if value is float64)
//   attention_weights  (B, Q, H, L, P)      likewise
//   output             (B, Q, H * C)        in value's dtype
//
// The fused form takes, instead of locations and weights, what they are made of:
//   spatial_shapes                          height and width of each level in turn, as numbers
//   reference_points   (B, Q, L, 2 or 4)    in [0, 1] of each level; dtype as sampling_locations
//   sampling_offsets   (B, Q, H, L, P, 2)   any floating point dtype
//   attention_logits   (B, Q, H, L, P)      likewise; one softmax over L * P
//
// Backward operators return gradients of value and of what follows spatial_shapes; undefined (None) where output_mask,
// in the same order, has false.
#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(dinox, m) {
  m.def(
      "ms_deform_attn(Tensor value, Tensor spatial_shapes, Tensor sampling_locations, Tensor attention_weights)"
      " -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, Tensor spatial_shapes, Tensor sampling_locations,"
      " Tensor attention_weights, bool[3] output_mask) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets,"
      " Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor"
      " reference_points, Tensor sampling_offsets, Tensor attention_logits, bool[4] output_mask)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}
