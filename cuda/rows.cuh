// Rows of a matrix, each read by one warp or one block, in packs of V elements (16 bytes where addresses allow, else single
// elements). A thread's first packs stay in its registers, so that rows up to a fixed width are read once; what a row has
// beyond is read again on every pass.
#pragma once
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace deem::cuda {

// WARPS = 1: four rows to a block, each a warp's own; else a block of WARPS warps to a row.
template <int WARPS, int V, int KEPT>
struct RowLayout {
  static constexpr int kV = V, kKept = KEPT;
  static constexpr int kThreads = WARPS * 32;                   // of a row
  static constexpr int kBlock = WARPS == 1 ? 128 : WARPS * 32;  // threads of a block
  static constexpr int kRows = kBlock / kThreads;               // rows a block reads at once
  static constexpr int kKeptPacks = kThreads * KEPT;            // of a row, in registers

  static DEEM_DEVICE int lane() { return int(threadIdx.x) % kThreads; }
  static DEEM_DEVICE int place() { return int(threadIdx.x) / kThreads; }  // which of the block's rows
};

// Calls f(k, pack) for each of this thread's packs: k is its place in registers, or -1 for packs beyond those.
template <class L, class F>
DEEM_DEVICE void for_packs(int packs, F&& f) {
  int pack = L::lane();
#pragma unroll
  for (int k = 0; k < L::kKept; k++, pack += L::kThreads)
    if (pack < packs) f(k, pack);
  [[maybe_unused]] constexpr int kUnroll = L::kV == 1 ? 4 : 1;  // more packs at once would spill beside those kept
#pragma unroll kUnroll
  for (; pack < packs; pack += L::kThreads) f(-1, pack);
}

template <class T, class L>
struct Row {
  const T* data;
  Vec<T, L::kV> kept[L::kKept];

  DEEM_DEVICE Row(const T* row, int packs) : data(row) {
    int pack = L::lane();
#pragma unroll
    for (int k = 0; k < L::kKept; k++, pack += L::kThreads)
      if (pack < packs) kept[k] = load_vec<L::kV>(data + int64_t(pack) * L::kV);
  }
  DEEM_DEVICE void get(int k, int pack, float (&v)[L::kV]) const {
    if (k >= 0) {
#pragma unroll
      for (int i = 0; i < L::kV; i++) v[i] = to_float(kept[k].v[i]);
    } else {
      load_float(data + int64_t(pack) * L::kV, v);
    }
  }
  // f(column, values) for all of the thread's packs.
  template <class F>
  DEEM_DEVICE void each(int packs, F&& f) const {
    for_packs<L>(packs, [&](int k, int pack) {
      float v[L::kV];
      get(k, pack, v);
      f(int64_t(pack) * L::kV, v);
    });
  }
};

template <class L, class T>
DEEM_DEVICE T row_sum(T v) {
  if constexpr (L::kRows > 1) return warp_sum(v);
  else return block_sum<L::kThreads>(v);
}
template <class L>
DEEM_DEVICE float row_max(float v) {
  if constexpr (L::kRows > 1) return warp_max(v);
  else return block_max<L::kThreads>(v);
}

template <class... P>
bool aligned_to(size_t bytes, const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

constexpr int64_t kMaxGrid = (int64_t(1) << 31) - 1;

// Calls f with the layout for rows of T. `aligned`: every pointer is to whole packs of kVecWidth<T>. Also which layout is
// chosen depends on the shape and the alignment alone, and with them the order of sums.
template <class T, class F>
void dispatch_rows(int64_t cols, bool aligned, const char* op, F&& f) {
  check<ValueError>(cols < (int64_t(1) << 31), "[", op, "] rows must be shorter than 2^31 on cuda but have ", cols);
  constexpr int V = kVecWidth<T>;
  if (aligned && cols % V == 0) {
    if (cols <= 64 * V) f(RowLayout<1, V, 2>{});
    else if (cols <= 256 * V) f(RowLayout<4, V, 2>{});
    else f(RowLayout<16, V, 2>{});
  } else if (cols <= 128) {
    f(RowLayout<1, 1, 4>{});
  } else {
    f(RowLayout<8, 1, 4>{});
  }
}

// Rows of x and y of type T, parameters of type P, which is T or float.
template <class F>
void dispatch_pair(DType dtype, DType param, const char* op, F&& f) {
  dispatch(dtype, op, [&]<class T>(T t) {
    if (param == DType::f32) f(t, float{});
    else f(t, t);
  });
}

}  // namespace deem::cuda
