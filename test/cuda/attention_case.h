// Problems for the tests of attention's kernels: sizes, which keys are kept, and how q, k and v lie in memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "ops/attention.h"
#include "parity.h"

namespace deem::test {

enum class Keep { all, right, left, holes, nothing };   // nothing: the first row of the batch keeps no key
enum class Layout { tokens, heads, interleaved, odd };  // odd: rows at strides that no vector load can use

struct AttentionCase {
  int64_t batch = 1, q_batch = 0, heads = 1, kv_heads = 0, tq, tk = 0, dim;  // 0: as batch, heads, tq
  bool causal = false;
  Keep keep = Keep::all;
  Layout layout = Layout::tokens;
  double scale = 0;  // 0: 1 / sqrt(dim)
};

inline AttentionCase completed(AttentionCase c) {
  if (!c.q_batch) c.q_batch = c.batch;
  if (!c.kv_heads) c.kv_heads = c.heads;
  if (!c.tk) c.tk = c.tq;
  return c;
}

inline std::string name_of(const AttentionCase& c, DType t) {
  return str(deem::name_of(t), " batch ", c.batch, '/', c.q_batch, " heads ", c.heads, '/', c.kv_heads, " tq ", c.tq,
             " tk ", c.tk, " dim ", c.dim, c.causal ? " causal" : "", " keep ", int(c.keep), " layout ", int(c.layout));
}

inline bool is_kept(const AttentionCase& c, int64_t b, int64_t t) {
  switch (c.keep) {
    case Keep::all: return true;
    case Keep::right: return t < std::max<int64_t>(1, c.tk - 2 - b);
    case Keep::left: return t >= std::min(c.tk - 1, 3 + b);
    case Keep::holes: return (t * 7 + b) % 3 != 0;
    case Keep::nothing: return b > 0;
  }
  return true;
}

// As AttentionProblem::plan says.
inline std::vector<int32_t> plan_of(const AttentionCase& c) {
  std::vector<int32_t> plan;
  for (int64_t b = 0; b < (c.keep == Keep::all ? 1 : c.batch); b++) {
    std::vector<int32_t> order, seen;
    for (int64_t t = 0; t < c.tk; t++) {
      if (is_kept(c, b, t)) order.push_back(int32_t(t));
      if (c.causal && t >= c.tk - c.tq) seen.push_back(int32_t(order.size()));
    }
    const auto count = int32_t(order.size());
    seen.resize(size_t(c.tq), count);
    order.resize(size_t(c.tk), 0);
    plan.push_back(count);
    plan.insert(plan.end(), order.begin(), order.end());
    plan.insert(plan.end(), seen.begin(), seen.end());
  }
  return plan;
}

// q, k, v and the plan of a case in a Parity's buffers.
class AttentionInputs {
 public:
  AttentionInputs(Parity& p, const AttentionCase& c, DType t, double spread = 1.5) : c_(c), dtype_(t) {
    plan_ = p.of(plan_of(c));
    const int64_t all = c.heads + 2 * c.kv_heads;
    if (c.layout == Layout::interleaved) {  // [B, T, H + 2 Hkv, D]
      q_ = k_ = v_ = p.random(c.batch * c.tq * all * c.dim, t, spread);
    } else {
      q_ = p.random(c.q_batch * c.tq * pitch(c.heads) + 1, t, spread);
      k_ = p.random(c.batch * c.tk * pitch(c.kv_heads) + 1, t, spread);
      v_ = p.random(c.batch * c.tk * pitch(c.kv_heads) + 1, t, spread);
    }
    // What the CPU works in, for chunks of 256.
    const int64_t row = (c.dim + 15) / 16 * 16;
    scratch_floats_ = 5 * kAttentionChunk * row + kAttentionPanel * (7 * row + 4) +
                      8 * kAttentionKeys * kAttentionPanel + 2 * row + 3 * kAttentionKeys * row +
                      c.heads * (2 * row + kAttentionKeys + 2) + 2 * kAttentionChunk;
    scratch_floats_ = (scratch_floats_ + 15) / 16 * 16;
    scratch_.reset(static_cast<float*>(std::aligned_alloc(64, size_t(scratch_floats_) * 4)));
  }

  AttentionProblem problem(Device d) const {
    AttentionProblem p{};
    p.batches = c_.batch, p.heads = c_.heads, p.kv_heads = c_.kv_heads;
    p.tq = c_.tq, p.tk = c_.tk, p.dim = c_.dim, p.dtype = dtype_;
    p.scale = c_.scale == 0 ? float(1 / std::sqrt(double(c_.dim))) : float(c_.scale);
    p.plan = plan_(d);
    p.plan_stride = c_.keep == Keep::all ? 0 : 1 + c_.tk + c_.tq;
    const bool one = c_.layout == Layout::interleaved;
    p.q = rows(q_, d, c_.tq, c_.heads, 0, c_.q_batch == 1);
    p.k = rows(k_, d, c_.tk, c_.kv_heads, one ? c_.heads : 0, false);
    p.v = rows(v_, d, c_.tk, c_.kv_heads, one ? c_.heads + c_.kv_heads : 0, false);
    p.chunk = kAttentionChunk, p.workers = 1;
    p.scratch = d == Device::cpu ? scratch_.get() : nullptr;
    p.scratch_stride = scratch_floats_;
    return p;
  }

 private:
  int64_t pitch(int64_t heads) const { return heads * c_.dim + (c_.layout == Layout::odd ? 3 : 0); }

  HeadRows rows(const Buffer& x, Device d, int64_t tokens, int64_t heads, int64_t first, bool broadcast) const {
    const int64_t all = c_.heads + 2 * c_.kv_heads, dim = c_.dim;
    HeadRows r{};
    switch (c_.layout) {
      case Layout::tokens: r = {nullptr, tokens * heads * dim, heads * dim, dim}; break;
      case Layout::heads: r = {nullptr, tokens * heads * dim, dim, tokens * dim}; break;
      case Layout::interleaved: r = {nullptr, tokens * all * dim, all * dim, dim}; break;
      case Layout::odd: r = {nullptr, tokens * pitch(heads), pitch(heads), dim}; break;
    }
    const void* data = x(d, first * dim + (c_.layout == Layout::odd ? 1 : 0));
    r.data = data;
    if (broadcast) r.batch = 0;
    return r;
  }

  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  AttentionCase c_;
  DType dtype_;
  Buffer q_, k_, v_, plan_;
  int64_t scratch_floats_ = 0;
  std::unique_ptr<float, Free> scratch_;
};

// Relative to the largest value also where that is below 1, but not to less than a quarter: errors are of the size of what is
// summed, not of what is left where terms cancel.
inline void close_to_largest(Parity& p, const Buffer& b, double tolerance, const char* what) {
  double largest = 0;
  for (double v : b.host_values()) largest = std::max(largest, std::fabs(v));
  p.close(b, tolerance * std::min(1.0, std::max(largest, 0.25)), what);
}

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

}  // namespace deem::test
