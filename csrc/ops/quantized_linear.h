#pragma once
#include <string>

#include "core/kernel.h"

namespace deem {

// How a weight [rows, cols] lies in few bits: u8 [rows, row_bytes], a row being its codes, one f16 scale a group, and one f16 offset a
// group unless symmetric. A number is (code - zero) * scale + offset. Codes of 8 bits lie in order; of 4 bits, 32 numbers lie in 16
// bytes, the first 16 in their lower halves. Rows of codes are padded to whole blocks of 64 bytes.
struct QuantFormat {
  int64_t bits = 8, group = 32;
  bool symmetric = true;
  int64_t cols = 0;

  DEEM_INLINE int64_t zero() const { return symmetric ? int64_t(1) << (bits - 1) : 0; }
  DEEM_INLINE int64_t groups() const { return (cols + group - 1) / group; }
  DEEM_INLINE int64_t block() const { return 512 / bits; }  // numbers
  DEEM_INLINE int64_t code_bytes() const { return (cols + block() - 1) / block() * 64; }
  DEEM_INLINE int64_t row_bytes() const { return code_bytes() + groups() * (symmetric ? 2 : 4); }
  // Follows the weight's name in files, e.g. "int4g32", or "int4g32a" where it has offsets: other settings are another name.
  std::string suffix() const;
  void validate() const;  // throws ValueError
};

// A weight in few bits. A tensor whose impl points to one has no elements: linear() alone takes it.
struct QuantizedWeight {
  Tensor packed;
  QuantFormat format;
};

struct QuantizeArgs {
  const float* weight;
  uint8_t* packed;
  uint8_t* finite;  // [rows], 0 where a row holds what has no code
  int64_t rows;
  QuantFormat format;
};
extern Kernel<QuantizeArgs> quantize_kernel;

// Rows row..row + rows and columns col..col + cols (col a multiple of 128) to f32 or bf16.
struct DequantizeArgs {
  const uint8_t* packed;
  void* out;  // contiguous [rows, cols]
  int64_t row, rows, col, cols;
  QuantFormat format;
  DType dtype;
};
extern Kernel<DequantizeArgs> dequantize_kernel;

// What one row of x may need as scratch memory: for every block, up to eleven pieces of 64 bytes.
DEEM_INLINE int64_t gemv_scratch_bytes(const QuantFormat& f) { return (f.cols + f.block() - 1) / f.block() * 11 * 64; }

// y[m, r] = sum over c of x[m, c] weight[r, c] + bias[r], for few m.
struct QuantizedGemvArgs {
  const float* x;  // [m, cols]
  const uint8_t* packed;
  const float* bias;  // [rows] or null
  float* y;           // [m, rows]
  void* scratch;      // [m, gemv_scratch_bytes()], null but on the CPU
  int64_t m, rows;
  QuantFormat format;
  bool short_x;  // x holds numbers of bf16: a few bits of them are all there is to keep
};
constexpr int64_t kMostGemvRows = 32;
extern Kernel<QuantizedGemvArgs> quantized_gemv_kernel;

}  // namespace deem
