// Each wrapper of cuda/ptx.cuh once, for scripts/cuda.mjs: in the PTX of this file every instruction must stand as often as here.
#include "cuda/ptx.cuh"

namespace deem::cuda {

__global__ void probe(float* out, const uint32_t* in) {
  DEEM_SHARED(uint32_t, shared, 512);
  uint32_t* room = shared + threadIdx.x * 4;
  cp_async_16(room, in, threadIdx.x < 5);
  cp_async_8(room + 128, in, true);
  cp_async_4(room + 256, in, true);
  cp_async_commit();
  cp_async_wait<1>();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t a[4], t[4], b[2], c[2];
  ldmatrix_x4(a, room);
  ldmatrix_x4_trans(t, room);
  ldmatrix_x2(b, room);
  ldmatrix_x2_trans(c, room);
  float d[4] = {};
  int32_t n[4] = {};
  mma_bf16(d, a, b);
  mma_f16(d, t, c);
  const uint32_t rounded[2] = {to_tf32(d[0]), c[1]};
  mma_tf32(d, a, rounded);
  mma_s8(n, t, b);
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = float(n[i]) + d[i];
  out[512] = exp2_approx(d[0]);
  out[513] = rcp_approx(d[1]);
}

}  // namespace deem::cuda
