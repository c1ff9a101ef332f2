// Runs the CUDA kernels of csrc/cuda on the CPU, one block after the other, its threads as fibers. For tests only.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda/kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace dinox {
alignas(16) unsigned char dinox_shared_memory[256 * 1024];
}

namespace emulation {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32;

// A fiber starts by a ucontext; from then on jumps switch, for they make no system calls.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started = false;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool done = true;
};

// Where threads wait for each other. Results have two places in turn: who is late still reads those of the turn before.
struct Meeting {
  unsigned arrived = 0, turn = 0;
  uint64_t given[kWarp], results[2][kWarp];
};

std::vector<Fiber> fibers;
std::vector<Meeting> warps;
Meeting block;
jmp_buf scheduler;
unsigned current;
bool progress;
void (*call)(void*);
void* closure;

#if defined(__SANITIZE_ADDRESS__)
void* fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
#endif

void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* own = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &own, scheduler_stack, scheduler_stack_bytes);
#endif
  if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (void)last;
}

void body() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  call(closure);
  fibers[current].done = progress = true;
  to_scheduler(true);
}

void resume(unsigned thread) {
  current = thread;
  threadIdx = dim3(thread, 0, 0);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack, fibers[thread].stack.get(), kStackBytes);
#endif
  if (_setjmp(scheduler) == 0) {
    if (fibers[thread].started) _longjmp(fibers[thread].place, 1);
    fibers[thread].started = true;
    setcontext(&fibers[thread].context);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void meet(Meeting& meeting, unsigned threads) {
  const unsigned turn = meeting.turn;
  if (++meeting.arrived == threads) {
    std::memcpy(meeting.results[turn % 2], meeting.given, sizeof(meeting.given));
    meeting.arrived = 0;
    ++meeting.turn;
    progress = true;
    return;
  }
  while (meeting.turn == turn) {
    to_scheduler(false);
    threadIdx = dim3(current, 0, 0);
  }
}

// Each thread of a warp until it waits; returns how many have ended.
unsigned run_warp(unsigned warp, bool backwards) {
  unsigned ended = 0;
  for (unsigned i = 0; i < kWarp; ++i) {
    const unsigned thread = warp * kWarp + (backwards ? kWarp - 1 - i : i);
    if (fibers[thread].done) continue;
    resume(thread);
    ended += fibers[thread].done;
  }
  return ended;
}

void run_block(unsigned threads, size_t shared_bytes) {
  using dinox::dinox_shared_memory;
  if (shared_bytes > sizeof(dinox_shared_memory)) std::abort();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(dinox_shared_memory, sizeof(dinox_shared_memory));
  __asan_poison_memory_region(dinox_shared_memory + shared_bytes, sizeof(dinox_shared_memory) - shared_bytes);
#endif
  std::memset(dinox_shared_memory, 0xff, shared_bytes);  // NaN
  block = {};
  warps.assign(threads / kWarp, Meeting{});
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
    fiber.done = fiber.started = false;
  }
  // A warp runs until it waits for other warps: as far ahead of them as it can get, if a barrier is missing.
  for (unsigned left = threads, round = 0; left > 0; ++round) {
    bool any_progress = false;
    for (unsigned i = 0; i < warps.size(); ++i) {
      const unsigned warp = round % 2 ? warps.size() - 1 - i : i;  // no order may matter
      do {
        progress = false;
        left -= run_warp(warp, round % 2);
        any_progress = any_progress || progress;
      } while (progress);
    }
    if (!any_progress) {
      std::fprintf(stderr, "block (%u, %u, %u): threads wait for threads that do not come\n", blockIdx.x, blockIdx.y,
                   blockIdx.z);
      std::abort();
    }
  }
}

}  // namespace

void run(const dim3& grid, unsigned threads, size_t shared_bytes, void (*kernel)(void*), void* arguments) {
  if (threads % kWarp != 0 || grid.y > 65535 || grid.z > 65535) std::abort();
  call = kernel;
  closure = arguments;
  gridDim = grid;
  blockDim = dim3(threads);
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(threads, shared_bytes);
      }
}

uint64_t exchange(uint64_t bits, unsigned from) {
  Meeting& warp = warps[current / kWarp];
  const unsigned turn = warp.turn;
  warp.given[current % kWarp] = bits;
  meet(warp, kWarp);
  return warp.results[turn % 2][from];
}

void barrier() { meet(block, blockDim.x); }

}  // namespace emulation

// ---------------------------------------------------------------- what test_cuda_emulation.py calls

using namespace dinox;

// Tensors as in Problem; of all of them those that the operation needs.
struct Tensors {
  const void *value, *pairs, *scalars, *references;
  void* output;
  const void* grad_output;
  void *grad_value, *grad_pairs, *grad_scalars, *grad_references, *cells, *records;
  const void *order, *starts;
};

// sizes: those of Sizes in order; shapes: height and width of each level; types: of value, pairs, scalars.
// operation 0: forward, 1: backward, 2: the sums of sorted records. Returns what was planned for 1: rows in shared
// memory.
extern "C" int64_t emulate(int operation, const int64_t* sizes, const int64_t* shapes, const int* types,
                           int reference_size, int multiprocessors, int64_t shared_bytes, const Tensors* tensors) {
  const Sizes n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  std::vector<Level> levels;
  int32_t start = 0, cells = 0;
  for (int64_t l = 0; l < n.levels; ++l) {
    const auto height = static_cast<int32_t>(shapes[2 * l]), width = static_cast<int32_t>(shapes[2 * l + 1]);
    levels.push_back({height, width, start});
    start += height * width;
    cells += (height + 1) * (width + 1);
  }
  const auto type = static_cast<Number>(types[0]);
  const Variant variant = choose_variant(n, type);
  const Device device{multiprocessors, shared_bytes};
  const Tensors& t = *tensors;
  Problem p = make_problem(n, levels, type);
  p.value = t.value;
  p.in = {t.pairs,      t.scalars,     static_cast<Number>(types[1]), static_cast<Number>(types[2]),
          t.references, reference_size};
  p.output = t.output;
  p.grad.output = t.grad_output;
  p.grad.value = t.grad_value;
  p.grad.pairs = t.grad_pairs;
  p.grad.scalars = t.grad_scalars;
  p.grad.references = t.grad_references;
  p.grad.cells = static_cast<int32_t*>(t.cells);
  p.grad.records = t.records;
  p.grad.cells_per_head = cells;
  if (operation == 0) return launch_forward(p, variant, type, device, nullptr);
  if (operation == 2) {
    const Ordered ordered{static_cast<const int64_t*>(t.order), static_cast<const int32_t*>(t.starts), t.grad_value};
    return launch_ordered(p, ordered, variant, type, nullptr);
  }
  launch_backward(p, variant, type, device, nullptr);
  Launch launch;
  return plan_shared_backward(p, variant, device, launch) ? p.grad.shared_rows : 0;
}

// ---------------------------------------------------------------- index arithmetic

extern "C" int64_t emulate_index_of(int32_t image, int32_t rows, int32_t row, int32_t heads, int32_t head) {
  return index_of(image, rows, row, heads, head);
}

extern "C" int64_t emulate_offset_of(int32_t token, int32_t row_bytes, int64_t part, int wide) {
  return wide ? offset_of<int64_t>(token, row_bytes, part)
              : static_cast<int64_t>(offset_of<uint32_t>(token, row_bytes, static_cast<uint32_t>(part)));
}

extern "C" int32_t emulate_divide(int32_t i, int32_t divisor) { return Divider::by(divisor)(i); }
