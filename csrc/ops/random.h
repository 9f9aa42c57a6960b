// Random numbers as functions of (seed, stream, element), see core/rng.h. Four-word draws serve several elements:
// rand and dropout use word element % 4 of draw element / 4, randn words 0 and 1 of draw element / 2, randint words 0 and 1
// and drop_path word 0 of draw element (row).
#pragma once
#include "core/kernel.h"

namespace deem {

enum class Draw : uint8_t { uniform, normal, integer };

struct RandomArgs {
  Draw draw;
  void* y;  // f32, or i64 for integers
  int64_t n;
  uint64_t seed, stream;
  int64_t low;  // integers: low..low + range - 1
  uint64_t range;
};
extern Kernel<RandomArgs> random_kernel;

// y = x * scale where the word is at least `threshold`, else 0
struct DropoutArgs {
  const void* x;
  void* y;
  int64_t rows, cols;  // whole rows are kept or dropped; single elements where cols is 0, rows then counts elements
  uint64_t seed, stream;
  uint32_t threshold;
  float scale;
  DType dtype;
};
extern Kernel<DropoutArgs> dropout_kernel;

}  // namespace deem
