// The only place that knows oneDNN. Primitives are built once per problem and kept; a call sets pointers and executes.
// All calls come from the engine thread, which owns the OpenMP team.
#pragma once
#include <cstdint>

#include "core/tensor.h"

namespace deem::onednn {

// A matrix as the engine sees it: rows x cols at `data`, strides in elements; one of the two strides is 1.
struct Matrix {
  const void* data;
  int64_t rows, cols, row_stride, col_stride;
};

// c = a b + bias, `batch` times with the given element steps between items; c is rows x cols, its rows c_row_stride apart.
// a, b and bias share `dtype` (f32 or bf16), c has `c_dtype`.
struct Gemm {
  int64_t batch;
  Matrix a, b;
  int64_t a_step, b_step, c_step, c_row_stride;
  const void* bias;  // [cols] or null
  void* c;
  DType dtype, c_dtype;
  bool panels = false;  // b.data holds its columns in panels (cpu/panels.h), for the only item
};
void gemm(const Gemm& g);
// Whether a product reads b from panels as fast as oneDNN multiplies.
bool takes_panels(const Gemm& g);

// Convolutions over [N, H, W, C] with weights [O, KH, KW, I / groups].
struct ConvShape {
  int64_t n, h, w, in, out, kh, kw, oh, ow, stride, pad_top, pad_left, pad_bottom, pad_right, groups;
  DType dtype;
};
void conv_forward(const ConvShape& s, const void* x, const void* weight, const void* bias, void* y);
void conv_backward_data(const ConvShape& s, const void* dy, const void* weight, void* dx);
// dweight and dbias have the shape's dtype; dbias may be null.
void conv_backward_weights(const ConvShape& s, const void* x, const void* dy, void* dweight, void* dbias);

}  // namespace deem::onednn
