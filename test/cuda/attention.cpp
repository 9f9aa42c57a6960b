// attention on cuda against the CPU's kernel, which works in f32 throughout.
#include "attention_case.h"

namespace deem::test {
namespace {

// Of 16-bit types, weights are rounded before they meet the values: twice the contract's tolerance.
double tolerance(DType t) { return t == DType::f32 ? 2e-6 : t == DType::bf16 ? 0x1p-7 : 0x1p-10; }

void check(AttentionCase given, DType t) {
  const AttentionCase c = completed(given);
  Parity p(name_of(c, t));
  AttentionInputs x(p, c, t);
  const Buffer y = p.output(c.batch * c.tq * c.heads * c.dim, t), norms = p.output(c.batch * c.heads * c.tq * 2);
  p.run([&](Device d) { attention_kernel(d, {.p = x.problem(d), .y = y(d), .norms = norms(d)}); });
  close_to_largest(p, y, tolerance(t), "y");
  p.close(norms, 2e-6, "norms");
}

void check(const AttentionCase& c) {
  for (DType t : kFloats) check(c, t);
}

TEST("cuda attention: lengths and head sizes") {
  for (int64_t dim : {1, 8, 20, 32, 40, 64, 80, 96, 128, 160})
    for (int64_t length : {1, 5, 63, 64, 65, 130}) check({.tq = length, .dim = dim, .causal = (length + dim) % 2 == 0});
}

TEST("cuda attention: wider heads") {
  for (int64_t dim : {161, 192, 264}) check({.heads = 2, .tq = 65, .dim = dim, .causal = true});
}

TEST("cuda attention: padding, grouped heads") {
  for (Keep keep : {Keep::right, Keep::left, Keep::holes, Keep::nothing})
    for (bool causal : {false, true})
      for (int64_t dim : {20, 64})
        check({.batch = 2, .heads = 2, .kv_heads = 1, .tq = 66, .dim = dim, .causal = causal, .keep = keep});
}

TEST("cuda attention: cross, with a query for the whole batch") {
  for (Keep keep : {Keep::all, Keep::holes, Keep::nothing})
    for (int64_t tq : {9, 66})
      check({.batch = 2, .q_batch = 1, .heads = 2, .tq = tq, .tk = 77, .dim = 40, .keep = keep});
}

TEST("cuda attention: cached keys") {
  for (int64_t tq : {9, 65})
    check({.batch = 2, .heads = 2, .kv_heads = 1, .tq = tq, .tk = 150, .dim = 32, .causal = true, .keep = Keep::left});
}

TEST("cuda attention: layouts") {
  for (Layout layout : {Layout::heads, Layout::interleaved, Layout::odd})
    for (int64_t dim : {20, 40})
      for (int64_t length : {9, 66})
        check({.batch = 2, .heads = 2, .tq = length, .dim = dim, .causal = true, .keep = Keep::left, .layout = layout});
}

TEST("cuda attention: scale") {
  for (double scale : {-0.5, 2.0})
    for (int64_t length : {3, 70}) check({.tq = length, .dim = 16, .causal = true, .scale = scale});
}

// Parts of keys, more rows than a block takes, and rows that see nothing of some parts.
TEST("cuda attention: few queries") {
  for (int64_t tq : {1, 2, 3, 8})
    for (int64_t tk : {40, 270}) {
      check({.batch = 2, .tq = tq, .tk = tk, .dim = 64, .causal = true, .keep = Keep::left});
      check({.heads = 6, .kv_heads = 2, .tq = tq, .tk = tk, .dim = 20, .causal = true, .layout = Layout::odd});
    }
  for (int64_t dim : {1, 8, 40, 80, 96, 128, 160, 264, 512})
    check({.batch = 2, .heads = 4, .kv_heads = 1, .tq = 1, .tk = 200, .dim = dim, .keep = Keep::nothing});
  for (int64_t heads : {8, 12}) check({.heads = heads, .kv_heads = 1, .tq = 2, .tk = 131, .dim = 32, .causal = true});
  check({.tq = 4, .tk = 150, .dim = 1030});  // wider than that kernel
}

TEST("cuda attention: no norms") {
  for (DType t : kFloats)
    for (int64_t length : {2, 20}) {
      Parity p("no norms");
      const AttentionCase c = completed({.tq = length, .dim = 16});
      AttentionInputs x(p, c, t);
      const Buffer y = p.output(c.tq * c.dim, t);
      p.run([&](Device d) { attention_kernel(d, {.p = x.problem(d), .y = y(d), .norms = nullptr}); });
      close_to_largest(p, y, tolerance(t), "y");
    }
}

}  // namespace
}  // namespace deem::test
