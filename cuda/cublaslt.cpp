#include "cuda/cublaslt.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <map>

#include "cuda/runtime.h"

namespace deem::cuda {

namespace {

#define DEEM_CUBLASLT_FUNCTIONS(X) \
  X(Create)                        \
  X(MatmulDescCreate)              \
  X(MatmulDescSetAttribute)        \
  X(MatrixLayoutCreate)            \
  X(MatrixLayoutSetAttribute)      \
  X(MatmulPreferenceCreate)        \
  X(MatmulPreferenceSetAttribute)  \
  X(MatmulPreferenceDestroy)       \
  X(MatmulAlgoGetHeuristic)        \
  X(Matmul)

struct Library {
#define DEEM_MEMBER(name) decltype(&::cublasLt##name) name = nullptr;
  DEEM_CUBLASLT_FUNCTIONS(DEEM_MEMBER)
#undef DEEM_MEMBER
  cublasLtHandle_t handle = nullptr;
};

#ifdef DEEM_CUDA_EMULATED
bool fill(Library& lib) {
#define DEEM_TAKE(name) lib.name = &::cublasLt##name;
  DEEM_CUBLASLT_FUNCTIONS(DEEM_TAKE)
#undef DEEM_TAKE
  return true;
}
#else
// Opaque structures are made and read by the library alone, so that either version does.
bool fill(Library& lib) {
  void* so = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
    if (!so) so = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!so) return false;
  bool all = true;
#define DEEM_TAKE(name)                                                         \
  lib.name = reinterpret_cast<decltype(lib.name)>(dlsym(so, "cublasLt" #name)); \
  all = all && lib.name;
  DEEM_CUBLASLT_FUNCTIONS(DEEM_TAKE)
#undef DEEM_TAKE
  return all;
}
#endif

const Library* library() {
  static const Library* const found = []() -> const Library* {
    static Library lib;  // stays, as CUDA itself does
    if (!fill(lib) || lib.Create(&lib.handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
    return &lib;
  }();
  return found;
}

cudaDataType_t type_of(DType t) { return t == DType::f32 ? CUDA_R_32F : t == DType::bf16 ? CUDA_R_16BF : CUDA_R_16F; }

// A matrix as cuBLAS sees it, column by column: `rows` contiguous elements, `cols` times, `stride` apart. What is stored here is the
// transpose of one of our operands, or (flipped) the operand itself.
struct Columns {
  int64_t rows, cols, stride;
  bool flipped;
};
Columns columns_of(const GemmOperand& o) {
  // With both strides 1 there is one row, or one element a row.
  const bool by_rows = o.col_stride == 1 && (o.row_stride != 1 || o.rows == 1);
  if (by_rows) return {o.cols, o.rows, o.rows == 1 ? o.cols : o.row_stride, false};
  return {o.rows, o.cols, o.cols == 1 ? o.rows : o.col_stride, true};
}

// What a problem needs besides its pointers. Plans are kept for good: models have few shapes, and generation pads none of its own.
struct Plan {
  bool usable = false;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algo{};
  size_t workspace = 0;
};

uint32_t alignment(const void* p, int64_t element) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  for (uint32_t bytes : {256u, 16u, 8u, 4u})
    if (address % bytes == 0) return bytes;
  return uint32_t(element);
}

// Throws nothing: whatever the library refuses, our own kernels do.
class Planner {
 public:
  explicit Planner(const Library& lib) : lib_(lib) {}
  bool good() const { return good_; }
  void need(cublasStatus_t status) { good_ = good_ && status == CUBLAS_STATUS_SUCCESS; }

  template <class V>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what, const V& value) {
    if (good_) need(lib_.MatmulDescSetAttribute(desc, what, &value, sizeof value));
  }
  template <class V>
  void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what, const V& value) {
    if (good_) need(lib_.MatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
  }
  cublasLtMatrixLayout_t layout(DType type, int64_t rows, int64_t cols, int64_t stride, int64_t batch, int64_t step) {
    cublasLtMatrixLayout_t made = nullptr;
    good_ = good_ && stride >= rows;
    if (good_) need(lib_.MatrixLayoutCreate(&made, type_of(type), uint64_t(rows), uint64_t(cols), stride));
    if (good_ && batch > 1) {
      const int32_t count = int32_t(batch);
      need(lib_.MatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
      need(lib_.MatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step));
    }
    return made;
  }

 private:
  const Library& lib_;
  bool good_ = true;
};

// Rows of ours are columns there: c^T = b^T a^T, and the bias runs along the columns of c^T.
Plan make_plan(const Library& lib, const GemmArgs& g) {
  constexpr uint64_t kMostWorkspace = 32 << 20;
  Plan plan;
  Planner p(lib);
  const Columns left = columns_of(g.b), right = columns_of(g.a);
  plan.a = p.layout(g.dtype, left.rows, left.cols, left.stride, g.batch, g.b.step);
  plan.b = p.layout(g.dtype, right.rows, right.cols, right.stride, g.batch, g.a.step);
  plan.c = p.layout(g.c_dtype, g.b.cols, g.a.rows, g.c_row_stride, g.batch, g.a.rows * g.c_row_stride);
  if (p.good()) p.need(lib.MatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  p.set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, int32_t(left.flipped ? CUBLAS_OP_T : CUBLAS_OP_N));
  p.set(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, int32_t(right.flipped ? CUBLAS_OP_T : CUBLAS_OP_N));
  if (g.bias) {
    p.set(plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t(CUBLASLT_EPILOGUE_BIAS));
    p.set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
  }
  cublasLtMatmulPreference_t preference = nullptr;
  if (p.good()) p.need(lib.MatmulPreferenceCreate(&preference));
  const int64_t element = int64_t(size_of(g.dtype));
  p.set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMostWorkspace);
  // Parts of k are added up in f32 and in a fixed order.
  p.set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  p.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b.data, element));
  p.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a.data, element));
  p.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c, int64_t(size_of(g.c_dtype))));
  p.set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.c, int64_t(size_of(g.c_dtype))));
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  if (p.good())
    p.need(lib.MatmulAlgoGetHeuristic(lib.handle, plan.product, plan.a, plan.b, plan.c, plan.c, preference, 1, &best,
                                      &found));
  if (preference) lib.MatmulPreferenceDestroy(preference);
  plan.usable = p.good() && found == 1 && best.state == CUBLAS_STATUS_SUCCESS;
  plan.algo = best.algo;
  plan.workspace = best.workspaceSize;
  return plan;
}

}  // namespace

bool cublaslt_gemm(const GemmArgs& g) {
  const char* set = std::getenv("DEEM_CUBLASLT");
  if (set && set[0] == '0') return false;
  const Library* lib = library();
  // The bias that it adds has the type of c.
  if (!lib || g.a.cols == 0 || (g.bias && g.c_dtype != g.dtype)) return false;
  const int64_t element = int64_t(size_of(g.dtype));
  using Key = std::array<int64_t, 18>;
  // Of the engine's thread, which alone calls kernels. Never destroyed: the handles in it stay with the library.
  static std::map<Key, Plan>& plans = *new std::map<Key, Plan>;
  const Key key{g.batch,
                g.a.rows,
                g.a.cols,
                g.b.cols,
                g.a.row_stride,
                g.a.col_stride,
                g.a.step,
                g.b.row_stride,
                g.b.col_stride,
                g.b.step,
                g.c_row_stride,
                g.bias ? alignment(g.bias, element) : 0,
                int64_t(g.dtype),
                int64_t(g.c_dtype),
                alignment(g.a.data, element),
                alignment(g.b.data, element),
                alignment(g.c, int64_t(size_of(g.c_dtype)))};
  auto [at, fresh] = plans.try_emplace(key);
  if (fresh) at->second = make_plan(*lib, g);
  const Plan& plan = at->second;
  if (!plan.usable) return false;
  if (g.bias && lib->MatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g.bias, sizeof g.bias) !=
                    CUBLAS_STATUS_SUCCESS)
    return false;
  const float one = 1, zero = 0;
  Scratch<char> workspace(int64_t(plan.workspace));
  const cublasStatus_t status =
      lib->Matmul(lib->handle, plan.product, &one, g.b.data, plan.a, g.a.data, plan.b, &zero, g.c, plan.c, g.c, plan.c,
                  &plan.algo, workspace.data(), plan.workspace, stream());
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH) return false;
  check<DeviceError>(status == CUBLAS_STATUS_SUCCESS, "[gemm] cublasLtMatmul returned status ", int(status));
  return true;
}

}  // namespace deem::cuda
#else
namespace deem::cuda {
bool cublaslt_gemm(const GemmArgs&) { return false; }
}  // namespace deem::cuda
#endif
