// The columns of a matrix of bf16 in panels, as oneDNN's products read them without a copy of their own.
#pragma once
#include "cpu/gemm.h"

namespace deem {

// Of a panel: columns, and rows, which come in whole blocks of so many; zeros where the matrix has fewer.
constexpr int64_t kPanelColumns = 64, kPanelRows = 32;

// to[panel, row / 2, column, row % 2] = the k x n matrix whose columns `from` holds as lines or across. k and the stride of lines are even.
struct PanelArgs {
  ColumnsOf columns;
  PackSource from;
  int64_t k, n;
  void* to;
};
extern Kernel<PanelArgs> panels_kernel;

inline int64_t panel_numbers(int64_t k, int64_t n) {
  return (k + kPanelRows - 1) / kPanelRows * kPanelRows * ((n + kPanelColumns - 1) / kPanelColumns * kPanelColumns);
}

}  // namespace deem
