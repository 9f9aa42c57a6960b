// One training step: forward, backward and, unless gradients are being accumulated, the optimizer.
#pragma once
#include "models/module.h"
#include "train/adamw.h"

namespace deem {

struct StepOptions {
  double lr_factor = 1;         // multiplies every group's learning rate
  double loss_scale = 1;        // multiplies the loss before the backward pass: 1 / n when accumulating n batches
  double grad_scale = 0;        // as AdamW::step's; multiplies the loss too. 0: none
  uint64_t seed = 0, step = 0;  // dropout and stochastic depth draw from (seed, step)
};

// Calls model.call(method), runs backward from its output "loss", and, if an optimizer is given, takes its step and clears
// the gradients. Returns every scalar output and "grad_norm" (before clipping; absent without an optimizer; with a grad_scale not
// finite where the step was left out because gradients overflowed). On any error
// all gradients are dropped, those of earlier calls too: accumulation starts anew. A loss that is not finite throws
// ValueError.
std::map<std::string, double> train_step(Model& model, const std::string& method, const TensorMap& inputs,
                                         const Json& options, AdamW* optimizer, const StepOptions& step);

// Moments, step counts and f32 master weights by parameter name, as safetensors.
void save_optimizer(AdamW& optimizer, const std::string& path);
void load_optimizer(AdamW& optimizer, const std::string& path);

}  // namespace deem
