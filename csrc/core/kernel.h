// Kernel slots: one constinit table of function pointers per operation, filled by the last line of each kernel's file.
// No enum, no switch, no stubs: an empty slot is a missing kernel and says so.
#pragma once
#include "core/tensor.h"

namespace deem {

constexpr int kIsaCount = 4;  // sse4, avx2, avx512, avx512bf16; kernels outside csrc/cpu/kernels register at 0

int current_isa();  // best one this machine has, or what DEEM_ISA asks for
const char* isa_name(int isa);
[[noreturn]] void throw_no_kernel(const char* op, Device d);

// Slots by the name of their operation, so that a plugin's kernels find theirs. Every slot with a CPU kernel is known.
struct SlotEntry {
  const char* op;
  void* cells;       // fn below, a table of function pointers
  size_t args_size;  // sizeof(Args): a plugin built from other sources is refused
};
void remember_slot(const SlotEntry& slot);  // of any thread's static initialisers; again for the same one is nothing
// Throws DeviceError where no slot of that name takes arguments of that size.
void register_kernel(const char* op, size_t args_size, Device d, void (*f)(const void*));

template <class Args>
struct Kernel {
  const char* op;
  void (*fn[int(Device::count)][kIsaCount])(const Args&) = {};

  void operator()(Device d, const Args& args) const {
    for (int isa = d == Device::cpu ? current_isa() : kIsaCount - 1; isa >= 0; isa--)
      if (auto* f = fn[int(d)][isa]) return f(args);
    throw_no_kernel(op, d);
  }
};

#ifndef DEEM_ISA_INDEX
#define DEEM_ISA_INDEX 0
#endif

// static const Register r{layer_norm_kernel, Device::cpu, layer_norm};
struct Register {
  template <class Args>
  DEEM_INLINE Register(Kernel<Args>& slot, Device d, void (*f)(const Args&)) {
    slot.fn[int(d)][DEEM_ISA_INDEX] = f;
    remember_slot({slot.op, slot.fn, sizeof(Args)});
  }
};

}  // namespace deem
