// cuBLASLt's matrix product on the emulated GPU, behind NVIDIA's own header; empty where that is not there. It refuses what the
// library refuses, so that wrong layouts show here. Sums run in f64 and are rounded once.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <cmath>
#include <cstring>

#include "cuda/emu/memory.h"
#include "cuda/emu/runtime.h"

using namespace deem::emu;

namespace {

struct Layout {
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t stride;  // elements from one column to the next; from row to row where `order` is by rows
  cublasLtOrder_t order = CUBLASLT_ORDER_COL;
  int32_t batch = 1;
  int64_t step = 0;  // elements from one matrix of the batch to the next

  bool valid() const {
    return rows && cols && batch > 0 && stride >= int64_t(order == CUBLASLT_ORDER_COL ? rows : cols);
  }
  size_t at(uint64_t row, uint64_t col) const {
    return order == CUBLASLT_ORDER_COL ? row + col * uint64_t(stride) : col + row * uint64_t(stride);
  }
  size_t elements() const { return at(rows - 1, cols - 1) + 1 + uint64_t(batch - 1) * uint64_t(step); }
};
struct Product {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  int64_t bias_step = 0;
  int32_t bias_type = -1;  // that of d
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t align[4] = {256, 256, 256, 256};  // of a, b, c, d
};
// What an algorithm remembers of the search that found it.
struct Algorithm {
  uint64_t mark;
  uint32_t align[4];
};
constexpr uint64_t kMark = 0x6465656d626c6173;
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

size_t size_of(cudaDataType_t t) { return t == CUDA_R_32F ? 4 : t == CUDA_R_16BF || t == CUDA_R_16F ? 2 : 0; }
float read(const void* p, cudaDataType_t t, size_t i) {
  if (t == CUDA_R_32F) return static_cast<const float*>(p)[i];
  if (t == CUDA_R_16F) return __half2float(static_cast<const __half*>(p)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(p)[i]);
}
void write(void* p, cudaDataType_t t, size_t i, float v) {
  if (t == CUDA_R_32F) static_cast<float*>(p)[i] = v;
  else if (t == CUDA_R_16F) static_cast<__half*>(p)[i] = __float2half_rn(v);
  else static_cast<__nv_bfloat16*>(p)[i] = __float2bfloat16_rn(v);
}

struct Call {
  Product product;
  Layout a, b, c, d;
  const void *a_data, *b_data, *c_data;
  void* d_data;
  float alpha, beta;

  cublasStatus_t check() const {
    for (const Layout* l : {&a, &b, &c, &d})
      if (!l->valid()) return CUBLAS_STATUS_INVALID_VALUE;
    const uint64_t k = product.trans_a == CUBLAS_OP_N ? a.cols : a.rows;
    if ((product.trans_a == CUBLAS_OP_N ? a.rows : a.cols) != d.rows) return CUBLAS_STATUS_INVALID_VALUE;
    if ((product.trans_b == CUBLAS_OP_N ? b.rows : b.cols) != k) return CUBLAS_STATUS_INVALID_VALUE;
    if ((product.trans_b == CUBLAS_OP_N ? b.cols : b.rows) != d.cols) return CUBLAS_STATUS_INVALID_VALUE;
    if (c.rows != d.rows || c.cols != d.cols || c.type != d.type) return CUBLAS_STATUS_INVALID_VALUE;
    if (a.batch != d.batch || b.batch != d.batch || c.batch != d.batch) return CUBLAS_STATUS_INVALID_VALUE;
    if (a.type != b.type || !size_of(a.type) || !size_of(d.type)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d.type != a.type && d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (product.scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (product.compute != CUBLAS_COMPUTE_32F && product.compute != CUBLAS_COMPUTE_32F_FAST_TF32)
      return CUBLAS_STATUS_NOT_SUPPORTED;
    constexpr uint32_t known =
        CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_BIAS | CUBLASLT_EPILOGUE_RELU | CUBLASLT_EPILOGUE_GELU;
    if (product.epilogue & ~known) return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
  }

  // Operands as rows of k: the transposes that make both sums run along memory.
  static std::vector<float> rows_of(const Layout& l, const void* data, size_t offset, bool by_cols) {
    const uint64_t outer = by_cols ? l.cols : l.rows, k = by_cols ? l.rows : l.cols;
    std::vector<float> out(outer * k);
    for (uint64_t o = 0; o < outer; o++)
      for (uint64_t i = 0; i < k; i++)
        out[o * k + i] = read(data, l.type, offset + (by_cols ? l.at(i, o) : l.at(o, i)));
    return out;
  }

  void run() const {
    Access access;
    for (int32_t n = 0; n < d.batch; n++) {
      const auto left = rows_of(a, a_data, size_t(n * a.step), product.trans_a != CUBLAS_OP_N);
      const auto right = rows_of(b, b_data, size_t(n * b.step), product.trans_b == CUBLAS_OP_N);
      const uint64_t k = left.size() / d.rows;
      for (uint64_t col = 0; col < d.cols; col++)
        for (uint64_t row = 0; row < d.rows; row++) {
          double sum = 0;
          for (uint64_t i = 0; i < k; i++) sum += double(left[row * k + i]) * double(right[col * k + i]);
          float v = alpha * float(sum);
          if (beta != 0) v += beta * read(c_data, c.type, size_t(n * c.step) + c.at(row, col));
          write(d_data, d.type, size_t(n * d.step) + d.at(row, col), finish(v, n, row));
        }
    }
  }
  float finish(float v, int32_t n, uint64_t row) const {
    if (product.epilogue & CUBLASLT_EPILOGUE_BIAS) {
      const auto type = product.bias_type < 0 ? d.type : cudaDataType_t(product.bias_type);
      v += read(product.bias, type, size_t(n * product.bias_step) + row);
    }
    if (product.epilogue & CUBLASLT_EPILOGUE_RELU) v = v > 0 ? v : 0;
    if (product.epilogue & CUBLASLT_EPILOGUE_GELU)
      v = 0.5f * v * (1 + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));  // the library's own approximation
    return v;
  }
};

template <class T>
cublasStatus_t take(T& field, const void* value, size_t bytes) {
  if (!value || bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

template <class T, class Handle>
T& of(Handle h) {
  return *reinterpret_cast<T*>(h);
}

bool inside(const void* p, const Layout& l) {
  const Place place = place_of(p);
  return place.kind == Kind::device && l.elements() * size_of(l.type) <= place.left;
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
  static char mark;
  *handle = reinterpret_cast<cublasLtHandle_t>(&mark);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion() { return CUBLAS_VERSION; }
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "success"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "invalid value"
                                                 : "not supported";
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t stride) {
  if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, rows, cols, stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t what,
                                                const void* value, size_t bytes) {
  auto& l = of<Layout>(layout);
  switch (what) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER: {
      const cublasStatus_t status = take(l.order, value, bytes);
      return status == CUBLAS_STATUS_SUCCESS && l.order != CUBLASLT_ORDER_COL && l.order != CUBLASLT_ORDER_ROW
                 ? CUBLAS_STATUS_NOT_SUPPORTED
                 : status;
    }
    case CUBLASLT_MATRIX_LAYOUT_LD: return take(l.stride, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return take(l.batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return take(l.step, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (!product) return CUBLAS_STATUS_INVALID_VALUE;
  *product = reinterpret_cast<cublasLtMatmulDesc_t>(new Product{compute, scale});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  delete reinterpret_cast<Product*>(product);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t what,
                                              const void* value, size_t bytes) {
  auto& p = of<Product>(product);
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return take(p.trans_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return take(p.trans_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return take(p.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(p.bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE: return take(p.bias_step, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return take(p.bias_type, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t what, const void* value,
                                                    size_t bytes) {
  auto& p = of<Preference>(preference);
  switch (what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return take(p.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(p.align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(p.align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(p.align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(p.align[3], value, bytes);
    default: return value && bytes == 4 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  }
}

// One algorithm, which takes operands of the alignment that the preference promises, and some workspace to show that it gets it.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  if (!handle || !product || !a || !b || !c || !d || !preference || asked < 1 || !results || !found)
    return CUBLAS_STATUS_INVALID_VALUE;
  *found = 0;
  const Call call{
      of<Product>(product), of<Layout>(a), of<Layout>(b), of<Layout>(c), of<Layout>(d), {}, {}, {}, {}, 1, 0};
  const cublasStatus_t status = call.check();
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  const auto& p = of<Preference>(preference);
  Algorithm algorithm{kMark, {p.align[0], p.align[1], p.align[2], p.align[3]}};
  results[0] = {};
  std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
  results[0].workspaceSize = p.workspace < 1024 ? 0 : 1024;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  results[0].wavesCount = 1;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!handle || !product || !alpha || !beta || !a || !b || !d || !a_layout || !b_layout || !c_layout || !d_layout)
    return CUBLAS_STATUS_INVALID_VALUE;
  const Call call{of<Product>(product),
                  of<Layout>(a_layout),
                  of<Layout>(b_layout),
                  of<Layout>(c_layout),
                  of<Layout>(d_layout),
                  a,
                  b,
                  c,
                  d,
                  *static_cast<const float*>(alpha),
                  *static_cast<const float*>(beta)};
  const cublasStatus_t status = call.check();
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (!inside(a, call.a) || !inside(b, call.b) || !inside(d, call.d) || (call.beta != 0 && !inside(c, call.c)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if ((call.product.epilogue & CUBLASLT_EPILOGUE_BIAS) && place_of(call.product.bias).kind != Kind::device)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (algo) {
    Algorithm algorithm;
    std::memcpy(&algorithm, algo, sizeof algorithm);
    if (algorithm.mark != kMark) return CUBLAS_STATUS_INVALID_VALUE;
    const void* pointers[] = {a, b, call.beta != 0 ? c : d, d};
    for (int i = 0; i < 4; i++)
      if (algorithm.align[i] && reinterpret_cast<uintptr_t>(pointers[i]) % algorithm.align[i])
        return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (workspace_bytes && (place_of(workspace).kind != Kind::device || place_of(workspace).left < workspace_bytes))
    return CUBLAS_STATUS_INVALID_VALUE;
  const cudaError_t queued = enqueue(stream, "cublasLtMatmul", [call, workspace, workspace_bytes] {
    Access access;
    if (workspace_bytes) std::memset(workspace, 0xff, workspace_bytes);
    call.run();
  });
  return queued == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
#endif
