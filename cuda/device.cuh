// Device code for two compilers: nvcc, and a host compiler with the emulator (cuda/emu) in place of the GPU. Every .cu includes
// this first. Shared memory and launches go through the macros below, so that one source serves both.
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/runtime.h"

// T name[count] in shared memory, aligned to 16 bytes as vector accesses, cp.async and ldmatrix need it.
#define DEEM_SHARED(T, name, ...) __shared__ alignas(16) T name[__VA_ARGS__]
// The launch's dynamic shared memory as T* name, aligned to 128 bytes.
#define DEEM_SHARED_DYN(T, name)                                    \
  extern __shared__ __align__(128) unsigned char deem_shared_dyn[]; \
  T* const name = reinterpret_cast<T*>(deem_shared_dyn)

namespace deem::cuda {

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream,
            A&&... args) {
  constexpr size_t kUnasked = 48 << 10;  // bytes of dynamic shared memory any kernel may have
  if (smem > kUnasked)
    cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(smem)),
               name);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = stream;
  cuda_check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), name);
}

}  // namespace deem::cuda
#else
#include "cuda/emu/emu.h"
#include "cuda/runtime.h"
#endif

#define DEEM_DEVICE __device__ __forceinline__

namespace deem::cuda {

// The emulator ends a kernel that gives a vector access an address out of line; the GPU does so by itself.
DEEM_DEVICE void check_aligned([[maybe_unused]] const void* p, [[maybe_unused]] size_t bytes) {
#ifndef __CUDACC__
  if (reinterpret_cast<uintptr_t>(p) % bytes) emu::fault("a vector access at an address not aligned to it");
#endif
}

}  // namespace deem::cuda

// DEEM_LAUNCH((layer_norm_kernel<T, P>), dim3(rows), dim3(128), 0, stream(), x, y); throws what the launch reports.
#define DEEM_LAUNCH(kernel, grid, block, smem_bytes, stream, ...) \
  ::deem::cuda::launch(#kernel, kernel, grid, block, smem_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
