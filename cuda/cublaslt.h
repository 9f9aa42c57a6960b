// cuBLASLt by dlopen: nothing of it is needed to build (where its header is missing, its functions are left out) or to load.
#pragma once
#include "ops/matmul.h"

namespace deem::cuda {

// False where cuBLASLt is absent, switched off (DEEM_CUBLASLT=0) or has nothing for this problem; nothing has been queued then.
bool cublaslt_gemm(const GemmArgs& a);

}  // namespace deem::cuda
