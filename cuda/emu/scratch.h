// Scratch memory comes from blocks that are used again and are larger than what was asked; in the emulated build their contents turn
// to NaN in between, and a sanitizer sees the end of what was asked. Both in stream order.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

namespace deem::emu {

void lend(void* block, size_t bytes, cudaStream_t stream);
void take_back(void* block, cudaStream_t stream) noexcept;

}  // namespace deem::emu
