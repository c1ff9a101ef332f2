// The forward kernels. No ATen here: it takes longer to compile than they do.
#include "forward.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace dinox {

cudaError_t launch_forward(Problem p, const Variant& variant, Number value_type, const Device& device,
                           cudaStream_t stream) {
  const Launch plan = plan_forward(p, variant, device);
  return with_value_type(value_type, [&](auto number) {
    using value_t = decltype(number);
    return with_variant<value_t>(variant, [&](auto compiled) {
      using C = decltype(compiled);
      if (p.in.references != nullptr)
        return launch(forward_kernel<value_t, true, C::kLanes, C::kVector, C::kPoints>, plan, stream, p);
      return launch(forward_kernel<value_t, false, C::kLanes, C::kVector, C::kPoints>, plan, stream, p);
    });
  });
}

}  // namespace dinox
