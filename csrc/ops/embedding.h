// Kernel arguments of embedding and embed_interleaved.
#pragma once
#include <span>

#include "core/kernel.h"

namespace deem {

struct EmbeddingArgs {
  const void *table, *images;  // rows of `cols`; images null where no source is negative
  const int64_t* source;       // [rows]: a row of the table, or ~i for row i of images
  const void* added;           // [cols], added to the rows that are marked; null: none
  const uint8_t* marked;       // [rows]
  void* y;
  int64_t rows, cols;
  DType dtype;
};
extern Kernel<EmbeddingArgs> embedding_kernel;

// to[target[s]] = sum of the rows order[begin[s]] .. order[begin[s + 1] - 1] of x, in that order, in f32.
struct SumRowsArgs {
  const void* x;
  const int64_t *order, *begin, *target;
  void* to;
  int64_t segments, cols;
  DType dtype;
};
extern Kernel<SumRowsArgs> sum_rows_kernel;

// x [rows, C] -> [size, C]: rows added up where their target is equal, in their order and in f32; negative targets are left out,
// others are not checked against `size`. Not recorded.
Tensor sum_rows(const Tensor& x, std::span<const int64_t> target, int64_t size, int64_t cols);

// Where rows go: i64 lists on one device, as sum_rows takes them with one row a segment.
struct RowPlaces {
  Tensor order, begin, target;
};
RowPlaces row_places(std::span<const int64_t> target, Device device);
// Writes row i of x [n, ...] to row target[i] of `to` [m, ...], whose others stay. Targets differ and are not checked. Not recorded.
void put_rows(const Tensor& to, const Tensor& x, const RowPlaces& places);

}  // namespace deem
