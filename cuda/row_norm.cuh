// layer_norm and rms_norm: the second is the first without mean and bias. Variance in two passes over registers; the backward
// pass reads dy and x once for dx, dw and db where rows fit in registers.
#pragma once
#include <algorithm>

#include "cuda/partials.cuh"
#include "cuda/rows.cuh"

namespace deem::cuda {

struct RowNorm {
  const void *x, *w, *b;
  void* y;
  float *mean, *rstd;  // mean and b are null for rms_norm
  int64_t rows;
  int cols;
  float eps;
};

struct RowNormBackward {
  const void *dy, *x, *w;
  const float *mean, *rstd;
  void* dx;         // null where not needed
  float* partials;  // [1 or 2, chunks, cols]: dw, then db, of each run of rows; null where not needed
  int64_t rows, chunks;
  int cols;
};

template <bool kCentred, class T, class P, class L>
__global__ void __launch_bounds__(L::kBlock) row_norm_kernel(RowNorm a) {
  constexpr int V = L::kV;
  const int packs = a.cols / V;
  const P *w = static_cast<const P*>(a.w), *b = static_cast<const P*>(a.b);
  for (int64_t row = int64_t(blockIdx.x) * L::kRows + L::place(); row < a.rows; row += int64_t(gridDim.x) * L::kRows) {
    const Row<T, L> x(static_cast<const T*>(a.x) + row * a.cols, packs);
    T* y = static_cast<T*>(a.y) + row * a.cols;
    float mean = 0, square = 0;
    if constexpr (kCentred) {
      x.each(packs, [&](int64_t, const float(&v)[V]) {
#pragma unroll
        for (int i = 0; i < V; i++) mean += v[i];
      });
      mean = row_sum<L>(mean) / float(a.cols);
    }
    x.each(packs, [&](int64_t, const float(&v)[V]) {
#pragma unroll
      for (int i = 0; i < V; i++) square += (v[i] - mean) * (v[i] - mean);
    });
    const float rstd = 1.0f / sqrtf(row_sum<L>(square) / float(a.cols) + a.eps);
    x.each(packs, [&](int64_t c, float(&v)[V]) {
      float weight[V], bias[V];
      load_float(w + c, weight);
      if constexpr (kCentred) load_float(b + c, bias);
#pragma unroll
      for (int i = 0; i < V; i++) v[i] = (v[i] - mean) * rstd * weight[i] + (kCentred ? bias[i] : 0.0f);
      store_float(y + c, v);
    });
    if (L::lane() == 0) {
      if constexpr (kCentred) a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
  }
}

// Writes to[0..cols) = the sum of the block's warps' own sums, in order of the warps.
template <class L>
DEEM_DEVICE void write_column_sums(const float (&sums)[L::kKept][L::kV], int packs, float* to) {
  constexpr int V = L::kV, kColumns = L::kRows > 1 ? L::kKeptPacks * V : 1;
  if constexpr (L::kRows > 1) {
    DEEM_SHARED(float, shared, L::kRows* kColumns);
    for_packs<L>(packs, [&](int k, int pack) {
      if (k < 0) return;
#pragma unroll
      for (int i = 0; i < V; i++) shared[L::place() * kColumns + pack * V + i] = sums[k][i];
    });
    __syncthreads();
    for (int c = int(threadIdx.x); c < packs * V; c += L::kBlock) {
      float sum = shared[c];
      for (int r = 1; r < L::kRows; r++) sum += shared[r * kColumns + c];
      to[c] = sum;
    }
    __syncthreads();
  } else {
    for_packs<L>(packs, [&](int k, int pack) {
      if (k >= 0) store_float(to + int64_t(pack) * V, sums[k]);
    });
  }
}

// dx = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * w, without mean(g) for rms_norm. A block takes a run of
// rows, and keeps the sums of its columns in registers.
template <bool kCentred, class T, class P, class L>
__global__ void __launch_bounds__(L::kBlock, L::kBlock == 128 ? 4 : 1) row_norm_backward_kernel(RowNormBackward a) {
  constexpr int V = L::kV;
  const int packs = a.cols / V;
  const P* w = static_cast<const P*>(a.w);
  float dw[L::kKept][V] = {}, db[L::kKept][V] = {};
  const int64_t chunk = blockIdx.x, end = a.rows * (chunk + 1) / a.chunks;
  for (int64_t row = a.rows * chunk / a.chunks + L::place(); row < end; row += L::kRows) {
    const Row<T, L> x(static_cast<const T*>(a.x) + row * a.cols, packs);
    const Row<T, L> dy(static_cast<const T*>(a.dy) + row * a.cols, packs);
    const float mean = kCentred ? a.mean[row] : 0.0f, rstd = a.rstd[row];
    float2 sums = make_float2(0, 0);
    for_packs<L>(packs, [&](int k, int pack) {
      float xv[V], g[V], weight[V];
      x.get(k, pack, xv);
      dy.get(k, pack, g);
      load_float(w + int64_t(pack) * V, weight);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float xhat = (xv[i] - mean) * rstd, gw = g[i] * weight[i];
        sums.x += gw;
        sums.y += gw * xhat;
        if (k >= 0) {
          dw[k][i] += g[i] * xhat;
          if constexpr (kCentred) db[k][i] += g[i];
        }
      }
    });
    if (!a.dx) continue;
    float mean_g = 0, mean_gx;
    if constexpr (kCentred) {
      sums = row_sum<L>(sums);
      mean_g = sums.x / float(a.cols);
      mean_gx = sums.y / float(a.cols);
    } else {
      mean_gx = row_sum<L>(sums.y) / float(a.cols);
    }
    T* dx = static_cast<T*>(a.dx) + row * a.cols;
    for_packs<L>(packs, [&](int k, int pack) {
      float xv[V], g[V], weight[V];
      x.get(k, pack, xv);
      dy.get(k, pack, g);
      load_float(w + int64_t(pack) * V, weight);
#pragma unroll
      for (int i = 0; i < V; i++) {
        const float xhat = (xv[i] - mean) * rstd;
        g[i] = rstd * (g[i] * weight[i] - mean_g - xhat * mean_gx);
      }
      store_float(dx + int64_t(pack) * V, g);
    });
  }
  if (!a.partials) return;
  write_column_sums<L>(dw, packs, a.partials + chunk * a.cols);
  if constexpr (kCentred) write_column_sums<L>(db, packs, a.partials + (a.chunks + chunk) * a.cols);
}

// The sums of a run of rows for rows too wide for registers: a thread to a column.
template <bool kCentred, class T>
__global__ void __launch_bounds__(128) row_norm_params_kernel(RowNormBackward a) {
  const int64_t chunk = blockIdx.y, c = int64_t(blockIdx.x) * 128 + threadIdx.x;
  if (c >= a.cols) return;
  const T *x = static_cast<const T*>(a.x) + c, *dy = static_cast<const T*>(a.dy) + c;
  float dw = 0, db = 0;
#pragma unroll 4
  for (int64_t r = a.rows * chunk / a.chunks; r < a.rows * (chunk + 1) / a.chunks; r++) {
    const float g = to_float(dy[r * a.cols]), xv = to_float(x[r * a.cols]);
    dw += g * ((kCentred ? xv - a.mean[r] : xv) * a.rstd[r]);
    db += g;
  }
  a.partials[chunk * a.cols + c] = dw;
  if constexpr (kCentred) a.partials[(a.chunks + chunk) * a.cols + c] = db;
}

template <bool kCentred>
void launch_row_norm(const char* op, RowNorm a, int64_t cols, DType dtype, DType param_dtype) {
  if (a.rows == 0) return;
  a.cols = int(cols);
  dispatch_pair(dtype, param_dtype, op, [&]<class T, class P>(T, P) {
    const bool aligned = aligned_to(16, a.x, a.y) && aligned_to(kVecWidth<T> * sizeof(P), a.w, a.b);
    dispatch_rows<T>(cols, aligned, op, [&]<class L>(L) {
      const int64_t blocks = std::min((a.rows + L::kRows - 1) / L::kRows, kMaxGrid);
      DEEM_LAUNCH((row_norm_kernel<kCentred, T, P, L>), dim3(unsigned(blocks)), dim3(L::kBlock), 0, stream(), a);
    });
  });
}

// Runs of rows: enough blocks to fill a GPU, few enough that their sums cost little beside the rows.
constexpr int64_t kMaxChunks = 512, kChunkRows = 4;

template <bool kCentred>
void launch_row_norm_backward(const char* op, RowNormBackward a, int64_t cols, float* dw, float* db, DType dtype,
                              DType param_dtype) {
  a.cols = int(cols);
  dispatch_pair(dtype, param_dtype, op, [&]<class T, class P>(T, P) {
    const bool aligned = aligned_to(16, a.x, a.dy, a.dx) && aligned_to(kVecWidth<T> * sizeof(P), a.w);
    dispatch_rows<T>(cols, aligned, op, [&]<class L>(L) {
      const int64_t groups = (a.rows + L::kRows - 1) / L::kRows;
      const int64_t chunks = std::min((groups + kChunkRows - 1) / kChunkRows, kMaxChunks);
      Scratch<float> partials(dw ? chunks * cols * (kCentred ? 2 : 1) : 0);
      const bool wide = cols / L::kV > L::kKeptPacks;
      if (groups > 0 && (a.dx || !wide)) {
        RowNormBackward k = a;
        const bool fused = dw && !wide;
        k.partials = fused ? partials.data() : nullptr;
        k.chunks = fused ? chunks : std::min(groups, kMaxGrid);
        DEEM_LAUNCH((row_norm_backward_kernel<kCentred, T, P, L>), dim3(unsigned(k.chunks)), dim3(L::kBlock), 0,
                    stream(), k);
      }
      if (!dw) return;
      if (groups > 0 && wide) {
        RowNormBackward k = a;
        k.partials = partials.data();
        k.chunks = chunks;
        DEEM_LAUNCH((row_norm_params_kernel<kCentred, T>), dim3(unsigned((cols + 127) / 128), unsigned(chunks)),
                    dim3(128), 0, stream(), k);
      }
      sum_partials(partials.data(), chunks, cols, dw, db);
    });
  });
}

}  // namespace deem::cuda
