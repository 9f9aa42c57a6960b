#include "conv_cases.h"

namespace deem::test {
namespace {

const ConvCase kCases[] = {
    {.name = "1x1 stride 2", .n = 3, .h = 9, .w = 7, .in = 8, .out = 20, .kh = 1, .kw = 1, .stride = 2},
    {"3x3", 1, 8, 9, 40, 72, 3, 3, 1, 1, 1, 1, 1},
    {"3x3, a split depth", 1, 8, 8, 72, 40, 3, 3, 1, 1, 1, 1, 1},
    {"3x3 stride 2", 3, 7, 7, 8, 8, 3, 3, 2, 1, 1, 1, 1},
    {"3x3 stride 2, padded below", 1, 11, 8, 32, 40, 3, 3, 2, 0, 0, 1, 1},
    {"2x2 stride 2", 3, 6, 7, 8, 72, 2, 2, 2},
    {"4x4 stride 4 of 3 channels", 1, 16, 13, 3, 40, 4, 4, 4},
    {"one channel", 3, 5, 6, 1, 1, 3, 3, 1, 1, 1, 1, 1},
    {"one channel to 8", 1, 5, 6, 1, 8, 3, 3, 1, 1, 1, 1, 1},
    {"4 channels to 32", 1, 9, 8, 4, 32, 3, 3, 1, 1, 1, 1, 1},
    {"32 channels to 4", 3, 9, 8, 32, 4, 3, 3, 1, 1, 1, 1, 1},
    {"5 channels to 20", 1, 5, 11, 5, 20, 3, 3, 1, 1, 1, 1, 1},
    {"20 channels to 3", 3, 5, 3, 20, 3, 3, 3, 2, 1, 1, 1, 1},
    {"residues without taps", 1, 8, 10, 8, 8, 2, 2, 3},
    {"stride beyond the map", 3, 2, 3, 8, 8, 2, 2, 5},
    {"5x2, padding of four sizes", 1, 6, 5, 8, 16, 5, 2, 1, 3, 0, 1, 2},
    {"padding beyond the kernel", 1, 3, 4, 8, 8, 3, 3, 1, 4, 3, 2, 5},
    {"many pixels", 1, 26, 25, 8, 8, 3, 3, 1, 1, 1, 1, 1},
    {"many pixels, large tiles", 1, 26, 26, 16, 72, 3, 3, 1, 1, 1, 1, 1},
    {"unaligned", 1, 5, 6, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1},
    {"aligned to 8 bytes", 1, 5, 6, 16, 8, 3, 3, 1, 1, 1, 1, 1, 1, 4},
};
const ConvCase kDepthwise[] = {
    {"depthwise 7x7", 3, 9, 11, 20, 20, 7, 7, 1, 3, 3, 3, 3, 20},
    {"depthwise 7x7, more channels than a block has", 1, 7, 7, 136, 136, 7, 7, 1, 3, 3, 3, 3, 136},
    {"depthwise 7x7 of 3 channels", 1, 5, 17, 3, 3, 7, 7, 1, 3, 3, 3, 3, 3},
    {"depthwise 7x7, padding of four sizes", 1, 8, 9, 40, 40, 7, 7, 1, 1, 4, 2, 3, 40},
    {"depthwise 5x5", 3, 6, 5, 8, 8, 5, 5, 1, 2, 2, 2, 2, 8},
    {"depthwise 3x3", 1, 5, 9, 72, 72, 3, 3, 1, 1, 1, 1, 1, 72},
    {"depthwise 3x3, padding beyond the kernel", 1, 4, 3, 8, 8, 3, 3, 1, 4, 3, 2, 5, 8},
    {"depthwise 3x3 stride 2", 3, 7, 8, 32, 32, 3, 3, 2, 1, 1, 1, 1, 32},
    {"depthwise 3x3 stride 2 of 5 channels", 1, 7, 8, 5, 5, 3, 3, 2, 0, 0, 1, 1, 5},
    {"depthwise 4x4", 1, 6, 5, 8, 8, 4, 4, 1, 2, 1, 1, 2, 8},
    {"depthwise 2x2 stride 3", 1, 7, 8, 8, 8, 2, 2, 3, 0, 0, 0, 0, 8},
    {"depthwise, unaligned", 1, 5, 6, 8, 8, 7, 7, 1, 3, 3, 3, 3, 8, 1},
};

// A sum over many products of values up to 1, rounded to bf16, may fall on either side of a tie: one unit of the last place.
double tolerance_of(DType t, bool backward) {
  return t == DType::f32 ? (backward ? 1e-5 : 2e-6) : t == DType::bf16 ? 0x1p-7 : 0x1p-11 + 1e-5;
}

struct Inputs {
  Parity p;
  ConvSizes s;
  int64_t at, x_size, w_size, y_size;
  bool on_cpu;  // oneDNN takes f32 and bf16
  std::string name;

  Inputs(const ConvCase& c, DType dtype, const char* op)
      : p(str(c.name, ' ', op)),
        s(c.sizes(dtype)),
        at(c.offset),
        x_size(s.n * s.h * s.w * s.in),
        w_size(s.out * s.kh * s.kw * (s.in / s.groups)),
        y_size(s.n * s.oh * s.ow * s.out),
        on_cpu(dtype != DType::f16),
        name(str(c.name, ' ', op)) {}
  Buffer tensor(int64_t size) { return p.random(size + at, s.dtype); }
  Buffer output(int64_t size) { return p.zeros(size + at, s.dtype); }
  void check(const Buffer& b, const std::vector<double>& want, bool backward) {
    const double tolerance = tolerance_of(s.dtype, backward);
    if (on_cpu) p.close(b, tolerance);
    else expect_close(b, at, want, tolerance, name);
  }
};

void forward(const ConvCase& c, DType dtype, bool with_bias) {
  Inputs t(c, dtype, with_bias ? "forward, bias" : "forward");
  Buffer x = t.tensor(t.x_size), w = t.tensor(t.w_size), b = with_bias ? t.tensor(t.s.out) : Buffer();
  Buffer y = t.output(t.y_size);
  std::vector<double> want(static_cast<size_t>(t.on_cpu ? 0 : t.y_size));
  t.p.run([&](Device d) {
    if (d == Device::cuda || t.on_cpu)
      return conv_forward_kernel(d, {t.s, x(d, t.at), w(d, t.at), b ? b(d, t.at) : b(d), y(d, t.at)});
    const auto xs = x.host_values(), ws = w.host_values(), bs = b ? b.host_values() : std::vector<double>();
    for (size_t i = 0; i < want.size() && b; i++) want[i] = bs[i % size_t(t.s.out) + size_t(t.at)];
    for_each_product(t.s, [&](int64_t yi, int64_t xi, int64_t wi) {
      want[size_t(yi)] += xs[size_t(xi + t.at)] * ws[size_t(wi + t.at)];
    });
  });
  t.check(y, want, false);
}

void data(const ConvCase& c, DType dtype) {
  Inputs t(c, dtype, "data");
  Buffer dy = t.tensor(t.y_size), w = t.tensor(t.w_size), dx = t.output(t.x_size);
  std::vector<double> want(static_cast<size_t>(t.on_cpu ? 0 : t.x_size));
  t.p.run([&](Device d) {
    if (d == Device::cuda || t.on_cpu) return conv_data_kernel(d, {t.s, dy(d, t.at), w(d, t.at), dx(d, t.at)});
    const auto gs = dy.host_values(), ws = w.host_values();
    for_each_product(t.s, [&](int64_t yi, int64_t xi, int64_t wi) {
      want[size_t(xi)] += gs[size_t(yi + t.at)] * ws[size_t(wi + t.at)];
    });
  });
  t.check(dx, want, true);
}

void weights(const ConvCase& c, DType dtype, bool with_bias) {
  Inputs t(c, dtype, with_bias ? "weights, bias" : "weights");
  Buffer x = t.tensor(t.x_size), dy = t.tensor(t.y_size), dw = t.output(t.w_size);
  Buffer db = with_bias ? t.output(t.s.out) : Buffer();
  std::vector<double> want(static_cast<size_t>(t.on_cpu ? 0 : t.w_size));
  std::vector<double> want_bias(static_cast<size_t>(t.on_cpu || !with_bias ? 0 : t.s.out));
  t.p.run([&](Device d) {
    if (d == Device::cuda || t.on_cpu)
      return conv_weights_kernel(d, {t.s, x(d, t.at), dy(d, t.at), dw(d, t.at), db ? db(d, t.at) : db(d)});
    const auto xs = x.host_values(), gs = dy.host_values();
    for_each_product(t.s, [&](int64_t yi, int64_t xi, int64_t wi) {
      want[size_t(wi)] += xs[size_t(xi + t.at)] * gs[size_t(yi + t.at)];
    });
    for (size_t i = 0; i < size_t(t.y_size) && with_bias; i++) want_bias[i % size_t(t.s.out)] += gs[i + size_t(t.at)];
  });
  t.check(dw, want, true);
  if (db) t.check(db, want_bias, true);
}

// Into f32, with the scratch and chunks of the front end.
void depthwise_weights(const ConvCase& c, DType dtype) {
  Inputs t(c, dtype, "depthwise weights");
  const int64_t chunks = std::clamp<int64_t>(16 / t.s.n, 1, t.s.oh);
  Buffer x = t.tensor(t.x_size), dy = t.tensor(t.y_size);
  Buffer dw = t.p.output(t.w_size), scratch = t.p.zeros(t.s.n * chunks * t.w_size);
  t.p.run([&](Device d) { depthwise_weights_kernel(d, {t.s, x(d, t.at), dy(d, t.at), dw(d), scratch(d), chunks}); });
  t.p.close(dw, 1e-5);
}

template <class F>
void for_each_type(const ConvCase& c, F&& f) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) f(c, dtype);
}

TEST("conv: forward") {
  for (const ConvCase& c : kCases)
    for_each_type(c, [](auto& c, DType t) { forward(c, t, true), forward(c, t, false); });
}
TEST("conv: data gradient") {
  for (const ConvCase& c : kCases) for_each_type(c, data);
}
TEST("conv: weight gradient") {
  for (const ConvCase& c : kCases) for_each_type(c, [](auto& c, DType t) { weights(c, t, c.in < 10); });
}
TEST("conv: large tiles") {
  forward({"2x2 stride 2", 1, 180, 180, 24, 136, 2, 2, 2}, DType::bf16, true);
  data({"2x2 stride 2", 1, 92, 91, 136, 40, 2, 2, 2}, DType::bf16);
  forward({"1x1 stride 3", 1, 270, 271, 8, 72, 1, 1, 3}, DType::f32, true);
  data({"1x1 stride 2", 1, 92, 91, 72, 24, 1, 1, 2}, DType::f32);
}
TEST("conv: depthwise forward") {
  for (const ConvCase& c : kDepthwise)
    for_each_type(c, [](auto& c, DType t) { forward(c, t, true), forward(c, t, false); });
}
TEST("conv: depthwise data gradient") {
  for (const ConvCase& c : kDepthwise) for_each_type(c, data);
}
TEST("conv: depthwise weight gradient") {
  for (const ConvCase& c : kDepthwise) {
    for_each_type(c, [](auto& c, DType t) { weights(c, t, false); });
    for_each_type(c, depthwise_weights);
  }
}
TEST("conv: no images") {
  for (int64_t groups : {1, 8}) {
    const ConvCase c{"no images", 0, 5, 6, 8, 8, 3, 3, 1, 1, 1, 1, 1, groups};
    Parity p(c.name);
    const ConvSizes s = c.sizes(DType::bf16);
    const int64_t size = 9 * 8 * 8 / groups;
    Buffer none, w = p.random(size, DType::bf16), dw = p.output(size, DType::bf16);
    p.run([&](Device d) {
      if (d == Device::cpu) return void(std::fill_n(dw.host<uint16_t>(), size, uint16_t(0)));
      conv_forward_kernel(d, {s, none(d), w(d), nullptr, none(d)});
      conv_data_kernel(d, {s, none(d), w(d), none(d)});
      conv_weights_kernel(d, {s, none(d), none(d), dw(d), nullptr});
    });
    p.same(dw);
  }
}

}  // namespace
}  // namespace deem::test
