// bf16 matrix products on tensor cores: their own file, so that compilers work on the types side by side.
#include "cuda/gemm_mma.cuh"

namespace deem::cuda {

void gemm_bf16(GemmProblem p) { mma_product<__nv_bfloat16>(p, DType::bf16); }

}  // namespace deem::cuda
