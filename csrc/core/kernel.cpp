#include "core/kernel.h"

#include <cstdlib>
#include <map>
#include <string_view>

namespace deem {

static constexpr const char* kIsaNames[kIsaCount] = {"sse4", "avx2", "avx512", "avx512bf16"};

const char* isa_name(int isa) { return kIsaNames[isa]; }

static int detect() {
  int best = 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
  if (best && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd"))
    best = 2;
  if (best == 2 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) best = 3;
  if (const char* asked = std::getenv("DEEM_ISA"))
    for (int i = 0; i <= best; i++)
      if (std::string_view(asked) == kIsaNames[i]) return i;
  return best;
}

int current_isa() {
  static const int isa = detect();
  return isa;
}

void throw_no_kernel(const char* op, Device d) {
  throw NotImplemented(str("[", op, "] has no kernel for device ", name_of(d)));
}

static std::map<std::string_view, SlotEntry>& slots() {
  static auto* map = new std::map<std::string_view, SlotEntry>;  // leaked on purpose: read during static destruction
  return *map;
}

void remember_slot(const SlotEntry& slot) { slots().emplace(slot.op, slot); }

void register_kernel(const char* op, size_t args_size, Device d, void (*f)(const void*)) {
  auto found = slots().find(op);
  check<DeviceError>(found != slots().end(), "a plugin has a kernel for [", op, "], which is no operation here");
  check<DeviceError>(found->second.args_size == args_size, "a plugin's kernel for [", op, "] takes other arguments");
  // Kernel<Args>::fn, whose element type differs in Args alone: all function pointers have one size and form.
  using Cell = void (*)(const void*);
  auto* cells = static_cast<Cell(*)[kIsaCount]>(found->second.cells);
  cells[int(d)][0] = f;
}

}  // namespace deem
