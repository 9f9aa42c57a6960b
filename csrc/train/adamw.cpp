// g = clip * gradient; p *= 1 - lr * wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
// p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps), clip = min(1, max_grad_norm / (norm + 1e-6)).
#include "train/adamw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <unordered_map>

#include "ops.h"
#include "ops/device.h"
#include "ops/view.h"
#include "train/adamw_kernel.h"

namespace deem {

constinit Kernel<AdamWArgs> adamw_squares_kernel{"adamw_squares"};
constinit Kernel<AdamWArgs> adamw_update_kernel{"adamw_update"};

static constexpr int64_t kPiece = 32768;

static bool at_least_zero(double v) { return v >= 0 && std::isfinite(v); }

AdamW::AdamW(std::vector<Item> items, const Options& options) : items_(std::move(items)), options_(options) {
  auto& o = options_;
  check<ValueError>(o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1,
                    "[adamw] betas must be in [0, 1) but are ", o.beta1, " and ", o.beta2);
  check<ValueError>(at_least_zero(o.eps), "[adamw] eps must not be negative but is ", o.eps);
  check<ValueError>(at_least_zero(o.max_grad_norm), "[adamw] max_grad_norm must not be negative but is ",
                    o.max_grad_norm);
  std::set<std::string> names;
  std::set<const TensorImpl*> tensors;
  for (const Item& item : items_) {
    const Tensor& p = item.parameter;
    check<ValueError>(p.defined(), "[adamw] '", item.name, "' has no tensor");
    check<DTypeError>(is_float(p.dtype()), "[adamw] '", item.name, "' must be floating but is ", p.dtype());
    check<ValueError>(p.is_contiguous() && !p.impl()->node, "[adamw] '", item.name, "' must be a contiguous leaf");
    check<ValueError>(at_least_zero(item.lr), "[adamw] the learning rate of '", item.name,
                      "' must not be negative but is ", item.lr);
    check<ValueError>(at_least_zero(item.weight_decay), "[adamw] the decay of '", item.name,
                      "' must not be negative but is ", item.weight_decay);
    check<ValueError>(names.insert(item.name).second, "[adamw] two parameters are named '", item.name, "'");
    check<ValueError>(tensors.insert(p.impl()).second, "[adamw] '", item.name, "' is listed twice");
    auto zeros = [&] { return Tensor::zeros(p.shape(), DType::f32, p.device()); };
    states_.push_back({item.name, zeros(), zeros(), 0, {}});
  }
  for (const Item& item : items_)  // last: a constructor that throws has changed nothing
    if (!master(item.parameter)) item.parameter.drop_master();
}

// The f32 copy that updates go to, made where it is missing; none where the parameter itself takes them.
Tensor AdamW::master(const Tensor& parameter) const {
  if (parameter.dtype() == DType::f32 || !options_.master_weights) return {};
  parameter.keep_master();
  return parameter.master();
}

// Of all gradients; waits for the device.
static double sum_squares(AdamWArgs args, const std::vector<AdamWSegment>& segments, Device device) {
  int64_t pieces = (args.total + args.piece - 1) / args.piece;
  Tensor squares = Tensor::empty({pieces}, DType::i64, device);  // doubles, which are no dtype
  Uploaded list(segments, device);
  args.segments = list.data();
  args.squares = static_cast<double*>(squares.raw());
  adamw_squares_kernel(device, args);
  squares = squares.to(Device::cpu);
  const double* of_piece = static_cast<const double*>(squares.raw());
  return std::accumulate(of_piece, of_piece + pieces, 0.0);
}

double AdamW::step(double lr_factor, double grad_scale) {
  check<ValueError>(at_least_zero(lr_factor), "[adamw] the learning rate's factor must not be negative but is ",
                    lr_factor);
  check<ValueError>(at_least_zero(grad_scale), "[adamw] the scale of the gradients must be positive but is ",
                    grad_scale);
  const bool scaled = grad_scale > 0;
  const double unscale = scaled ? 1 / grad_scale : 1;
  std::vector<AdamWSegment> segments;
  std::vector<size_t> which;
  Tensors held;  // keeps masters and contiguous copies of gradients alive
  int64_t total = 0;
  for (size_t i = 0; i < items_.size(); i++) {
    const Tensor& p = items_[i].parameter;
    Tensor g = p.grad();
    if (!g) continue;
    check<DeviceError>(p.device() == items_[0].parameter.device(), "[adamw] '", items_[i].name, "' is on ",
                       name_of(p.device()), " but '", items_[0].name, "' on ", name_of(items_[0].parameter.device()));
    held.push_back(master(p));
    held.push_back(contiguous(g));
    p.drop_packed();
    const State& s = states_[i];
    const Tensor& w = held[held.size() - 2];
    double t = double(s.step + 1), lr = items_[i].lr * lr_factor;
    segments.push_back({.parameter = p.raw(),
                        .gradient = held.back().raw(),
                        .exp_avg = s.exp_avg.data<float>(),
                        .exp_avg_sq = s.exp_avg_sq.data<float>(),
                        .master = w ? w.data<float>() : nullptr,
                        .begin = total,
                        .end = total + p.numel(),
                        .decay = float(1 - lr * items_[i].weight_decay),
                        .step_size = float(lr / (1 - std::pow(options_.beta1, t))),
                        .denominator = float(1 / std::sqrt(1 - std::pow(options_.beta2, t))),
                        .dtype = p.dtype(),
                        .gradient_dtype = g.dtype()});
    which.push_back(i);
    total += p.numel();
  }
  if (segments.empty()) return 0;
  Device device = items_[which[0]].parameter.device();
  AdamWArgs args{.segments = nullptr,
                 .count = int64_t(segments.size()),
                 .total = total,
                 .piece = kPiece,
                 .squares = nullptr,
                 .beta2 = float(options_.beta2),
                 .rest1 = float(1 - options_.beta1),
                 .rest2 = float(1 - options_.beta2),
                 .eps = float(options_.eps),
                 .clip = 1};
  double norm = std::sqrt(sum_squares(args, segments, device)) * unscale;
  if (!std::isfinite(norm)) {
    if (scaled) return norm;
    for (size_t k = 0; k < segments.size(); k++) {
      AdamWSegment one = segments[k];
      one.end -= one.begin;
      one.begin = 0;
      AdamWArgs alone = args;
      alone.count = 1;
      alone.total = one.end;
      check<ValueError>(std::isfinite(sum_squares(alone, {one}, device)), "[adamw] the gradient of '",
                        items_[which[k]].name, "' is not finite");
    }
    throw ValueError("[adamw] the norm of the gradients is not finite");
  }
  double clip = options_.max_grad_norm > 0 ? std::min(1.0, options_.max_grad_norm / (norm + 1e-6)) : 1;
  args.clip = float(clip * unscale);
  Uploaded list(segments, device);
  args.segments = list.data();
  adamw_update_kernel(device, args);
  for (size_t i : which) states_[i].step++;
  return norm;
}

void AdamW::zero_grad() {
  for (const Item& item : items_) item.parameter.clear_grad();
}

std::vector<AdamW::State> AdamW::state() const {
  std::vector<State> all = states_;
  for (size_t i = 0; i < all.size(); i++) all[i].master = master(items_[i].parameter);
  return all;
}

// Whether the parameter holds what its master rounds to, bit by bit.
static bool rounds_to(const Tensor& master, const Tensor& parameter) {
  Tensor rounded = cast(contiguous(master.detach()).to(Device::cpu), parameter.dtype());
  Tensor own = parameter.detach().to(Device::cpu);
  return std::memcmp(rounded.raw(), own.raw(), own.nbytes()) == 0;
}

void AdamW::load_state(const std::vector<State>& state) {
  std::unordered_map<std::string, const State*> given;
  for (const State& s : state)
    check<WeightsError>(given.emplace(s.name, &s).second, "[adamw] '", s.name, "' is given twice");
  auto fits = [](const Tensor& t, const Tensor& like) {
    return t && t.dtype() == DType::f32 && t.shape() == like.shape();
  };
  std::vector<State> before = this->state();
  for (size_t i = 0; i < before.size(); i++) {  // everything is checked before anything changes
    const State& own = before[i];
    auto found = given.find(own.name);
    check<WeightsError>(found != given.end(), "[adamw] the state lacks '", own.name, "'");
    const State& s = *found->second;
    check<WeightsError>(fits(s.exp_avg, own.exp_avg) && fits(s.exp_avg_sq, own.exp_avg), "[adamw] the moments of '",
                        s.name, "' must be f32 of shape ", own.exp_avg.shape());
    check<WeightsError>(!own.master || s.master, "[adamw] the state lacks the f32 master weights of '", s.name, "'");
    check<WeightsError>(own.master || !s.master, "[adamw] the state has f32 master weights of '", s.name,
                        "', for which this optimizer has no use");
    check<WeightsError>(!s.master || fits(s.master, own.master), "[adamw] the master weights of '", s.name,
                        "' must be f32 of shape ", own.exp_avg.shape());
    check<WeightsError>(!s.master || rounds_to(s.master, items_[i].parameter), "[adamw] the master weights of '",
                        s.name,
                        "' do not round to its weights: these are to be loaded first, from the same checkpoint");
    check<WeightsError>(s.step >= 0, "[adamw] the step count of '", s.name, "' must not be negative but is ", s.step);
  }
  check<WeightsError>(given.size() == states_.size(), "[adamw] the state has ", given.size(),
                      " parameters but the optimizer ", states_.size());
  auto copy = [](const Tensor& from, const Tensor& to) { copy_into(to, from.detach().to(to.device())); };
  for (size_t i = 0; i < before.size(); i++) {
    const State& s = *given.at(before[i].name);
    copy(s.exp_avg, before[i].exp_avg);
    copy(s.exp_avg_sq, before[i].exp_avg_sq);
    if (s.master) copy(s.master, before[i].master);
    states_[i].step = s.step;
  }
}

}  // namespace deem
