// attention_backward on cuda against the CPU's kernel, both from the CPU's result and norms.
#include "attention_case.h"

namespace deem::test {
namespace {

// Of 16-bit types, probabilities and their gradients are rounded before they are summed.
double tolerance(DType t) { return t == DType::f32 ? 1e-5 : t == DType::bf16 ? 0x1p-7 : 0x1p-10; }

struct Wanted {
  bool q = true, k = true, v = true;
};

void check(AttentionCase given, DType t, Wanted wanted = {}) {
  const AttentionCase c = completed(given);
  Parity p(name_of(c, t));
  AttentionInputs x(p, c, t);
  const int64_t queries = c.tq * c.heads * c.dim, keys = c.batch * c.tk * c.kv_heads * c.dim;
  const Buffer dy = p.random(c.batch * queries, t), y = p.zeros(c.batch * queries, t),
               norms = p.zeros(c.batch * c.heads * c.tq * 2);
  const Buffer dq_sum = p.output(c.batch * queries), dq = p.output(c.q_batch * queries, t);
  const Buffer dk = p.output(keys, t), dv = p.output(keys, t);
  attention_kernel(Device::cpu, {.p = x.problem(Device::cpu), .y = y(Device::cpu), .norms = norms(Device::cpu)});
  const bool same = t == DType::f32 && c.q_batch == c.batch;  // then dq is its own sum
  p.run([&](Device d) {
    AttentionBackwardArgs a{};
    a.p = x.problem(d);
    a.dy = dy(d), a.y = y(d), a.norms = norms(d);
    if (wanted.q) a.dq = dq(d), a.dq_sum = same ? static_cast<float*>(dq(d)) : static_cast<float*>(dq_sum(d));
    a.q_batches = c.q_batch;
    if (wanted.k) a.dk = dk(d);
    if (wanted.v) a.dv = dv(d);
    attention_backward_kernel(d, a);
  });
  if (wanted.q) close_to_largest(p, dq, tolerance(t), "dq");
  if (wanted.k) close_to_largest(p, dk, tolerance(t), "dk");
  if (wanted.v) close_to_largest(p, dv, tolerance(t), "dv");
}

void check(const AttentionCase& c) {
  for (DType t : kFloats) check(c, t);
}

TEST("cuda attention_backward: lengths and head sizes") {
  for (int64_t dim : {1, 8, 20, 32, 40, 64, 80, 96, 128, 160})
    for (int64_t length : {1, 5, 63, 64, 65, 130}) check({.tq = length, .dim = dim, .causal = (length + dim) % 2 == 0});
}

TEST("cuda attention_backward: wider heads") {
  for (int64_t dim : {161, 264}) check({.heads = 2, .tq = 65, .dim = dim, .causal = true});
}

TEST("cuda attention_backward: padding, grouped heads") {
  for (Keep keep : {Keep::right, Keep::left, Keep::holes, Keep::nothing})
    for (bool causal : {false, true})
      for (int64_t dim : {20, 64})
        check({.batch = 2, .heads = 2, .kv_heads = 1, .tq = 66, .dim = dim, .causal = causal, .keep = keep});
}

TEST("cuda attention_backward: cross, with a query for the whole batch") {
  for (Keep keep : {Keep::all, Keep::holes, Keep::nothing})
    for (int64_t tq : {3, 66})
      check({.batch = 3, .q_batch = 1, .heads = 2, .tq = tq, .tk = 77, .dim = 40, .keep = keep});
}

TEST("cuda attention_backward: cached keys") {
  for (int64_t tq : {1, 9, 65})
    check({.batch = 2, .heads = 2, .kv_heads = 1, .tq = tq, .tk = 150, .dim = 32, .causal = true, .keep = Keep::left});
}

TEST("cuda attention_backward: layouts") {
  for (Layout layout : {Layout::heads, Layout::interleaved, Layout::odd})
    for (int64_t dim : {20, 40})
      for (int64_t length : {9, 66})
        check({.batch = 2, .heads = 2, .tq = length, .dim = dim, .causal = true, .keep = Keep::left, .layout = layout});
}

TEST("cuda attention_backward: no queries") { check({.batch = 2, .tq = 0, .tk = 5, .dim = 8}); }

TEST("cuda attention_backward: some gradients only") {
  for (DType t : kFloats)
    for (int wanted = 1; wanted < 8; wanted++)
      for (int64_t length : {10, 70})
        check({.batch = 2, .q_batch = wanted % 2 ? 1 : 2, .tq = length, .dim = 24, .scale = -0.3}, t,
              {.q = (wanted & 1) != 0, .k = (wanted & 2) != 0, .v = (wanted & 4) != 0});
}

}  // namespace
}  // namespace deem::test
