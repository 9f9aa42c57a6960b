// What the emulated GPU does right with right programs: indices, shuffles, matrix instructions, copies.
#include <cstring>
#include <vector>

#include "cuda/ptx.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"
#include "parity.h"

namespace deem::cuda {
namespace {

using test::Failure;
using test::Parity;

__global__ void indices_kernel(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += int(block * 1000 + thread) + 1;
}

TEST("emulator: every thread of every block runs once") {
  Parity p("indices");
  auto out = p.zeros(24 * 30, DType::i32);
  p.run([&](Device d) {
    if (d == Device::cuda) return DEEM_LAUNCH(indices_kernel, dim3(2, 3, 4), dim3(5, 3, 2), 0, stream(), out(d));
    for (int b = 0; b < 24; b++)
      for (int t = 0; t < 30; t++) out.host<int>()[b * 30 + t] = b * 1000 + t + 1;
  });
  p.same(out);
}

template <int THREADS>
__global__ void reduce_kernel(const float* x, float* sums) {
  const float v = x[blockIdx.x * THREADS + threadIdx.x];
  const float sum = block_sum<THREADS>(v), most = block_max<THREADS>(v);
  const float2 two = block_sum2<THREADS>(make_float2(v, v * v));
  if (threadIdx.x == THREADS - 1) {
    sums[blockIdx.x * 4] = sum;
    sums[blockIdx.x * 4 + 1] = most;
    sums[blockIdx.x * 4 + 2] = two.x;
    sums[blockIdx.x * 4 + 3] = two.y;
  }
}

template <int THREADS>
void check_reduce() {
  Parity p(str("block of ", THREADS));
  auto x = p.random(3 * THREADS), sums = p.output(3 * 4);
  p.run([&](Device d) {
    if (d == Device::cuda)
      return DEEM_LAUNCH(reduce_kernel<THREADS>, dim3(3), dim3(THREADS), 0, stream(), x(d), sums(d));
    for (int b = 0; b < 3; b++) {
      double sum = 0, squares = 0, most = -1;
      for (int t = 0; t < THREADS; t++) {
        const double v = double(x.host<float>()[b * THREADS + t]);
        sum += v, squares += v * v, most = std::fmax(most, v);
      }
      const double all[] = {sum, most, sum, squares};
      for (int i = 0; i < 4; i++) sums.host<float>()[b * 4 + i] = float(all[i]);
    }
  });
  p.close(sums, 1e-6);
}
TEST("emulator: block reductions") {
  check_reduce<32>();
  check_reduce<64>();
  check_reduce<256>();
  check_reduce<1024>();
}

__global__ void shuffle_kernel(int* out) {
  const int l = int(threadIdx.x);
  int* o = out + l * 8;
  o[0] = __shfl_sync(~0u, l, 5);
  o[1] = __shfl_up_sync(~0u, l, 3);
  o[2] = __shfl_down_sync(~0u, l, 4);
  o[3] = __shfl_xor_sync(~0u, l, 6);
  o[4] = __shfl_xor_sync(~0u, l, 1, 8) + __shfl_down_sync(~0u, l, 5, 8);
  o[5] = int(__ballot_sync(~0u, l % 3 == 0));
  o[6] = __any_sync(~0u, l == 7) + 2 * __all_sync(~0u, l < 32) + 4 * __all_sync(~0u, l < 31);
  o[7] = l < 16 ? __shfl_sync(0xffffu, l, 2) : int(__shfl_xor_sync(0xffff0000u, double(l), 1));
}
TEST("emulator: shuffles and votes") {
  Parity p("shuffles");
  auto out = p.output(32 * 8, DType::i32);
  p.run([&](Device d) {
    if (d == Device::cuda) return DEEM_LAUNCH(shuffle_kernel, dim3(1), dim3(32), 0, stream(), out(d));
    for (int l = 0; l < 32; l++) {
      int* o = out.host<int>() + l * 8;
      o[0] = 5, o[1] = l < 3 ? l : l - 3, o[2] = l + 4 > 31 ? l : l + 4, o[3] = l ^ 6;
      o[4] = (l ^ 1) + (l % 8 + 5 > 7 ? l : l + 5);
      o[5] = 0x49249249, o[6] = 3, o[7] = l < 16 ? 2 : l ^ 1;
    }
  });
  p.same(out);
}

// One 16x8 product from row-major a [16, k] and column-major b [8, k], both through shared memory and ldmatrix.
template <class T>
__global__ void mma_kernel(const T* a, const T* b, float* d) {
  DEEM_SHARED(T, sa, 16 * 16);
  DEEM_SHARED(T, sb, 8 * 16);
  const int l = int(threadIdx.x), g = l / 4, t = l % 4;
  cp_async_16(sa + l * 8, a + l * 8, true);
  if (l < 16) cp_async_16(sb + l * 8, b + l * 8, l != 15);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t fa[4], loaded[4];
  ldmatrix_x4(fa, sa + l % 16 * 16 + l / 16 * 8);
  ldmatrix_x4(loaded, sb + l % 8 * 16 + l / 8 % 2 * 8);  // both halves twice
  const uint32_t fb[2] = {loaded[0], loaded[1]};
  float c[4] = {1, 2, 3, 4};
  if constexpr (std::is_same_v<T, __half>) mma_f16(c, fa, fb);
  else mma_bf16(c, fa, fb);
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}
template <class T, class H>
void check_mma(DType dtype) {
  Parity p(str("mma ", dtype));
  auto a = p.random(256, dtype), b = p.random(128, dtype), d = p.output(128);
  p.run([&](Device device) {
    if (device == Device::cuda)
      return DEEM_LAUNCH(mma_kernel<T>, dim3(1), dim3(32), 0, stream(), a(device), b(device), d(device));
    for (int m = 0; m < 16; m++)
      for (int n = 0; n < 8; n++) {
        double sum = 1 + m / 8 * 2 + n % 2;
        for (int k = 0; k < 16; k++)  // the last eight of b were not valid
          if (n * 16 + k < 120) sum += double(a.host<H>()[m * 16 + k]) * double(b.host<H>()[n * 16 + k]);
        d.host<float>()[m * 8 + n] = float(sum);
      }
  });
  p.close(d);
}
TEST("emulator: 16-bit matrix products through cp.async and ldmatrix") {
  check_mma<__nv_bfloat16, bf16>(DType::bf16);
  check_mma<__half, f16>(DType::f16);
}

__global__ void transpose_kernel(const uint16_t* x, uint32_t* y) {
  DEEM_SHARED(uint16_t, s, 4 * 64);
  const int l = int(threadIdx.x);
  for (int i = 0; i < 8; i++) s[l * 8 + i] = x[l * 8 + i];
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4_trans(r, s + l * 8);
  for (int i = 0; i < 4; i++) y[i * 32 + l] = r[i];
}
TEST("emulator: ldmatrix transposes") {
  Parity p("ldmatrix.trans");
  std::vector<int32_t> pairs(128);
  std::vector<uint16_t> x(256);
  for (int i = 0; i < 256; i++) x[size_t(i)] = uint16_t(i * 7 + 1);
  std::memcpy(pairs.data(), x.data(), 512);
  auto in = p.of(pairs), out = p.output(128, DType::i32);
  p.run([&](Device d) {
    if (d == Device::cuda) return DEEM_LAUNCH(transpose_kernel, dim3(1), dim3(32), 0, stream(), in(d), out(d));
    for (int m = 0; m < 4; m++)
      for (int l = 0; l < 32; l++) {
        const int row = l % 4 * 2, column = l / 4;
        out.host<int>()[m * 32 + l] = x[size_t(m * 64 + row * 8 + column)] | x[size_t(m * 64 + (row + 1) * 8 + column)]
                                                                                 << 16;
      }
  });
  p.same(out);
}

}  // namespace
}  // namespace deem::cuda
