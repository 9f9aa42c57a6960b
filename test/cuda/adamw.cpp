#include <cuda_runtime_api.h>

#include "cuda/runtime.h"
#include "parity.h"
#include "train/adamw_kernel.h"

namespace deem::test {
namespace {

struct Parameter {
  int64_t n;
  DType dtype, gradient_dtype;
  bool master;
  int64_t first = 0;  // elements before it, so that vectors do not fit
};

struct Tensors {
  Buffer parameter, gradient, exp_avg, exp_avg_sq, master;
};

// The segments in the memory of a device.
class Segments {
 public:
  Segments(Device d, const std::vector<AdamWSegment>& list) : list_(list), cuda_(d == Device::cuda) {
    if (!cuda_) return;
    cuda::cuda_check(cudaMalloc(&block_, bytes()), "segments");
    cuda::cuda_check(cudaMemcpy(block_, list_.data(), bytes(), cudaMemcpyHostToDevice), "segments");
  }
  ~Segments() {
    if (!block_) return;
    cudaDeviceSynchronize();
    cudaFree(block_);
  }
  const AdamWSegment* data() const { return cuda_ ? static_cast<const AdamWSegment*>(block_) : list_.data(); }

 private:
  size_t bytes() const { return list_.size() * sizeof(AdamWSegment); }
  std::vector<AdamWSegment> list_;
  void* block_ = nullptr;
  bool cuda_;
};

void adamw_case(const char* name, const std::vector<Parameter>& parameters, int64_t piece) {
  Parity p(name);
  std::vector<Tensors> tensors;
  int64_t total = 0;
  for (const Parameter& q : parameters) {
    const int64_t n = q.n + q.first;
    tensors.push_back({p.random(n, q.dtype), p.random(n, q.gradient_dtype), p.random(n, DType::f32, 0.1),
                       p.random(n, DType::f32, 0.05, 0.06), q.master ? p.random(n) : Buffer()});
    total += q.n;
  }
  const int64_t pieces = (total + piece - 1) / piece;
  auto sums = p.output(pieces, DType::i64);
  p.run([&](Device d) {
    std::vector<AdamWSegment> list;
    int64_t at = 0;
    for (size_t i = 0; i < tensors.size(); i++) {
      const Parameter& q = parameters[i];
      const Tensors& t = tensors[i];
      list.push_back({.parameter = t.parameter(d, q.first),
                      .gradient = t.gradient(d, q.first),
                      .exp_avg = t.exp_avg(d, q.first),
                      .exp_avg_sq = t.exp_avg_sq(d, q.first),
                      .master = q.master ? t.master(d, q.first) : Address{nullptr},
                      .begin = at,
                      .end = at + q.n,
                      .decay = 1 - 0.001f * float(i + 1),
                      .step_size = 0.01f,
                      .denominator = 1.3f,
                      .dtype = q.dtype,
                      .gradient_dtype = q.gradient_dtype});
      at += q.n;
    }
    const Segments segments(d, list);
    const AdamWArgs args{.segments = segments.data(),
                         .count = int64_t(list.size()),
                         .total = total,
                         .piece = piece,
                         .squares = sums(d),
                         .beta2 = 0.999f,
                         .rest1 = 0.1f,
                         .rest2 = 0.001f,
                         .eps = 1e-8f,
                         .clip = 0.7f};
    adamw_squares_kernel(d, args);
    adamw_update_kernel(d, args);
  });
  p.close(sums, 1e-13, "squares");  // doubles seen as integers: an error of 1e-10
  for (const Tensors& t : tensors) {
    p.close(t.parameter, -1, "parameter");
    p.close(t.exp_avg, -1, "exp_avg");
    p.close(t.exp_avg_sq, -1, "exp_avg_sq");
    if (t.master) p.close(t.master, -1, "master");
  }
}

TEST("cuda adamw: parameters of all dtypes, cut by pieces anywhere") {
  using enum DType;
  adamw_case("one element", {{1, f32, f32, false}}, 32768);
  adamw_case("f32", {{1000, f32, f32, false}, {33, f32, f32, false}, {4097, f32, f32, false}}, 1001);
  adamw_case("bf16 with masters", {{31, bf16, bf16, true}, {5000, bf16, f32, true}, {64, bf16, bf16, true}}, 512);
  adamw_case("f16 without masters", {{700, f16, f16, false}, {700, f16, f32, false}, {700, f16, f16, true}}, 333);
  adamw_case("everything, misaligned",
             {{9000, bf16, bf16, true, 1},
              {1, f32, f32, false},
              {0, f32, f32, false},
              {257, f16, f32, true, 3},
              {12000, f32, f32, false, 2}},
             4096);
}

TEST("cuda adamw: many small parameters") {
  std::vector<Parameter> many;
  for (int i = 0; i < 1100; i++) many.push_back({1 + i % 7, DType::f32, DType::f32, false});
  adamw_case("1100 parameters", many, 100);
}

}  // namespace
}  // namespace deem::test
