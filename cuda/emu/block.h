// Between the parts of the emulator: running a grid.
#pragma once
#include <string>

#include "cuda/emu/emu.h"

namespace deem::emu {

struct Grid {
  std::string name;
  dim3 grid, block;
  size_t smem;        // dynamic, bytes
  size_t smem_limit;  // static and dynamic, bytes; what the device gives one block
  std::function<void()> body;
};
// All blocks, one after another; false where one of them ended in a fault. One caller at a time.
bool run_grid(const Grid& grid);

void forget_errors();

constexpr size_t kStaticShared = 48 << 10;  // bytes a kernel may declare

}  // namespace deem::emu
