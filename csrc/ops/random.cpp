// Draws are recomputed from their counters, never stored: a backward pass sees the mask of its forward pass.
#include "ops/random.h"

#include "core/rng.h"
#include "ops.h"

namespace deem {

constinit Kernel<RandomArgs> random_kernel{"random"};
constinit Kernel<DropoutArgs> dropout_kernel{"dropout"};

static Tensor draw(Draw kind, const Shape& shape, DType dtype, int64_t seed, int64_t stream, Device device,
                   int64_t low = 0, uint64_t range = 0) {
  Tensor y = Tensor::empty(shape, dtype, device);
  random_kernel(device, {kind, y.raw(), y.numel(), uint64_t(seed), uint64_t(stream), low, range});
  return record("random", y, {}, nullptr);
}

Tensor rand(const Shape& shape, int64_t seed, int64_t stream, Device device) {
  return draw(Draw::uniform, shape, DType::f32, seed, stream, device);
}

// Box and Muller: sqrt(-2 ln u) times cos and sin of 2 pi v.
Tensor randn(const Shape& shape, int64_t seed, int64_t stream, Device device) {
  return draw(Draw::normal, shape, DType::f32, seed, stream, device);
}

// low + floor(64 random bits * range / 2^64)
Tensor randint(const Shape& shape, int64_t low, int64_t high, int64_t seed, int64_t stream) {
  check<ValueError>(low < high, "[randint] low must be below high but got ", low, " and ", high);
  return draw(Draw::integer, shape, DType::i64, seed, stream, Device::cpu, low, uint64_t(high) - uint64_t(low));
}

static Tensor drop(const char* op, const Tensor& x_in, double p, bool whole_rows) {
  check<DTypeError>(is_float(x_in.dtype()), "[", op, "] x must be floating but is ", x_in.dtype());
  check<ValueError>(p >= 0 && p < 1, "[", op, "] p must be at least 0 and below 1 but is ", p);
  check<ShapeError>(!whole_rows || x_in.ndim() >= 1, "[", op, "] x needs rows but is a scalar");
  if (p == 0) return x_in;
  Tensor x = contiguous(x_in);
  int64_t rows = whole_rows ? x.size(0) : x.numel(), cols = whole_rows && rows > 0 ? x.numel() / rows : 0;
  if (whole_rows && cols == 0) rows = 0;
  uint64_t stream = take_stream();
  auto apply = [=, seed = rng_state().seed, threshold = uint32_t(p * 4294967296.0),
                scale = float(1 / (1 - p))](const Tensor& from) {
    Tensor to = Tensor::empty(from.shape(), from.dtype(), from.device());
    dropout_kernel(from.device(), {.x = from.raw(),
                                   .y = to.raw(),
                                   .rows = rows,
                                   .cols = cols,
                                   .seed = seed,
                                   .stream = stream,
                                   .threshold = threshold,
                                   .scale = scale,
                                   .dtype = from.dtype()});
    return to;
  };
  return record(op, apply(x), {x}, [apply](const Tensor& dy, Needs) { return Tensors{apply(dy)}; });
}

Tensor dropout(const Tensor& x, double p) { return drop("dropout", x, p, false); }
Tensor drop_path(const Tensor& x, double p) { return drop("drop_path", x, p, true); }

}  // namespace deem
