// Matrix product in true f32 (no tensor cores: they would drop 13 bits of the operands). Every thread sums TM x TN elements of c.
// Slices of k lie in a ring of cp.async stages in shared memory, k outermost, whichever way the operands lie: elements of lines along
// k are copied one by one, so that no register waits for them.
#include "cuda/gemm_place.cuh"
#include "cuda/ptx.cuh"
#include "cuda/vec.cuh"

namespace deem::cuda {

namespace {

constexpr int kThreads = 128, kStages = 4;

// One thread's part in bringing slices of one operand: elements along k, or pieces of four rows.
template <int Rows, int Depth, bool AlongK>
struct FloatLoader {
  static constexpr int kPiece = AlongK ? 1 : 4, kLine = (AlongK ? Depth : Rows) / kPiece;
  static constexpr int kStep = kThreads / kLine,
                       kCount = Rows * Depth / kPiece / kThreads;  // kStep: lines between pieces
  // The pitch of shared memory puts what a warp writes on different banks: 8 of k times 4 rows.
  static constexpr int kPitch = Rows + 4, kStage = Depth * kPitch;
  static_assert(kThreads % kLine == 0 && kCount * kPiece * kThreads == Rows * Depth);
  const float *base, *from;
  int64_t stride;
  int rows_left, k_left;  // from this thread's first element to the end
  int to;
  bool wide;

  DEEM_DEVICE FloatLoader(const GemmSide& side, int64_t batch, int64_t row, int64_t rows, int64_t k, int64_t k_end) {
    const int line = int(threadIdx.x) / kLine, at = int(threadIdx.x) % kLine * kPiece;
    stride = side.stride;
    wide = side.width == 16;
    to = AlongK ? at * kPitch + line : line * kPitch + at;
    const int64_t first_row = row + (AlongK ? line : at), first_k = k + (AlongK ? at : line);
    rows_left = clamp_left(rows - first_row);
    k_left = int(k_end - first_k);
    base = static_cast<const float*>(side.data) + batch * side.step;
    from = base + (AlongK ? first_row * stride + first_k : first_k * stride + first_row);
  }

  DEEM_DEVICE void load(float* stage) {
#pragma unroll
    for (int i = 0; i < kCount; i++) {
      const int lines_left = (AlongK ? rows_left : k_left) - i * kStep;
      const int left = lines_left > 0 ? (AlongK ? k_left : rows_left) : 0;
      const float* source = left > 0 ? from + int64_t(i) * kStep * stride : base;
      float* target = stage + to + i * kStep * (AlongK ? 1 : kPitch);
      if (AlongK) {
        cp_async_4(target, source, left > 0);
      } else if (wide) {
        cp_async_16(target, source, left > 0);
      } else {
#pragma unroll
        for (int e = 0; e < 4; e++) cp_async_4(target + e, left > e ? source + e : base, left > e);
      }
    }
    from += AlongK ? Depth : Depth * stride;
    k_left -= Depth;
  }
};

template <int M, int N, int TM, int TN, int Depth, bool AAlongK, bool BAlongK>
__global__ void __launch_bounds__(kThreads, 3) float_gemm(GemmProblem p) {
  constexpr int kDown = M / TM, kAcross = N / TN;  // threads
  static_assert(kDown * kAcross == kThreads);
  using LoadA = FloatLoader<M, Depth, AAlongK>;
  using LoadB = FloatLoader<N, Depth, BAlongK>;
  DEEM_SHARED(float, a_ring, kStages* LoadA::kStage);
  DEEM_SHARED(float, b_ring, kStages* LoadB::kStage);
  const TilePlace place(p, M, N);
  const DepthRange range(p, place.split, Depth);
  LoadA load_a(p.a, place.batch, place.row, p.m, range.begin, range.end);
  LoadB load_b(p.b, place.batch, place.col, p.n, range.begin, range.end);
  auto bring = [&](int slice) {
    if (slice < range.slices) {
      load_a.load(a_ring + slice % kStages * LoadA::kStage);
      load_b.load(b_ring + slice % kStages * LoadB::kStage);
    }
    cp_async_commit();  // an empty group at the end keeps the count of groups that are waited for
  };
  for (int s = 0; s < kStages - 1; s++) bring(s);
  // A warp is 4 x 8 threads: its reads of either operand are one access of shared memory.
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int ty = warp / (kAcross / 8) * 4 + lane / 8, tx = warp % (kAcross / 8) * 8 + lane % 8;
  float sum[TM][TN] = {};
  for (int s = 0; s < range.slices; s++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // slice s is there for all, and nobody reads the stage that is filled next
    bring(s + kStages - 1);
    const float* a_slice = a_ring + s % kStages * LoadA::kStage;
    const float* b_slice = b_ring + s % kStages * LoadB::kStage;
#pragma unroll
    for (int k = 0; k < Depth; k++) {
      Vec<float, 4> a[TM / 4], b[TN / 4];
#pragma unroll
      for (int q = 0; q < TM / 4; q++) a[q] = load_vec<4>(a_slice + k * LoadA::kPitch + (q * kDown + ty) * 4);
#pragma unroll
      for (int q = 0; q < TN / 4; q++) b[q] = load_vec<4>(b_slice + k * LoadB::kPitch + (q * kAcross + tx) * 4);
#pragma unroll
      for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) sum[i][j] = fmaf(a[i / 4].v[i % 4], b[j / 4].v[j % 4], sum[i][j]);
    }
  }
  cp_async_wait<0>();

  const bool parts = p.splits > 1;
  float* c = parts ? p.partial + (place.split * p.batch + place.batch) * p.m * p.n
                   : static_cast<float*>(p.c) + place.batch * p.c_step;
  const int64_t stride = parts ? p.n : p.c_stride;
  const bool vector = parts ? p.n % 4 == 0 : p.c_vector;
  const float* bias = parts ? nullptr : static_cast<const float*>(p.bias);
#pragma unroll
  for (int q = 0; q < TN / 4; q++) {
    const int64_t col = place.col + (q * kAcross + tx) * 4, left = p.n - col;
    float add[4];
#pragma unroll
    for (int e = 0; e < 4; e++) add[e] = bias && e < left ? bias[col + e] : 0.0f;
#pragma unroll
    for (int i = 0; i < TM; i++) {
      const int64_t row = place.row + (i / 4 * kDown + ty) * 4 + i % 4;
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

template <int M, int N, int TM, int TN, int Depth>
void launch_float(const GemmProblem& p) {
  const dim3 grid(unsigned(p.tiles_m * p.tiles_n * p.batch * p.splits)), block(kThreads);
  if (p.a.along_k) {
    if (p.b.along_k) DEEM_LAUNCH((float_gemm<M, N, TM, TN, Depth, true, true>), grid, block, 0, stream(), p);
    else DEEM_LAUNCH((float_gemm<M, N, TM, TN, Depth, true, false>), grid, block, 0, stream(), p);
  } else {
    if (p.b.along_k) DEEM_LAUNCH((float_gemm<M, N, TM, TN, Depth, false, true>), grid, block, 0, stream(), p);
    else DEEM_LAUNCH((float_gemm<M, N, TM, TN, Depth, false, false>), grid, block, 0, stream(), p);
  }
}

}  // namespace

void gemm_f32(GemmProblem p) {
  const int tile = plan_tiles(p, {{128, 64, 8}, {64, 64, 16}});
  Scratch<float> partial(p.splits > 1 ? p.splits * p.batch * p.m * p.n : 0);
  p.partial = partial.data();
  if (tile == 0) launch_float<128, 64, 8, 8, 8>(p);
  else launch_float<64, 64, 8, 4, 16>(p);
  if (p.splits > 1) sum_splits(p, DType::f32);
}

}  // namespace deem::cuda
