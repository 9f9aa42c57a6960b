// The GPU as a host compiler sees it: what CUDA C++ builds into the language, for code that includes cuda/device.cuh. NVIDIA's own
// headers give the types. Each CUDA thread is a fiber; one block runs at a time, and the threads of a block change places only
// where they wait, in an order that EMU_SEED decides (0: the order of their numbers). cuda/emu/README.md says what is checked.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>

#include "cuda/runtime.h"

#define __launch_bounds__(...)

namespace deem::emu {

using Where = std::source_location;

// Of the block that runs and of its thread whose turn it is.
struct Indices {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Indices now;

// Ends the kernel with an error that the next call of the runtime returns: cudaErrorLaunchFailure, with this text.
[[noreturn]] void fault(std::string text);

// Waits for all threads of the block; returns the sum of their `value`.
int barrier(const Where& where, int value = 0);

constexpr int kWarp = 32;
// Inputs and outputs of the lanes, on their own stacks; null for lanes outside of the mask.
struct Lanes {
  const void* in[kWarp];
  void* out[kWarp];
};
using WarpOp = void (*)(const Lanes&, uint32_t mask);
// Waits for all lanes of the mask; the last one to come computes what all get. `fence`: memory is ordered too.
void collective(uint32_t mask, WarpOp op, const void* in, void* out, bool fence, const Where& where);
uint32_t live_lanes();

// The block's array of the declaration that `site` stands for, filled with 0xFF (NaN) when the block begins to use it.
void* shared_array(const void* site, size_t bytes, const char* name);
void* shared_dynamic();

// Orders what the thread wrote before what others read after a fence of theirs.
void fence();

cudaError_t launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
                   std::function<void()> body);

// For tests: the schedule of what runs from now on; the last fault's text (empty: none) and forgetting it.
void set_seed(uint32_t seed);
uint32_t seed();
std::string last_fault();
void clear_fault();

}  // namespace deem::emu

#define DEEM_SHARED(T, name, ...)                       \
  static char name##_site;                              \
  T(&name)                                              \
  [__VA_ARGS__] = *reinterpret_cast<T(*)[__VA_ARGS__]>( \
      ::deem::emu::shared_array(&name##_site, sizeof(T) * size_t(__VA_ARGS__), #name))
#define DEEM_SHARED_DYN(T, name) T* const name = static_cast<T*>(::deem::emu::shared_dynamic())

#define threadIdx (::deem::emu::now.thread)
#define blockIdx (::deem::emu::now.block)
#define blockDim (::deem::emu::now.block_size)
#define gridDim (::deem::emu::now.grid_size)

#include "cuda/emu/intrinsics.h"

namespace deem::cuda {

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
            A&&... args) {
  const auto* key = reinterpret_cast<const void*>(kernel);
  constexpr size_t kUnasked = 48 << 10;
  if (smem > kUnasked)
    cuda_check(cudaFuncSetAttribute(key, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem)), name);
  cuda_check(emu::launch(name, key, grid, block, smem, stream,
                         [kernel, given = std::tuple<P...>(static_cast<P>(args)...)] { std::apply(kernel, given); }),
             name);
}

}  // namespace deem::cuda
