#include "cpu/panels.h"

#include "cpu/kernels/gemm_pack.h"

#if DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

static void panels(const PanelArgs& a) {
  constexpr int64_t kRun = 256;  // pairs of a task, whole blocks of them
  const bool by_line = a.columns == ColumnsOf::lines;
  const Pack pack = by_line ? pack_lines<float, kPanelColumns> : pack_row_pairs<kPanelColumns>;
  PackSource from = a.from;
  if (by_line) from.stride /= 2;
  const int64_t pairs = a.k / 2, room = ceil_div(a.k, kPanelRows) * kPanelRows / 2, runs = ceil_div(room, kRun);
  parallel_for(ceil_div(a.n, kPanelColumns) * runs, kRun * kPanelColumns, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / runs * kPanelColumns, at = i % runs * kRun, length = min(kRun, pairs - at);
      float* to = (float*)a.to + (i / runs * room + at) * kPanelColumns;
      pack(from, kPanelColumns, first, min(kPanelColumns, a.n - first), at, length, to, 0);
      if (at + length == pairs) clear(to + length * kPanelColumns, (room - pairs) * kPanelColumns);
    }
  });
}

static const Register r{panels_kernel, Device::cpu, panels};

}  // namespace deem::DEEM_ISA
#endif
