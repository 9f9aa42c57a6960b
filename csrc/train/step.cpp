#include "train/step.h"

#include <cmath>
#include <set>

#include "core/engine.h"
#include "core/rng.h"
#include "core/safetensors.h"

namespace deem {

std::map<std::string, double> train_step(Model& model, const std::string& method, const TensorMap& inputs,
                                         const Json& options, AdamW* optimizer, const StepOptions& step) {
  std::map<std::string, double> scalars;
  try {
    check<ValueError>(std::isfinite(step.loss_scale), "[train_step] the loss's scale is ", step.loss_scale);
    check<ValueError>(step.grad_scale >= 0 && std::isfinite(step.grad_scale), "[train_step] the gradients' scale is ",
                      step.grad_scale);
    GradMode on(true);
    RngScope draws(step.seed, step.step);
    TensorMap outputs = model.call(method, placed(model.params, inputs), options);
    auto loss = outputs.find("loss");
    check<ValueError>(loss != outputs.end(), "[train_step] method '", method, "' returns no 'loss'");
    for (auto& [name, t] : outputs)
      if (t.numel() == 1) scalars[name] = t.item();
    check<ValueError>(std::isfinite(scalars["loss"]), "[train_step] the loss is ", scalars["loss"]);
    Tensor root = loss->second;
    outputs.clear();  // whatever backward does not need is freed as it goes
    double scale = step.loss_scale * (step.grad_scale > 0 ? step.grad_scale : 1);
    backward({root}, {Tensor::full(root.shape(), scale, root.dtype(), root.device())});
    root = Tensor();
    if (optimizer) {
      scalars["grad_norm"] = optimizer->step(step.lr_factor, step.grad_scale);
      optimizer->zero_grad();
    }
  } catch (...) {
    for (Parameter& p : model.params.list()) p.value.clear_grad();
    throw;
  }
  return scalars;
}

void save_optimizer(AdamW& optimizer, const std::string& path) {
  std::vector<NamedTensor> tensors;
  for (auto& s : optimizer.state()) {
    tensors.push_back({"exp_avg." + s.name, s.exp_avg});
    tensors.push_back({"exp_avg_sq." + s.name, s.exp_avg_sq});
    tensors.push_back({"step." + s.name, Tensor::full({}, double(s.step), DType::i64)});
    if (s.master) tensors.push_back({"master." + s.name, s.master});
  }
  write_safetensors(path, tensors);
}

void load_optimizer(AdamW& optimizer, const std::string& path) {
  SafetensorsFile file = SafetensorsFile::open(path);
  auto states = optimizer.state();
  std::set<std::string> known;
  for (auto& s : states) {
    for (const char* kind : {"exp_avg.", "exp_avg_sq.", "step."}) {
      check<WeightsError>(file.contains(kind + s.name), "'", path, "' lacks '", kind, s.name, "'");
      known.insert(kind + s.name);
    }
    std::string master = "master." + s.name;
    if (!s.master) continue;
    check<WeightsError>(file.contains(master), "'", path, "' lacks '", master,
                        "': it was written by an optimizer without f32 master weights");
    known.insert(master);
  }
  for (const std::string& name : file.names())
    check<WeightsError>(known.contains(name), "'", path, "' holds '", name, "', for which this optimizer has no use");
  int64_t done = 0;
  for (auto& s : states) {
    if (s.master) s.master = file.tensor("master." + s.name).clone();
    s.exp_avg = file.tensor("exp_avg." + s.name).clone();
    s.exp_avg_sq = file.tensor("exp_avg_sq." + s.name).clone();
    s.step = int64_t(file.tensor("step." + s.name).item());
    report_progress(++done, int64_t(states.size()));
    poll_cancel();
  }
  optimizer.load_state(states);
}

}  // namespace deem
