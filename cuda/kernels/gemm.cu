// c = a b + bias, batched: who multiplies, how operands lie, in which tiles, and the sum of products that were cut along k.
#include "cuda/gemm.h"

#include <algorithm>

#include "cuda/cublaslt.h"
#include "cuda/device.cuh"
#include "cuda/slot.h"
#include "cuda/vec.cuh"

namespace deem::cuda {

namespace {

constexpr int kSumThreads = 256;

template <class T, class C>
__global__ void __launch_bounds__(kSumThreads) sum_splits_kernel(GemmProblem p) {
  const int64_t count = p.batch * p.m * p.n, i = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= count) return;
  float sum = p.partial[i];
  for (int64_t s = 1; s < p.splits; s++) sum += p.partial[s * count + i];
  const int64_t col = i % p.n, row = i / p.n % p.m, batch = i / (p.n * p.m);
  if (p.bias) sum += to_float(static_cast<const T*>(p.bias)[col]);
  static_cast<C*>(p.c)[batch * p.c_step + row * p.c_stride + col] = from_float<C>(sum);
}

int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// rows: of a, or columns of b. Where both strides are 1 there is one row or one element a row, and the longer way is the line.
GemmSide side_of(const GemmOperand& o, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride, int64_t batch,
                 int64_t element) {
  GemmSide side;
  side.data = o.data;
  side.step = o.step;
  side.along_k = k_stride == 1 && (row_stride != 1 || k >= rows);
  side.stride = side.along_k ? row_stride : k_stride;
  const int64_t length = side.along_k ? k : rows, lines = side.along_k ? rows : k;
  const int64_t bytes = int64_t(reinterpret_cast<uintptr_t>(o.data)) | length * element |
                        (lines > 1 ? side.stride * element : 0) | (batch > 1 ? o.step * element : 0);
  side.width = int(bytes % 16 == 0 ? 16 : bytes % 4 == 0 ? 4 : element);
  return side;
}

GemmProblem problem_of(const GemmArgs& a) {
  const int64_t element = int64_t(size_of(a.dtype)), c_element = int64_t(size_of(a.c_dtype));
  GemmProblem p;
  p.bias = a.bias;
  p.c = a.c;
  p.batch = a.batch;
  p.m = a.a.rows;
  p.n = a.b.cols;
  p.k = a.a.cols;
  p.a = side_of(a.a, p.m, p.k, a.a.row_stride, a.a.col_stride, a.batch, element);
  p.b = side_of(a.b, p.n, p.k, a.b.col_stride, a.b.row_stride, a.batch, element);
  p.c_stride = a.c_row_stride;
  p.c_step = p.m * a.c_row_stride;
  p.c_wide = a.c_dtype == DType::f32;
  p.c_vector = (int64_t(reinterpret_cast<uintptr_t>(a.c)) | p.c_stride * c_element) % 16 == 0;
  return p;
}

void gemm(const GemmArgs& a) {
  // The grid has one dimension: larger batches go in several launches.
  constexpr int64_t kMostItems = 1 << 16;
  if (a.a.rows == 0 || a.b.cols == 0) return;
  for (int64_t at = 0; at < a.batch; at += kMostItems) {
    GemmArgs part = a;
    const int64_t element = int64_t(size_of(a.dtype)), c_element = int64_t(size_of(a.c_dtype));
    part.batch = std::min(kMostItems, a.batch - at);
    part.a.data = static_cast<const char*>(a.a.data) + at * a.a.step * element;
    part.b.data = static_cast<const char*>(a.b.data) + at * a.b.step * element;
    part.c = static_cast<char*>(a.c) + at * a.a.rows * a.c_row_stride * c_element;
    if (cublaslt_gemm(part)) continue;
    const GemmProblem p = problem_of(part);
    switch (a.dtype) {
      case DType::f32: gemm_f32(p); break;
      case DType::bf16: gemm_bf16(p); break;
      case DType::f16: gemm_f16(p); break;
      default: throw_not_float("gemm", a.dtype);
    }
  }
}

}  // namespace

// The largest tile that gives every multiprocessor one and is not mostly edge. Products with fewer tiles than that are cut along k
// into parts of at least four slices.
int plan_tiles(GemmProblem& p, std::initializer_list<GemmTile> tiles) {
  constexpr int64_t kMostParts = 32;
  const int64_t sms = sm_count();
  int index = 0;
  for (const GemmTile& tile : tiles) {
    p.tiles_m = pieces(p.m, tile.m);
    p.tiles_n = pieces(p.n, tile.n);
    const int64_t blocks = p.tiles_m * p.tiles_n * p.batch;
    const bool last = &tile == tiles.end() - 1;
    if (!last && (blocks < sms || p.m <= tile.m / 2 || p.n <= tile.n / 2)) {
      index++;
      continue;
    }
    const int64_t slices = pieces(p.k, tile.depth);
    const int64_t least = pieces(p.k, 1 << 30),
                  parts = std::max(std::min({2 * sms / blocks, slices / 4, kMostParts}), least);
    p.k_split = pieces(slices, std::max<int64_t>(parts, 1)) * tile.depth;
    p.splits = p.k_split ? pieces(p.k, p.k_split) : 1;
    break;
  }
  return index;
}

void sum_splits(const GemmProblem& p, DType dtype) {
  const dim3 grid(unsigned(pieces(p.batch * p.m * p.n, kSumThreads))), block(kSumThreads);
  dispatch(dtype, "gemm", [&]<class T>(T) {
    if (p.c_wide) DEEM_LAUNCH((sum_splits_kernel<T, float>), grid, block, 0, stream(), p);
    else DEEM_LAUNCH((sum_splits_kernel<T, T>), grid, block, 0, stream(), p);
  });
}

DEEM_CUDA_KERNEL("gemm", gemm);

}  // namespace deem::cuda
