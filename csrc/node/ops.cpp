// The operations as JavaScript sees them: one line each, arguments marshalled from the C++ signature.
#include "core/rng.h"
#include "node/bind.h"

namespace deem::node {
namespace {

// Draws of the operation API name their seed and stream.
Tensor seeded_dropout(const Tensor& x, double p, int64_t seed, int64_t stream) {
  RngScope draws{uint64_t(seed), uint64_t(stream)};
  return dropout(x, p);
}
Tensor seeded_drop_path(const Tensor& x, double p, int64_t seed, int64_t stream) {
  RngScope draws{uint64_t(seed), uint64_t(stream)};
  return drop_path(x, p);
}
Tensor quantized_linear_op(const Tensor& x, const Tensor& packed, int64_t bits, int64_t group, bool symmetric,
                           const MaybeTensor& bias) {
  return quantized_linear(x, packed, bits, group, symmetric, bias);
}
// full(shape, value, dtype, device)
Napi::Value full(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Shape shape = From<Shape>::js(info[0], "full");
    double value = From<double>::js(info[1], "full");
    DType dtype = From<DType>::js(info[2], "full");
    Device device = device_for(info[3], dtype, "full");
    Tensor t;
    Engine::get().run_sync([&] { t = Tensor::full(shape, value, dtype, device); });
    return JsTensor::wrap(info.Env(), t);
  });
}

}  // namespace

void init_ops(Napi::Env env, Napi::Object exports) {
  Napi::Object ops = Napi::Object::New(env);
  exports.Set("ops", ops);
#define OP(js, cpp)                \
  ops.Set(js, Napi::Function::New( \
                  env, [](const Napi::CallbackInfo& info) { return call_op(info, js, cpp); }, js))
  OP("add", add);
  OP("sub", sub);
  OP("mul", mul);
  OP("div", div);
  OP("addScalar", add_scalar);
  OP("mulScalar", mul_scalar);
  OP("neg", neg);
  OP("exp", deem::exp);
  OP("log", deem::log);
  OP("sqrt", deem::sqrt);
  OP("square", square);
  OP("abs", deem::abs);
  OP("tanh", deem::tanh);
  OP("sigmoid", sigmoid);
  OP("relu", relu);
  OP("silu", silu);
  OP("gelu", gelu);
  OP("geluTanh", gelu_tanh);
  OP("quickGelu", quick_gelu);
  OP("clamp", clamp);
  OP("where", where);
  OP("greater", greater);
  OP("cast", cast);
  OP("geglu", geglu);
  OP("swiglu", swiglu);
  OP("sum", sum);
  OP("mean", mean);
  OP("sumTo", sum_to);
  OP("mseLoss", mse_loss);
  OP("argmax", argmax);
  OP("norm", norm);
  OP("matmul", matmul);
  OP("linear", linear);
  OP("addLinear", add_linear);
  OP("quantize", quantize);
  OP("dequantize", dequantize);
  OP("quantizedLinear", quantized_linear_op);
  OP("conv2d", conv2d);
  OP("layerNorm", layer_norm);
  OP("rmsNorm", rms_norm);
  OP("groupNorm", group_norm);
  OP("attention", attention);
  OP("rope", rope);
  OP("softmax", softmax);
  OP("logSoftmax", log_softmax);
  OP("crossEntropy", cross_entropy);
  OP("embedding", embedding);
  OP("embedInterleaved", embed_interleaved);
  OP("msDeformAttn", ms_deform_attn);
  OP("mmfsAttention", mmfs_attention);
  OP("resampleTable", resample_table);
  OP("resampleGrid", resample_grid);
  OP("resizeBilinear", resize_bilinear);
  OP("resizeNearest", resize_nearest);
  OP("timestepEmbedding", timestep_embedding);
  OP("sincos1d", sincos_1d);
  OP("sincos2d", sincos_2d);
  OP("reshape", reshape);
  OP("permute", permute);
  OP("slice", slice);
  OP("broadcastTo", broadcast_to);
  OP("cat", cat);
  OP("stack", stack);
  OP("padRows", pad_rows);
  OP("gatherRows", gather_rows);
  OP("contiguous", contiguous);
  OP("toDevice", to_device);
  OP("randn", randn);
  OP("rand", deem::rand);
  OP("randint", randint);
  OP("dropout", seeded_dropout);
  OP("dropPath", seeded_drop_path);
  ops.Set("full", Napi::Function::New(env, full, "full"));
#undef OP
  exports.Set("setGradEnabled", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
                return guarded(info.Env(), [&]() -> Napi::Value {
                  bool before = data_of(info.Env()).grad;
                  data_of(info.Env()).grad = From<bool>::js(info[0], "setGradEnabled");
                  return Napi::Boolean::New(info.Env(), before);
                });
              }));
}

}  // namespace deem::node
