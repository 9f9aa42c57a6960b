#include "cuda/kernels/attention_decode.cuh"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/kernels/attention_simt.cuh"

#include "cuda/slot.h"

namespace deem::cuda {

// Columns of a head that lanes of 16 bytes cover, at most as many as a block has threads.
template <class T>
static bool is_decode(const AttentionProblem& p) {
  return p.tq <= kDecodeMost && p.dim <= kDecodeThreads * kVecWidth<T>;
}

template <class T, int ROWS>
static void decode_rows(const AttentionArgs& a) {
  const AttentionProblem& p = a.p;
  const int64_t rows = p.heads / p.kv_heads * p.tq, pairs = p.batches * p.kv_heads, groups = (rows + ROWS - 1) / ROWS;
  const int chunks = int((p.dim + kVecWidth<T> - 1) / kVecWidth<T>);
  int lanes = 1;
  while (lanes < chunks && lanes < 32) lanes *= 2;
  int64_t count = kDecodeBlocks / (pairs * groups), most = (p.tk + kDecodePart - 1) / kDecodePart;
  count = count < 1 ? 1 : count > most ? most : count;

  Scratch<float> scratch(pairs * rows * count * (p.dim + 2));
  const DecodeParts parts{scratch.data(), int(count)};
  const bool vectors = aligned_rows(p.k, p.dim, sizeof(T)) && aligned_rows(p.v, p.dim, sizeof(T));
  DEEM_LAUNCH((attention_decode<T, ROWS>), dim3(unsigned(pairs * groups * count)), dim3(kDecodeThreads),
              sizeof(float) * ROWS * chunks * kVecWidth<T>, stream(), a, int(groups), lanes, vectors, parts);
  DEEM_LAUNCH((merge_parts<T>), dim3(unsigned(pairs * rows)), dim3(kDecodeThreads), sizeof(float) * 4 * p.dim, stream(),
              a, parts);
}

template <class T>
static void decode(const AttentionArgs& a) {
  const int64_t rows = a.p.heads / a.p.kv_heads * a.p.tq;
  if (rows == 1) decode_rows<T, 1>(a);
  else if (rows <= 2) decode_rows<T, 2>(a);
  else if (rows <= 4) decode_rows<T, 4>(a);
  else decode_rows<T, 8>(a);
}

template <class T, int COLUMNS>
static void simt(const AttentionArgs& a) {
  const AttentionProblem& p = a.p;
  const int tiles = tiles_of(p.tq), slices = int((p.dim + COLUMNS - 1) / COLUMNS);
  DEEM_LAUNCH((attention_simt<T, COLUMNS>), dim3(unsigned(p.batches * p.heads * slices * tiles)), dim3(kSimtThreads), 0,
              stream(), a, tiles, slices);
}

static void attention(const AttentionArgs& a) {
  const AttentionProblem& p = a.p;
  if (p.batches * p.heads * p.tq == 0) return;
  dispatch(p.dtype, "attention", [&]<class T>(T) {
    if (is_decode<T>(p)) return decode<T>(a);
    if (p.dim > kWidest) return simt<T, kSimtSlice>(a);
    dispatch_width(p.dim, [&]<int D>(Width<D>) {
      if constexpr (sizeof(T) == 4) {
        simt<T, D>(a);
      } else {
        const bool in = aligned_rows(p.q, p.dim, 2) && aligned_rows(p.k, p.dim, 2) && aligned_rows(p.v, p.dim, 2);
        const int tiles = tiles_of(p.tq);
        DEEM_LAUNCH((attention_mma<T, D>), dim3(unsigned(p.batches * p.heads * tiles)), dim3(128), kAttentionShared<D>,
                    stream(), a, tiles, in, aligned_rows(a.y, p.dim, 2));
      }
    });
  });
}

DEEM_CUDA_KERNEL("attention", attention);

}  // namespace deem::cuda
