// Matrix product in true f32 (no tensor cores: they would drop 13 bits of the operands). Every thread sums TM x TN elements of c;
// slices of k lie in two buffers of shared memory, k outermost, and the next slice waits in registers while one is multiplied.
#include "cuda/gemm_place.cuh"
#include "cuda/vec.cuh"

namespace deem::cuda {

namespace {

constexpr int kDepth = 16, kThreads = 256, kSide = 16;  // kSide x kSide threads share a tile

// One thread's part in bringing slices of one operand: pieces of four elements.
template <int Rows, bool AlongK>
struct FloatLoader {
  static constexpr int kCount = Rows * kDepth / 4 / kThreads, kChunks = (AlongK ? kDepth : Rows) / 4;
  static constexpr int kStep = kThreads / kChunks;  // lines between a thread's pieces
  static constexpr int kPitch = Rows + 4;           // of shared memory, where stores along k meet half as many banks
  const float* from;
  int64_t stride, rows_left, k_left;
  int line, chunk;
  bool wide;
  Vec<float, 4> held[kCount];

  DEEM_DEVICE FloatLoader(const GemmSide& side, int64_t batch, int64_t row, int64_t rows, int64_t k, int64_t k_end) {
    line = int(threadIdx.x) / kChunks;
    chunk = int(threadIdx.x) % kChunks;
    stride = side.stride;
    wide = side.width == 16;
    const int64_t first_row = row + (AlongK ? line : chunk * 4), first_k = k + (AlongK ? chunk * 4 : line);
    rows_left = rows - first_row;
    k_left = k_end - first_k;
    from = static_cast<const float*>(side.data) + batch * side.step +
           (AlongK ? first_row * stride + first_k : first_k * stride + first_row);
  }

  DEEM_DEVICE void fetch() {
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int64_t lines_left = (AlongK ? rows_left : k_left) - i * kStep;
      const int64_t left = lines_left > 0 ? (AlongK ? k_left : rows_left) : 0;
      const float* source = from + i * kStep * stride;
      if (wide && left > 0) {
        held[i] = load_vec<4>(source);
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++) held[i].v[e] = left > e ? source[e] : 0.0f;
      }
    }
    from += AlongK ? kDepth : kDepth * stride;
    k_left -= kDepth;
  }

  DEEM_DEVICE void put(float* slice) const {
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int at = line + i * kStep;
      if (AlongK) {
#pragma unroll
        for (int e = 0; e < 4; e++) slice[(chunk * 4 + e) * kPitch + at] = held[i].v[e];
      } else {
        store_vec(slice + at * kPitch + chunk * 4, held[i]);
      }
    }
  }
};

template <int M, int N, bool AAlongK, bool BAlongK>
__global__ void __launch_bounds__(kThreads, 2) float_gemm(GemmProblem p) {
  constexpr int TM = M / kSide, TN = N / kSide;
  using LoadA = FloatLoader<M, AAlongK>;
  using LoadB = FloatLoader<N, BAlongK>;
  DEEM_SHARED(float, a_slices, 2 * kDepth * LoadA::kPitch);
  DEEM_SHARED(float, b_slices, 2 * kDepth * LoadB::kPitch);
  const TilePlace place(p, M, N);
  const DepthRange range(p, place.split, kDepth);
  LoadA load_a(p.a, place.batch, place.row, p.m, range.begin, range.end);
  LoadB load_b(p.b, place.batch, place.col, p.n, range.begin, range.end);
  // A warp is 4 x 8 threads: its reads of either operand are one access of shared memory.
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int ty = warp / 2 * 4 + lane / 8, tx = warp % 2 * 8 + lane % 8;
  float sum[TM][TN] = {};
  if (range.slices > 0) {
    load_a.fetch();
    load_b.fetch();
    load_a.put(a_slices);
    load_b.put(b_slices);
  }
  __syncthreads();
  for (int s = 0; s < range.slices; s++) {
    const bool more = s + 1 < range.slices;
    if (more) {
      load_a.fetch();
      load_b.fetch();
    }
    const float* a_slice = a_slices + s % 2 * kDepth * LoadA::kPitch;
    const float* b_slice = b_slices + s % 2 * kDepth * LoadB::kPitch;
#pragma unroll
    for (int k = 0; k < kDepth; k++) {
      Vec<float, 4> a[TM / 4], b[TN / 4];
#pragma unroll
      for (int q = 0; q < TM / 4; q++) a[q] = load_vec<4>(a_slice + k * LoadA::kPitch + q * 64 + ty * 4);
#pragma unroll
      for (int q = 0; q < TN / 4; q++) b[q] = load_vec<4>(b_slice + k * LoadB::kPitch + q * 64 + tx * 4);
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sum[i][j] = fmaf(a[i / 4].v[i % 4], b[j / 4].v[j % 4], sum[i][j]);
    }
    if (more) {
      load_a.put(a_slices + (s + 1) % 2 * kDepth * LoadA::kPitch);
      load_b.put(b_slices + (s + 1) % 2 * kDepth * LoadB::kPitch);
    }
    __syncthreads();
  }

  const bool parts = p.splits > 1;
  float* c = parts ? p.partial + (place.split * p.batch + place.batch) * p.m * p.n
                   : static_cast<float*>(p.c) + place.batch * p.c_step;
  const int64_t stride = parts ? p.n : p.c_stride;
  const bool vector = parts ? p.n % 4 == 0 : p.c_vector;
  const float* bias = parts ? nullptr : static_cast<const float*>(p.bias);
#pragma unroll
  for (int q = 0; q < TN / 4; q++) {
    const int64_t col = place.col + q * 64 + tx * 4, left = p.n - col;
    float add[4];
#pragma unroll
    for (int e = 0; e < 4; e++) add[e] = bias && e < left ? bias[col + e] : 0.0f;
#pragma unroll
    for (int i = 0; i < TM; i++) {
      const int64_t row = place.row + i / 4 * 64 + ty * 4 + i % 4;
      if (row >= p.m) continue;
      Vec<float, 4> out;
#pragma unroll
      for (int e = 0; e < 4; e++) out.v[e] = sum[i][q * 4 + e] + add[e];
      float* to = c + row * stride + col;
      if (vector && left >= 4) {
        store_vec(to, out);
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < left) to[e] = out.v[e];
      }
    }
  }
}

template <int M, int N>
void launch_float(const GemmProblem& p) {
  const dim3 grid(unsigned(p.tiles_m * p.tiles_n * p.batch * p.splits)), block(kThreads);
  if (p.a.along_k) {
    if (p.b.along_k) DEEM_LAUNCH((float_gemm<M, N, true, true>), grid, block, 0, stream(), p);
    else DEEM_LAUNCH((float_gemm<M, N, true, false>), grid, block, 0, stream(), p);
  } else {
    if (p.b.along_k) DEEM_LAUNCH((float_gemm<M, N, false, true>), grid, block, 0, stream(), p);
    else DEEM_LAUNCH((float_gemm<M, N, false, false>), grid, block, 0, stream(), p);
  }
}

}  // namespace

void gemm_f32(GemmProblem p) {
  const int tile = plan_tiles(p, {{128, 128, kDepth}, {64, 64, kDepth}});
  Scratch<float> partial(p.splits > 1 ? p.splits * p.batch * p.m * p.n : 0);
  p.partial = partial.data();
  if (tile == 0) launch_float<128, 128>(p);
  else launch_float<64, 64>(p);
  if (p.splits > 1) sum_splits(p, DType::f32);
}

}  // namespace deem::cuda
