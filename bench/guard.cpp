// deem-guard NAME TIMES: runs one of the kernels below that many times, for bench/guard.ts, which counts instructions.
// deem-guard: prints the names. Sizes are small: counts hardly depend on them, and the counter is slow.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "ops.h"

using namespace deem;

namespace {

int draws = 0;
Tensor normal(const Shape& shape) { return randn(shape, 1, draws++); }
Tensor leaf(const Shape& shape) {
  Tensor t = normal(shape);
  t.set_requires_grad(true);
  return t;
}
Tensor ids(const Shape& shape, int64_t below) { return randint(shape, 0, below, 2, draws++); }

// Forward, then the gradients of the leaves.
template <class F>
std::function<void()> backwards(const Tensors& leaves, F forward) {
  Tensor seed = normal(forward().shape());
  return [=] {
    backward({forward()}, {seed});
    for (const Tensor& t : leaves) t.clear_grad();
  };
}

struct Kernel {
  const char* name;
  std::function<std::function<void()>()> make;
};

const Kernel kernels[] = {
    {"attention",
     [] {
       Tensor q = normal({1, 128, 2, 64}), k = normal({1, 128, 2, 64}), v = normal({1, 128, 2, 64});
       return [=] { attention(q, k, v); };
     }},
    {"attention-backward",
     [] {
       Tensor q = leaf({1, 128, 2, 64}), k = leaf({1, 128, 2, 64}), v = leaf({1, 128, 2, 64});
       return backwards({q, k, v}, [=] { return attention(q, k, v); });
     }},
    {"attention-decode",
     [] {
       Tensor q = normal({1, 1, 8, 64}), k = normal({1, 512, 2, 64}), v = normal({1, 512, 2, 64});
       return [=] { attention(q, k, v); };
     }},
    {"layer-norm-backward",
     [] {
       Tensor x = leaf({256, 320}), w = leaf({320}), b = leaf({320});
       return backwards({x, w, b}, [=] { return layer_norm(x, w, b, 1e-6); });
     }},
    {"rms-norm",
     [] {
       Tensor x = normal({256, 1024}), w = normal({1024});
       return [=] { rms_norm(x, w, 1e-6); };
     }},
    {"group-norm-silu-backward",
     [] {
       Tensor x = leaf({1, 16, 16, 320}), w = leaf({320}), b = leaf({320});
       return backwards({x, w, b}, [=] { return group_norm(x, w, b, 32, 1e-6, true); });
     }},
    {"softmax",
     [] {
       Tensor x = normal({128, 1024});
       return [=] { softmax(x); };
     }},
    {"gelu",
     [] {
       Tensor x = normal({1 << 17});
       return [=] { gelu(x); };
     }},
    {"gelu-bf16",
     [] {
       Tensor x = cast(normal({1 << 17}), DType::bf16);
       return [=] { gelu(x); };
     }},
    {"geglu-backward",
     [] {
       Tensor x = leaf({64, 2048});
       return backwards({x}, [=] { return geglu(x); });
     }},
    {"cross-entropy-backward",
     [] {
       Tensor x = leaf({16, 8192}), labels = ids({16}, 8192);
       return [=] {
         backward({cross_entropy(x, labels)});
         x.clear_grad();
       };
     }},
    {"rope",
     [] {
       Tensor x = normal({1, 128, 8, 64}), positions = ids({1, 128}, 128);
       return [=] { rope(x, positions); };
     }},
    {"embedding-backward",
     [] {
       Tensor table = leaf({512, 256}), rows = ids({512}, 512);
       return backwards({table}, [=] { return embedding(table, rows); });
     }},
    {"linear-backward",
     [] {
       Tensor x = leaf({96, 320}), w = leaf({256, 320});
       return backwards({x, w}, [=] { return linear(x, w); });
     }},
    {"convolution-backward",
     [] {
       Tensor x = leaf({1, 16, 16, 32}), w = leaf({64, 3, 3, 32});
       return backwards({x, w}, [=] { return conv2d(x, w, {}, {.pad_left = 1, .pad_right = 1, .pad_top = 1, .pad_bottom = 1}); });
     }},
    {"depthwise",
     [] {
       Tensor x = normal({1, 16, 16, 64}), w = normal({64, 7, 7, 1});
       return [=] {
         conv2d(x, w, {}, {.pad_left = 3, .pad_right = 3, .pad_top = 3, .pad_bottom = 3, .groups = 64});
       };
     }},
    {"linear-few-rows",
     [] {
       Tensor x = normal({2, 1024}), w = normal({1024, 1024});
       return [=] { linear(x, w); };
     }},
    {"linear-int8",
     [] {
       Tensor x = normal({1, 1024}), w = quantize(normal({256, 1024}), 8, 32, true);
       return [=] { quantized_linear(x, w, 8, 32, true, {}); };
     }},
    {"linear-int4",
     [] {
       Tensor x = normal({1, 1024}), w = quantize(normal({256, 1024}), 4, 32, true);
       return [=] { quantized_linear(x, w, 4, 32, true, {}); };
     }},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const Kernel& k : kernels) std::puts(k.name);
    return 0;
  }
  for (const Kernel& k : kernels)
    if (argc == 3 && !std::strcmp(argv[1], k.name)) {
      auto run = k.make();
      run();  // what is built once
      for (int i = std::atoi(argv[2]); i > 0; i--) run();
      return 0;
    }
  std::fprintf(stderr, "deem-guard [NAME TIMES]\n");
  return 2;
}
