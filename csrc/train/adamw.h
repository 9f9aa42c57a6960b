// AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization"), with a learning rate and a decay per parameter
// and clipping of the gradient's global norm before the moments see it.
#pragma once
#include <string>
#include <vector>

#include "core/tensor.h"

namespace deem {

class AdamW {
 public:
  struct Item {
    std::string name;
    Tensor parameter;
    double lr, weight_decay;
  };
  struct Options {
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    double max_grad_norm = 0;  // 0: no clipping
  };
  struct State {
    std::string name;
    Tensor exp_avg, exp_avg_sq;  // f32, the parameter's shape
    int64_t step = 0;            // updates this parameter has had
    Tensor master;               // f32 copy that the updates go to; undefined for f32 parameters
  };

  AdamW(std::vector<Item> items, const Options& options);

  // Updates every parameter that has a gradient; the others' moments and counts stay. Returns the L2 norm of all
  // gradients before clipping. Throws ValueError, changing nothing, if a gradient is not finite.
  double step(double lr_factor);
  void zero_grad();

  std::vector<State> state() const;                  // shares the moments' memory
  void load_state(const std::vector<State>& state);  // by name, all of them; throws WeightsError for what does not fit

 private:
  std::vector<Item> items_;
  Options options_;
  std::vector<State> states_;  // one per item, in their order
};

}  // namespace deem
