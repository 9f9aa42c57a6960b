#include "ops/matmul.h"

#include "cpu/dnnl.h"
#include "cpu/panels.h"
#include "cpu/wide.h"

namespace deem {

constinit Kernel<PackedGemmArgs> packed_gemm_kernel{"packed_gemm"};
constinit Kernel<PanelArgs> panels_kernel{"panels"};

// A product, and how its operands lie.
struct Product {
  const GemmArgs& args;
  int64_t m, n, k;
  bool a_lines, b_lines;  // k numbers lie side by side

  explicit Product(const GemmArgs& g)
      : args(g), m(g.a.rows), n(g.b.cols), k(g.a.cols), a_lines(g.a.col_stride == 1), b_lines(g.b.row_stride == 1) {}
  RowsOf rows() const { return a_lines ? RowsOf::lines : RowsOf::across; }
  ColumnsOf columns() const { return b_lines ? ColumnsOf::lines : ColumnsOf::across; }
  PackSource a() const { return {args.a.data, a_lines ? args.a.row_stride : args.a.col_stride, args.a.step, nullptr}; }
  PackSource b() const { return {args.b.data, b_lines ? args.b.col_stride : args.b.row_stride, args.b.step, nullptr}; }
};

// Who multiplies bf16 where the machine does. What was measured by `npm run bench -- linear matmul` on Zen 5 says which.
enum class Way {
  own,  // large products: our own packing costs less than oneDNN's, a tenth of the time where operands are turned over
  panels,  // oneDNN reads b from panels that we make, or that somebody keeps
  plain,   // oneDNN reads both as they lie
};

static Way way_of(const Product& p) {
  constexpr int64_t kLeastSide = 256, kLeastDepth = 512, kLeastProducts = 300'000'000;
  constexpr int64_t kManyRows = 1024;       // among which the time to make panels is little
  constexpr int64_t kMostShared = 1 << 24;  // numbers of the smaller operand, beyond which our own takes k in parts
  constexpr int64_t kFewWeights = 1 << 19;  // of which panels take little time beside twice as many rows
  if (p.args.packed_b) return Way::panels;
  const bool even =
      p.k % 2 == 0 && (!p.a_lines || p.args.a.row_stride % 2 == 0) && (!p.b_lines || p.b().stride % 2 == 0);
  if (!even) return Way::plain;
  const bool large = p.m >= kLeastSide && p.n >= kLeastSide && p.k >= kLeastDepth && p.m * p.n * p.k >= kLeastProducts;
  const bool panels = p.args.batch == 1 && p.a_lines && p.m >= kManyRows;
  const bool in_parts = std::min(p.m, p.n) * p.k > kMostShared,
             little = p.m >= 2 * kManyRows && p.n * p.k <= kFewWeights;
  if (large && !(panels && (in_parts || little))) return Way::own;
  return panels ? Way::panels : Way::plain;
}

static void make_panels(const Product& p, void* to) {
  panels_kernel(Device::cpu, {.columns = p.columns(), .from = p.b(), .k = p.k, .n = p.n, .to = to});
}

static void onednn_product(const Product& p, Way way) {
  const GemmArgs& a = p.args;
  auto matrix = [](const GemmOperand& o) { return onednn::Matrix{o.data, o.rows, o.cols, o.row_stride, o.col_stride}; };
  onednn::Gemm g{.batch = a.batch,
                 .a = matrix(a.a),
                 .b = matrix(a.b),
                 .a_step = a.a.step,
                 .b_step = a.b.step,
                 .c_step = p.m * a.c_row_stride,
                 .c_row_stride = a.c_row_stride,
                 .bias = a.bias,
                 .c = a.c,
                 .dtype = a.dtype,
                 .c_dtype = a.c_dtype,
                 .panels = way == Way::panels};
  Scratch made;
  if (g.panels && !onednn::takes_panels(g)) g.panels = false;
  if (g.panels && !a.packed_b) {
    made.take(panel_numbers(p.k, p.n), a.dtype);
    make_panels(p, made.data());
  }
  if (g.panels) g.b.data = a.packed_b ? a.packed_b : made.data();
  onednn::gemm(g);
}

static void own_product(const Product& p, bool pairs) {
  const GemmArgs& a = p.args;
  packed_gemm_kernel(Device::cpu, {.batch = a.batch,
                                   .m = p.m,
                                   .n = p.n,
                                   .k = p.k,
                                   .rows = p.rows(),
                                   .a = p.a(),
                                   .columns = p.columns(),
                                   .b = p.b(),
                                   .bias = a.bias,
                                   .c = a.c,
                                   .c_row_stride = a.c_row_stride,
                                   .c_step = p.m * a.c_row_stride,
                                   .dtype = a.dtype,
                                   .c_dtype = a.c_dtype,
                                   .pairs = pairs});
}

static void gemm(const GemmArgs& a) {
  const Product p(a);
  if (!multiplies_short(a.dtype)) return own_product(p, false);
  const Way way = way_of(p);
  if (way == Way::own) own_product(p, true);
  else onednn_product(p, way);
}

static void prepack(const PrepackArgs& a) {
  const int64_t n = a.weight.size(0), k = a.weight.size(1);
  if (!multiplies_short(a.weight.dtype()) || k % 2 != 0) return;
  a.packed = Tensor::empty({panel_numbers(k, n)}, a.weight.dtype());
  panels_kernel(
      Device::cpu,
      {.columns = ColumnsOf::lines, .from = {a.weight.raw(), k, 0, nullptr}, .k = k, .n = n, .to = a.packed.raw()});
}

static const Register r1{gemm_kernel, Device::cpu, gemm};
static const Register r2{prepack_kernel, Device::cpu, prepack};

}  // namespace deem
