// Tape autograd. An operation computes its value, then calls record() with its inputs and a function from the gradient of
// the value to the gradients of the inputs. Graphs hang off the tensors; there is no global tape.
#pragma once
#include <functional>
#include <vector>

#include "core/tensor.h"

namespace deem {

using Tensors = std::vector<Tensor>;

// Which inputs want a gradient, in the order given to record().
class Needs {
 public:
  explicit Needs(uint64_t bits) : bits_(bits) {}
  bool operator[](size_t i) const { return bits_ >> i & 1; }

 private:
  uint64_t bits_;
};

// dy has the value's shape and dtype and is contiguous. Returns one tensor an input; undefined where none is needed.
using BackwardFn = std::function<Tensors(const Tensor& dy, Needs needs)>;

// Returns y, now made by `op` from `inputs`. Undefined inputs (an absent bias) are allowed and get no gradient. Does
// nothing but poll for cancellation when gradients are off or no input is tracked. At most 64 inputs.
Tensor record(const char* op, Tensor y, const Tensors& inputs, BackwardFn backward);

// For operations without a gradient: throws NoGradient where record() would have recorded.
Tensor no_gradient(const char* op, Tensor y, const Tensors& inputs);

// True where record() would record: gradients are on and one of the inputs is tracked.
bool any_tracked(const Tensors& inputs);

// Gradients of sum_i sum(roots[i] * seeds[i]) into the .grad of every leaf below, added to what is there. An undefined
// seed means one, for scalar roots. Frees the graph; a second call throws ValueError. A leaf's gradient is of its dtype,
// and f32 once it was added up from two parts or more.
void backward(const Tensors& roots, const Tensors& seeds = {});

bool grad_enabled();
class GradMode {  // RAII: GradMode off(false);
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;

 private:
  bool before_;
};

// Activation checkpointing: runs fn without keeping its graph and runs it again in the backward pass. `inputs` are the
// tensors fn reads besides parameters; `trains_parameters` says whether parameters that fn captured want gradients (then
// it is recorded even if no input is tracked). Random draws repeat. fn must be a pure function of its inputs.
Tensor checkpoint(const std::function<Tensor(const Tensors&)>& fn, const Tensors& inputs, bool trains_parameters);

}  // namespace deem
