// Tiles of gathered operands in shared memory, filled by cp.async.
#pragma once
#include "cuda/kernels/conv_operands.cuh"
#include "cuda/ptx.cuh"

namespace deem::cuda::conv {

// Where 16-byte chunk `chunk` of row `row` lies, in chunks. Swizzled, so that the same chunk of 8 neighbouring rows, which
// ldmatrix reads together, lies in 8 different groups of banks.
template <int ROW>
struct Swizzled {
  static constexpr int kRow = ROW;
  DEEM_DEVICE static int at(int row, int chunk) {
    if constexpr (ROW == 4) return row * ROW + (chunk ^ (row >> 1 & 3));
    else return row * ROW + (chunk ^ (row & 7));
  }
};
// Rows with a pad of one chunk do the same for threads that read whole chunks of neighbouring rows.
template <int ROW>
struct Padded {
  static constexpr int kRow = ROW + 1;
  DEEM_DEVICE static int at(int row, int chunk) { return row * kRow + chunk; }
};
template <int ROW>
struct Plain {
  static constexpr int kRow = ROW;
  DEEM_DEVICE static int at(int row, int chunk) { return row * kRow + chunk; }
};

// Fills tiles of LINES x DEPTH elements: rows are lines where depths are neighbours in memory, else depths. WHOLE: the operand
// may be copied in chunks of 16 bytes; else in its grain, each piece decoded by itself.
template <class Operand, int LINES, int DEPTH, int THREADS, bool WHOLE, template <int> class Layout>
class TileLoader {
 public:
  using T = typename Operand::Type;
  using Chunk = Vec<T, kVecWidth<T>>;
  static constexpr bool kAlong = Operand::kAlongDepth;
  static constexpr int kVec = kVecWidth<T>, kRows = kAlong ? LINES : DEPTH, kChunks = (kAlong ? DEPTH : LINES) / kVec;
  using Place = Layout<kChunks>;
  static constexpr int kSize = kRows * Place::kRow;  // chunks

  DEEM_DEVICE explicit TileLoader(const Operand& operand)
      : operand_(operand), row_(int(threadIdx.x) / kChunks), column_(int(threadIdx.x) % kChunks * kVec) {
#pragma unroll
    for (int i = 0; i < kLines; i++) lines_[i] = operand.line(kAlong ? row_ + i * kStep : column_);
  }

  // The tile whose first depth is `depth`, counted from the block's first.
  DEEM_DEVICE void load(Chunk* tile, int depth) const {
    if constexpr (!WHOLE) return load_pieces(tile, depth);
    if constexpr (kAlong) {
      const typename Operand::Depth d = operand_.depth(depth + column_);
#pragma unroll
      for (int i = 0; i < kPasses; i++) copy(tile, i, operand_.at(lines_[i], d));
    } else {
#pragma unroll
      for (int i = 0; i < kPasses; i++) copy(tile, i, operand_.at(lines_[0], operand_.depth(depth + row_ + i * kStep)));
    }
  }

 private:
  static constexpr int kStep = THREADS / kChunks, kPasses = kRows / kStep, kLines = kAlong ? kPasses : 1;
  static_assert(THREADS % kChunks == 0 && kRows % kStep == 0);

  DEEM_DEVICE void copy(Chunk* tile, int pass, const T* from) const {
    cp_async_16(tile + Place::at(row_ + pass * kStep, column_ / kVec), from ? from : operand_.any(), from != nullptr);
  }

  DEEM_DEVICE void load_pieces(Chunk* tile, int depth) const {
    const int grain = operand_.grain;
#pragma unroll 1
    for (int row = row_; row < kRows; row += kStep) {
      T* to = tile[Place::at(row, column_ / kVec)].v;
#pragma unroll 1
      for (int e = 0; e < kVec; e += grain) {
        const T* from = kAlong ? operand_.at(operand_.line(row), operand_.depth(depth + column_ + e))
                               : operand_.at(operand_.line(column_ + e), operand_.depth(depth + row));
        const T* source = from ? from : operand_.any();
        if (grain == kVec) cp_async_16(to + e, source, from != nullptr);
        else if (grain * sizeof(T) == 8) cp_async_8(to + e, source, from != nullptr);
        else if (grain * sizeof(T) == 4) cp_async_4(to + e, source, from != nullptr);
        else to[e] = from ? *from : T(0.f);
      }
    }
  }

  Operand operand_;
  int row_, column_;
  typename Operand::Line lines_[kLines];
};

}  // namespace deem::cuda::conv
