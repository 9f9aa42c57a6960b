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
  uint32_t a[4], t[4];
  ldmatrix_x4(a, room);
  ldmatrix_x4_trans(t, room);
  float d[4] = {};
  const uint32_t b[2] = {t[0], t[1]};
  mma_bf16(d, a, b);
  mma_f16(d, t, b);
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
  out[512] = exp2_approx(d[0]);
}

}  // namespace deem::cuda
