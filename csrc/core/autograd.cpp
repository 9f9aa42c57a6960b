#include "core/autograd.h"

#include <algorithm>
#include <atomic>
#include <queue>
#include <unordered_map>

#include "core/engine.h"
#include "core/rng.h"
#include "ops.h"

namespace deem {

struct Edge {
  std::shared_ptr<Node> node;        // the operation that made the input,
  std::shared_ptr<TensorImpl> leaf;  // or the leaf it is; neither where no gradient is wanted
};

struct Node {
  const char* op;
  uint64_t order;  // larger is later; a node's inputs are always smaller
  Shape shape;     // of the value
  std::vector<Edge> edges;
  uint64_t needs = 0;
  BackwardFn backward;

  ~Node();
};

namespace {

thread_local bool grad_on = true;
std::atomic<uint64_t> next_order{1};

// Dropping a long graph must not recurse once per operation: nodes that die are queued and freed in a loop.
thread_local std::vector<std::shared_ptr<Node>>* graveyard = nullptr;

void bury(std::vector<Edge>& edges) {
  if (graveyard) {
    for (Edge& e : edges)
      if (e.node && e.node.use_count() == 1) graveyard->push_back(std::move(e.node));
    return;
  }
  std::vector<std::shared_ptr<Node>> pending;
  graveyard = &pending;
  for (Edge& e : edges)
    if (e.node) pending.push_back(std::move(e.node));
  while (!pending.empty()) {
    std::shared_ptr<Node> n = std::move(pending.back());
    pending.pop_back();
  }
  graveyard = nullptr;
}

// sum += g, in place where nobody else can see the sum.
void accumulate(Tensor& sum, Tensor g) {
  if (!sum) {
    sum = std::move(g);
    return;
  }
  if (sum.impl_ptr().use_count() == 1 && sum.impl()->storage.use_count() == 1 && sum.is_contiguous()) add_(sum, g);
  else sum = add(sum, g);
}

}  // namespace

Node::~Node() {
  backward = nullptr;  // saved tensors may hold graphs of their own
  bury(edges);
}

bool grad_enabled() { return grad_on; }
GradMode::GradMode(bool enabled) : before_(grad_on) { grad_on = enabled; }
GradMode::~GradMode() { grad_on = before_; }

bool any_tracked(const Tensors& inputs) {
  return grad_on && std::any_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.tracked(); });
}

static Tensor record_always(const char* op, Tensor y, const Tensors& inputs, BackwardFn backward) {
  check<ValueError>(inputs.size() <= 64, "[", op, "] record() takes at most 64 inputs but got ", inputs.size());
  auto node = std::make_shared<Node>();
  node->op = op;
  node->order = next_order.fetch_add(1, std::memory_order_relaxed);
  node->shape = y.shape();
  node->edges.resize(inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    if (!inputs[i].tracked()) continue;
    node->needs |= uint64_t(1) << i;
    if (inputs[i].impl()->node) node->edges[i].node = inputs[i].impl()->node;
    else node->edges[i].leaf = inputs[i].impl_ptr();
  }
  node->backward = std::move(backward);
  y.impl()->node = std::move(node);
  return y;
}

Tensor record(const char* op, Tensor y, const Tensors& inputs, BackwardFn backward) {
  poll_cancel();
  if (!any_tracked(inputs)) return y;
  return record_always(op, std::move(y), inputs, std::move(backward));
}

Tensor no_gradient(const char* op, Tensor y, const Tensors& inputs) {
  poll_cancel();
  if (any_tracked(inputs))
    throw NoGradient(str("[", op, "] has no gradient but got a tensor that wants one; detach it first"));
  return y;
}

void backward(const Tensors& roots, const Tensors& seeds) {
  check<ValueError>(seeds.empty() || seeds.size() == roots.size(), "[backward] got ", roots.size(), " tensors but ",
                    seeds.size(), " gradients");
  GradMode off(false);
  auto later = [](const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) { return a->order < b->order; };
  std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, decltype(later)> ready(later);
  std::unordered_map<Node*, Tensor> pending;

  auto deliver = [&](const std::shared_ptr<Node>& node, TensorImpl* leaf, Tensor g) {
    if (leaf) {
      check<ShapeError>(g.shape() == leaf->shape, "[backward] a gradient of shape ", g.shape(),
                        " reached a leaf of shape ", leaf->shape);
      check<DeviceError>(g.device() == leaf->storage->device, "[backward] a gradient on ", name_of(g.device()),
                         " reached a leaf on ", name_of(leaf->storage->device));
      Tensor sum = leaf->grad ? Tensor(std::move(leaf->grad)) : Tensor();
      // From the second part on in f32: of many small batches, rounding every sum to bf16 would lose most.
      if (sum) {
        sum = cast(sum, DType::f32);
        g = cast(g, DType::f32);
      }
      // The leaf's own copy must not alias another tensor that is still in use.
      bool fresh = !sum && (g.impl_ptr().use_count() > 1 || g.impl()->storage.use_count() > 1 || !g.is_contiguous());
      accumulate(sum, fresh ? g.clone() : std::move(g));
      leaf->grad = sum.impl_ptr();
      return;
    }
    auto [it, first] = pending.try_emplace(node.get());
    if (first) ready.push(node);
    accumulate(it->second, std::move(g));
  };

  for (size_t i = 0; i < roots.size(); i++) {
    const Tensor& y = roots[i];
    check<NoGradient>(y.tracked(), "[backward] tensor ", i, " does not depend on anything that wants a gradient");
    Tensor g = seeds.empty() ? Tensor() : seeds[i];
    if (!g) {
      check<ShapeError>(y.numel() == 1, "[backward] a gradient must be given for a tensor of shape ", y.shape());
      g = Tensor::full(y.shape(), 1, y.dtype(), y.device());
    }
    check<ShapeError>(g.shape() == y.shape(), "[backward] gradient of shape ", g.shape(), " for a tensor of shape ",
                      y.shape());
    check<DTypeError>(g.dtype() == y.dtype(), "[backward] gradient is ", g.dtype(), " but the tensor is ", y.dtype());
    deliver(y.impl()->node, y.impl()->node ? nullptr : y.impl(), contiguous(g.detach()).to(y.device()));
  }

  while (!ready.empty()) {
    poll_cancel();
    std::shared_ptr<Node> node = ready.top();
    ready.pop();
    auto it = pending.find(node.get());
    Tensor dy = contiguous(it->second);
    pending.erase(it);
    check<ValueError>(node->backward != nullptr, "[backward] the graph of ", node->op, " was already used and freed");
    BackwardFn fn = std::move(node->backward);
    node->backward = nullptr;
    Tensors grads = fn(dy, Needs(node->needs));
    fn = nullptr;  // free what was saved before going on
    dy = Tensor();
    check<ValueError>(grads.size() == node->edges.size(), "[", node->op, "] backward returned ", grads.size(),
                      " gradients for ", node->edges.size(), " inputs");
    for (size_t i = 0; i < grads.size(); i++) {
      Edge& e = node->edges[i];
      if (!e.node && !e.leaf) continue;
      check<NoGradient>(grads[i].defined(), "[", node->op, "] has no gradient for input ", i);
      Tensor g = std::move(grads[i]);
      deliver(e.node, e.node ? nullptr : e.leaf.get(), std::move(g));
    }
    bury(node->edges);
    node->edges.clear();
  }
}

Tensor checkpoint(const std::function<Tensor(const Tensors&)>& fn, const Tensors& inputs, bool trains_parameters) {
  if (!grad_on || !(trains_parameters || any_tracked(inputs))) return fn(inputs);
  RngState draws = rng_state();
  Tensor y;
  {
    GradMode off(false);
    y = fn(inputs);
  }
  if (y.impl_ptr().use_count() > 1) y = y.detach();  // fn may have returned one of its inputs
  return record_always("checkpoint", y, inputs, [fn, inputs, draws](const Tensor& dy, Needs needs) {
    RngState after = rng_state();
    set_rng_state(draws);
    Tensors leaves(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++) {
      if (!inputs[i]) continue;
      leaves[i] = inputs[i].detach();
      if (needs[i]) leaves[i].set_requires_grad(true);
    }
    {
      GradMode on(true);
      Tensor again = fn(leaves);
      set_rng_state(after);
      if (again.tracked()) backward({again}, {dy});
    }
    Tensors grads(inputs.size());
    for (size_t i = 0; i < inputs.size(); i++)
      if (needs[i])
        grads[i] = leaves[i].grad() ? cast(leaves[i].grad(), inputs[i].dtype())
                                    : Tensor::zeros(inputs[i].shape(), inputs[i].dtype(), inputs[i].device());
    return grads;
  });
}

}  // namespace deem
