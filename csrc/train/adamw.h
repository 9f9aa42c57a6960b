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
    double max_grad_norm = 0;    // 0: no clipping
    bool master_weights = true;  // for bf16 and f16: updates go to f32 copies, whose rounded values the parameters are
  };
  struct State {
    std::string name;
    Tensor exp_avg, exp_avg_sq;  // f32, the parameter's shape
    int64_t step = 0;            // updates this parameter has had
    Tensor master;               // as the parameter's; undefined without one
  };

  // Masters that parameters have are gone on with, others begin as what the parameters hold; without master_weights all are dropped.
  // They belong to the parameters and outlive the optimizer.
  AdamW(std::vector<Item> items, const Options& options);

  // Updates every parameter that has a gradient; the others' moments and counts stay. Returns the L2 norm of all
  // gradients before clipping. Throws ValueError, changing nothing, if a gradient is not finite.
  // grad_scale: what gradients are divided by, for losses that were multiplied by it so that small gradients stay in f16's range; then
  // ones that are not finite are no error: nothing changes and the norm is not finite. 0: neither.
  double step(double lr_factor, double grad_scale = 0);
  void zero_grad();

  std::vector<State> state() const;  // shares the moments' and masters' memory
  // By name, all of them; throws WeightsError for what does not fit, masters that the parameters are not the rounded values of included.
  void load_state(const std::vector<State>& state);

 private:
  std::vector<Item> items_;
  Options options_;
  Tensor master(const Tensor& parameter) const;

  std::vector<State> states_;  // one per item, in their order, without masters
};

}  // namespace deem
