// f16 matrix products on tensor cores: their own file, so that compilers work on the types side by side.
#include "cuda/gemm_mma.cuh"

namespace deem::cuda {

void gemm_f16(GemmProblem p) { mma_product<__half>(p, DType::f16); }

}  // namespace deem::cuda
