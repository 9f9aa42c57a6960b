// Position tables. They are small and built once, so plain loops here; angles are f32, as those of the published
// weights.
#include <algorithm>
#include <cmath>

#include "ops.h"

namespace deem {

// exp(x) as 2^(k / 128) * (1 + r + r^2 / 2), at most 0.06 ulp from the true value, then rounded. Published frequencies
// come from such a table; the correctly rounded ones differ in a few last places, which a time step of 1000 makes 5e-5.
static float exp_by_table(float x) {
  constexpr double kLn2 = 0.693147180559945309417;
  double k = std::nearbyint(double(x) * (128 / kLn2)), r = double(x) - k * (kLn2 / 128);
  return float(std::exp2(k / 128) * (1 + r * (1 + r * 0.5)));
}

// t [N] -> cos(t * f_i), then sin(t * f_i), with f_i = 10000^(-i / (dim / 2)).
Tensor timestep_embedding(const Tensor& t, int64_t dim) {
  check<ShapeError>(t.ndim() == 1, "[timestep_embedding] t must be [N] but has shape ", t.shape());
  check<DTypeError>(t.dtype() == DType::i64 || is_float(t.dtype()),
                    "[timestep_embedding] t must be i64 or floating but is ", t.dtype());
  check<ValueError>(dim > 0 && dim % 2 == 0, "[timestep_embedding] dim must be even and positive but is ", dim);
  Tensor steps = contiguous(t.detach()).to(Device::cpu);
  if (steps.dtype() != DType::f32) steps = cast(steps, DType::f32);
  int64_t half = dim / 2;
  std::vector<float> frequency(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; i++) {
    float exponent = float(-std::log(10000.0)) * float(i) / float(half);
    frequency[i] = exp_by_table(exponent);
  }
  Tensor out = Tensor::empty({t.size(0), dim});
  const float* step = steps.data<float>();
  float* y = out.data<float>();
  for (int64_t n = 0; n < t.size(0); n++, y += dim)
    for (int64_t i = 0; i < half; i++) {
      float angle = step[n] * frequency[i];
      y[i] = float(std::cos(double(angle)));
      y[half + i] = float(std::sin(double(angle)));
    }
  return no_gradient("timestep_embedding", out.to(t.device()), {t});
}

// sin(p * f_i), then cos(p * f_i), i < dim / 2, with f_i = 1 / 10000^(i / (dim / 2)).
static void write_sincos(float* y, int64_t dim, int64_t position) {
  int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i++) {
    float frequency = 1.0f / float(std::pow(10000.0, double(float(i) / float(half))));
    double angle = double(float(position) * frequency);
    y[i] = float(std::sin(angle));
    y[half + i] = float(std::cos(angle));
  }
}

Tensor sincos_1d(int64_t dim, int64_t count) {
  check<ValueError>(dim > 0 && dim % 2 == 0, "[sincos_1d] dim must be even and positive but is ", dim);
  check<ValueError>(count >= 0, "[sincos_1d] count must not be negative but is ", count);
  Tensor out = Tensor::empty({count, dim});
  for (int64_t p = 0; p < count; p++) write_sincos(out.data<float>() + p * dim, dim, p);
  return out;
}

Tensor sincos_2d(int64_t dim, int64_t side, bool with_cls) {
  check<ValueError>(dim > 0 && dim % 4 == 0, "[sincos_2d] dim must be a positive multiple of 4 but is ", dim);
  check<ValueError>(side >= 0 && side < (1 << 15), "[sincos_2d] side must be in 0..32767 but is ", side);
  Tensor out = Tensor::zeros({side * side + with_cls, dim}), line = sincos_1d(dim / 2, side);
  float* y = out.data<float>() + (with_cls ? dim : 0);
  const float* half = line.data<float>();
  for (int64_t row = 0; row < side; row++)
    for (int64_t column = 0; column < side; column++, y += dim) {
      std::copy_n(half + row * (dim / 2), dim / 2, y);
      std::copy_n(half + column * (dim / 2), dim / 2, y + dim / 2);
    }
  return out;
}

}  // namespace deem
