// The backward kernels. No ATen here: it takes longer to compile than they do.
#include "backward.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ordered.cuh"

namespace dinox {
namespace {

template <typename value_t, bool kFused>
cudaError_t launch_backward_of(Problem& p, const Variant& variant, const Device& device, cudaStream_t stream) {
  Launch plan;
  if constexpr (sizeof(value_t) < sizeof(double)) {
    if (plan_shared_backward(p, variant, device, plan)) {
      constexpr int kVector = kVectorBytes / sizeof(value_t);
      return launch(backward_kernel<value_t, kFused, 32 / kVector, kVector, 0, true>, plan, stream, p);
    }
  }
  plan = plan_backward(p, variant, device, sizeof(Accumulator<value_t>));
  return with_variant<value_t>(variant, [&](auto compiled) {
    using C = decltype(compiled);
    return launch(backward_kernel<value_t, kFused, C::kLanes, C::kVector, C::kPoints, false>, plan, stream, p);
  });
}

}  // namespace

cudaError_t launch_backward(Problem p, const Variant& variant, Number value_type, const Device& device,
                            cudaStream_t stream) {
  return with_value_type(value_type, [&](auto number) {
    using value_t = decltype(number);
    if (p.in.references != nullptr) return launch_backward_of<value_t, true>(p, variant, device, stream);
    return launch_backward_of<value_t, false>(p, variant, device, stream);
  });
}

cudaError_t launch_ordered(const Problem& p, const Ordered& ordered, const Variant& variant, Number value_type,
                           cudaStream_t stream) {
  const Launch plan = plan_ordered(p, variant);
  return with_value_type(value_type, [&](auto number) {
    using value_t = decltype(number);
    return with_variant<value_t>(variant, [&](auto compiled) {
      using C = decltype(compiled);
      return launch(ordered_kernel<value_t, C::kLanes, C::kVector>, plan, stream, p, ordered);
    });
  });
}

}  // namespace dinox
