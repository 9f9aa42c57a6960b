// y = softmax(scale * q k^T) v over the visible keys, head by head, in tiles: the softmax is kept as a running maximum and sum,
// and the backward pass works the probabilities out again from the saved logarithm of each query's sum.
// With P the probabilities, ds = P * (dy v^T - dy.y): dv = P^T dy, dk = scale ds^T q, dq = scale ds k.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<AttentionArgs> attention_kernel{"attention"};
constinit Kernel<AttentionBackwardArgs> attention_backward_kernel{"attention_backward"};

static void check_operands(const Tensor& q, const Tensor& k, const Tensor& v, double scale) {
  check<ShapeError>(q.ndim() == 4, "[attention] q must be [B, Tq, H, D] but has shape ", q.shape());
  check<ShapeError>(k.ndim() == 4, "[attention] k must be [B, Tk, Hkv, D] but has shape ", k.shape());
  check<ShapeError>(v.shape() == k.shape(), "[attention] v must have the shape of k, ", k.shape(), ", but has ",
                    v.shape());
  check<ShapeError>(q.size(3) == k.size(3) && q.size(3) > 0,
                    "[attention] q and k must share a head size but have shapes ", q.shape(), " and ", k.shape());
  check<ShapeError>(q.size(0) == k.size(0) || q.size(0) == 1,
                    "[attention] q must have the batch of k or 1 but the shapes are ", q.shape(), " and ", k.shape());
  check<ShapeError>(k.size(2) > 0 && q.size(2) % k.size(2) == 0,
                    "[attention] the heads of k must divide those of q but there are ", k.size(2), " and ", q.size(2));
  check<ShapeError>(k.size(1) > 0, "[attention] k needs at least one key but has shape ", k.shape());
  check<ShapeError>(std::max(q.size(1), k.size(1)) < (int64_t(1) << 30), "[attention] too many tokens in ", q.shape(),
                    " and ", k.shape());
  check<DTypeError>(is_float(q.dtype()), "[attention] q must be floating but is ", q.dtype());
  check<DTypeError>(k.dtype() == q.dtype() && v.dtype() == q.dtype(),
                    "[attention] q, k and v must share a dtype but are ", q.dtype(), ", ", k.dtype(), " and ",
                    v.dtype());
  check<ValueError>(std::isfinite(scale), "[attention] scale must be finite but is ", scale);
  check_same_device("attention", {q, k, v});
}

// See AttentionProblem::plan. `keep` may be null: all keys.
template <class T>
static void plan_row(const T* keep, int64_t tq, int64_t tk, bool causal, int32_t* plan) {
  int32_t count = 0, *order = plan + 1, *seen = order + tk;
  for (int64_t t = 0; t < tk; t++) {
    if (!keep || keep[t] != 0) order[count++] = int32_t(t);
    if (causal && t >= tk - tq) seen[t - (tk - tq)] = count;
  }
  if (!causal) std::fill_n(seen, tq, count);
  std::fill(order + count, seen, 0);
  plan[0] = count;
}

Tensor attention_plan(const MaybeTensor& keep_in, int64_t tq, int64_t tk, bool causal, Device device) {
  check<ShapeError>(!causal || tq <= tk, "[attention] causal needs at least as many keys as queries but got ", tk,
                    " and ", tq);
  if (keep_in) {
    check<ShapeError>(keep_in->ndim() == 2 && keep_in->size(1) == tk, "[attention] keep must be [B, ", tk,
                      "] but has shape ", keep_in->shape());
    check<DTypeError>(keep_in->dtype() == DType::u8 || keep_in->dtype() == DType::i64,
                      "[attention] keep must be u8 or i64 but is ", keep_in->dtype());
  }
  Tensor keep = keep_in ? on_host(*keep_in) : Tensor();
  int64_t rows = keep ? keep.size(0) : 1, width = 1 + tk + tq;
  Tensor plan = Tensor::empty({rows, width}, DType::i32);
  for (int64_t b = 0; b < rows; b++) {
    int32_t* to = plan.data<int32_t>() + b * width;
    if (!keep) plan_row<uint8_t>(nullptr, tq, tk, causal, to);
    else if (keep.dtype() == DType::u8) plan_row(keep.data<uint8_t>() + b * tk, tq, tk, causal, to);
    else plan_row(keep.data<int64_t>() + b * tk, tq, tk, causal, to);
  }
  return plan.to(device);
}

static HeadRows head_rows(const Tensor& x, bool broadcast = false) {
  return {x.raw(), broadcast ? 0 : x.strides()[0], x.strides()[1], x.strides()[2]};
}

static int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Fills in what depends on the number of threads of a CPU: chunks small enough that all have work, and scratch for each of them.
static Tensor schedule(AttentionProblem& p, bool backward, Device device) {
  p.workers = p.chunk = p.scratch_stride = 0;
  p.scratch = nullptr;
  if (device != Device::cpu) return {};
  int64_t tokens = backward ? p.tk : p.tq, heads = p.batches * (backward ? p.kv_heads : p.heads);
  int64_t step = std::max(kAttentionPanel, kAttentionKeys), longest = backward ? std::max(p.tq, p.tk) : p.tq;
  bool small = p.batches * p.heads * p.tq * p.tk * p.dim < 32768;
  p.workers = small ? 1 : num_threads();
  p.chunk = std::min(kAttentionChunk, round_up(longest, step));
  while (p.chunk > step && heads * ((tokens + p.chunk - 1) / p.chunk) < 2 * p.workers)
    p.chunk = round_up(p.chunk / 2, step);

  int64_t row = round_up(p.dim, 16), tile = kAttentionKeys * kAttentionPanel;
  if (backward) {
    p.scratch_stride = 5 * p.chunk * row + kAttentionPanel * (7 * row + 4) + 4 * tile + 2 * row;
  } else {
    p.scratch_stride = p.chunk * (2 * row + 2) + 3 * kAttentionKeys * row + 2 * tile + 2 * kAttentionPanel;
    // A single query takes all heads of one head of keys at once.
    if (p.tq == 1) p.scratch_stride = p.heads / p.kv_heads * (2 * row + kAttentionKeys + 2);
  }
  p.scratch_stride = round_up(p.scratch_stride, 16);
  Tensor scratch = Tensor::empty({p.workers, p.scratch_stride});
  p.scratch = scratch.data<float>();
  return scratch;
}

struct Saved {
  Tensor q, k, v, y, norms, plan;
  AttentionProblem problem;
};

static Tensors attention_backward(const Tensor& dy, const Saved& s, Needs needs) {
  AttentionProblem p = s.problem;
  Device device = s.q.device();
  Tensor scratch = schedule(p, true, device), dq, dq_sum;
  if (needs[0]) {
    dq = Tensor::empty(s.q.shape(), p.dtype, device);
    dq_sum = p.dtype == DType::f32 && s.q.size(0) == p.batches
                 ? dq
                 : Tensor::empty({p.batches, p.tq, p.heads, p.dim}, DType::f32, device);
  }
  Tensor dk = needs[1] ? Tensor::empty(s.k.shape(), p.dtype, device) : Tensor();
  Tensor dv = needs[2] ? Tensor::empty(s.v.shape(), p.dtype, device) : Tensor();
  attention_backward_kernel(device, {.p = p,
                                     .dy = dy.raw(),
                                     .y = s.y.raw(),
                                     .norms = s.norms.data<float>(),
                                     .dq_sum = dq ? dq_sum.data<float>() : nullptr,
                                     .dq = dq ? dq.raw() : nullptr,
                                     .q_batches = s.q.size(0),
                                     .dk = dk ? dk.raw() : nullptr,
                                     .dv = dv ? dv.raw() : nullptr});
  return {dq, dk, dv};
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& keep,
                 const AttentionOptions& options) {
  check_operands(q, k, v, options.scale);
  if (keep)
    check<ShapeError>(keep->shape() == Shape{k.size(0), k.size(1)}, "[attention] keep must be [", k.size(0), ", ",
                      k.size(1), "] but has shape ", keep->shape());
  return planned_attention(q, k, v, attention_plan(keep, q.size(1), k.size(1), options.causal, q.device()),
                           options.scale);
}

Tensor planned_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& plan, double scale) {
  check_operands(q_in, k_in, v_in, scale);
  check<DeviceError>(plan.device() == q_in.device(), "[attention] the plan is on ", name_of(plan.device()),
                     " but q on ", name_of(q_in.device()));
  check<ShapeError>(plan.ndim() == 2 && (plan.size(0) == 1 || plan.size(0) == k_in.size(0)) &&
                        plan.size(1) == 1 + k_in.size(1) + q_in.size(1),
                    "[attention] a plan of shape ", plan.shape(), " does not fit ", q_in.size(1), " queries and ",
                    k_in.size(1), " keys");
  auto rows = [](const Tensor& x) { return x.strides()[3] == 1 ? x : contiguous(x); };
  Tensor q = rows(q_in), k = rows(k_in), v = rows(v_in);
  AttentionProblem p{};
  p.batches = k.size(0), p.heads = q.size(2), p.kv_heads = k.size(2);
  p.tq = q.size(1), p.tk = k.size(1), p.dim = q.size(3), p.dtype = q.dtype();
  p.scale = scale == 0 ? float(1 / std::sqrt(double(p.dim))) : float(scale);
  p.plan = plan.data<int32_t>();
  p.plan_stride = plan.size(0) == 1 ? 0 : plan.size(1);
  p.q = head_rows(q, q.size(0) == 1);
  p.k = head_rows(k);
  p.v = head_rows(v);

  Device device = q.device();
  Tensor y = Tensor::empty({p.batches, p.tq, p.heads, p.dim}, p.dtype, device);
  bool tracked = any_tracked({q, k, v});
  Tensor norms = tracked ? Tensor::empty({p.batches, p.heads, p.tq, 2}, DType::f32, device) : Tensor();
  if (y.numel() > 0) {
    Tensor scratch = schedule(p, false, device);
    attention_kernel(device, {.p = p, .y = y.raw(), .norms = tracked ? norms.data<float>() : nullptr});
  }
  // The result is saved detached: it must not own the graph that owns it.
  Saved saved{q, k, v, y.detach(), norms, plan, p};
  return record("attention", y, {q, k, v},
                [saved](const Tensor& dy, Needs needs) { return attention_backward(dy, saved, needs); });
}

}  // namespace deem
