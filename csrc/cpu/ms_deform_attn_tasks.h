// The loops of ms_deform_attn on the CPU. ms_deform_attn_kernel.cpp includes this file once per instruction set, each
// time inside a namespace of its own and with
//   DINOX_VECTOR_BYTES  size of a vector register
//   DINOX_TARGET        function attribute that selects the instruction set
// Every function here carries that attribute: compilers lower vector types function by function, before they inline.
// No include guard, by intention.

#define DINOX_INLINE inline __attribute__((always_inline)) DINOX_TARGET

// clang-format off: each needs those before it
#include "rows.h"
#include "samples.h"
#include "forward.h"
#include "backward.h"
// clang-format on

// ---------------------------------------------------------------- entry points

template <typename T>
struct Tasks {
  // Tasks [begin, end). `copies`: room for all rows of a head, for tasks of (image, head, block of queries); or null,
  // for tasks of blocks of (image, query, head), on rows where value has them.
  DINOX_TARGET static void forward(const Problem<T>& p, int64_t begin, int64_t end, void* copies) {
    if constexpr (std::is_same_v<T, double>) {
      forward_range<Plain<double>, double>(p, begin, end, copies);
    } else if (p.value_type == at::kHalf) {
      forward_range<Plain<float>, c10::Half>(p, begin, end, copies);
    } else if (p.value_type == at::kBFloat16) {
      forward_range<BfloatPairs, uint16_t>(p, begin, end, copies);
    } else {
      forward_range<Plain<float>, float>(p, begin, end, copies);
    }
  }
  // Number `task` of (image, head, level). `copies`: room for the rows of the largest level, twice; or null.
  DINOX_TARGET static void backward(const Problem<T>& p, int64_t task, T* copies) {
    const int64_t level = task % p.n.levels, head = task / p.n.levels % p.n.heads,
                  image = task / p.n.levels / p.n.heads;
    if (copies == nullptr) return backward_in_place(p, image, head, level);
    if constexpr (std::is_same_v<T, double>) {
      backward_on_copies<T, double>(p, image, head, level, copies);
    } else if (p.value_type == at::kHalf) {
      backward_on_copies<T, c10::Half>(p, image, head, level, copies);
    } else if (p.value_type == at::kBFloat16) {
      backward_on_copies<T, c10::BFloat16>(p, image, head, level, copies);
    } else {
      backward_on_copies<T, float>(p, image, head, level, copies);
    }
  }
  DINOX_TARGET static void softmax(const Problem<T>& p, const T* logits, T* weights, int64_t row) {
    softmax_row(p, logits, weights, row);
  }
  DINOX_TARGET static void chain(const Problem<T>& p, const T* offsets, T* grad_references, int64_t row) {
    chain_row(p, offsets, grad_references, row);
  }

 private:
  template <typename Stored, typename value_t>
  DINOX_INLINE static void forward_range(const Problem<T>& p, int64_t begin, int64_t end, void* room) {
    typedef typename Stored::element element;
    if constexpr (std::is_same_v<element, value_t>) {
      if (room == nullptr) {
        const int64_t first = begin * kItemsPerTask, last = std::min(end * kItemsPerTask, p.items());
        return run_items<Stored>(p, {first, 1, last - first, static_cast<const element*>(p.value),
                                     p.stride() * static_cast<int64_t>(sizeof(element)), true, 0});
      }
    }
    const int64_t tasks_per_head = p.forward_tasks_per_head(), padded = p.blocks() * kBlock<T>;
    element* copies = static_cast<element*>(room);
    int64_t copied = -1;  // which (image, head) is in the copies
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image_head = task / tasks_per_head;
      const int64_t image = image_head / p.n.heads, head = image_head % p.n.heads;
      if (copied != image_head) {
        const int64_t offset = (image * p.n.tokens * p.n.heads + head) * p.n.channels;
        copy_rows(static_cast<const value_t*>(p.value) + offset, p.stride(), p.n.channels, copies, padded, padded,
                  p.n.tokens);
        copied = image_head;
      }
      const int64_t first = task % tasks_per_head * kItemsPerTask;
      const int64_t count = std::min(kItemsPerTask, p.n.queries - first);
      run_items<Stored>(p, {p.index(image, first, head), p.n.heads, count, copies,
                            padded * static_cast<int64_t>(sizeof(element)), false, image * p.n.queries + first});
    }
  }
  template <typename Stored>
  DINOX_INLINE static void run_items(const Problem<T>& p, const Items<typename Stored::element>& items) {
    if (p.in.references != nullptr)
      forward_items<T, Stored, true>(p, items);
    else
      forward_items<T, Stored, false>(p, items);
  }
};

#undef DINOX_INLINE
#undef DINOX_TARGET
#undef DINOX_VECTOR_BYTES
