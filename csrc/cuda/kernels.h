// The kernels' launches, for files that do without CUDA's compiler or without ATen. Each returns what the launch
// returned.
#pragma once

#include <cuda_runtime.h>

#include "plan.h"

namespace dinox {

cudaError_t launch_forward(Problem p, const Variant& variant, Number value_type, const Device& device,
                           cudaStream_t stream);
// Gradients of value are added, or samples are recorded if p.grad.cells is not null.
cudaError_t launch_backward(Problem p, const Variant& variant, Number value_type, const Device& device,
                            cudaStream_t stream);
// The gradient of value of the one image of p from its sorted records.
cudaError_t launch_ordered(const Problem& p, const Ordered& ordered, const Variant& variant, Number value_type,
                           cudaStream_t stream);

}  // namespace dinox
