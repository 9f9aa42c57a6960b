#include "models/sampler.h"

#include <algorithm>
#include <cmath>

namespace deem {

static bool is_euler(const std::string& kind) { return kind == "euler" || kind == "euler_ancestral"; }
static bool by_sigmas(const std::string& kind) { return kind == "dpmpp" || is_euler(kind); }

SamplerConfig SamplerConfig::read(const Config& c) {
  SamplerConfig r{c.string("sampler", "ddim"), c.positive("steps", 20), c.boolean("karras", false), c.number("eta", 0)};
  static const std::vector<std::string> known{"ddim", "ddpm", "pndm", "dpmpp", "euler", "euler_ancestral"};
  check<ConfigError>(std::find(known.begin(), known.end(), r.kind) != known.end(), "unknown sampler '", r.kind,
                     "', known are ddim, ddpm, pndm, dpmpp, euler, euler_ancestral");
  check<ConfigError>(!r.karras || by_sigmas(r.kind), "sampler '", r.kind, "' has no karras spacing");
  check<ConfigError>(r.eta == 0 || r.kind == "ddim", "sampler '", r.kind, "' takes no eta");
  check<ConfigError>(r.eta >= 0 && r.eta <= 1, "eta must be in 0..1 but is ", r.eta);
  return r;
}

// ---- plans -------------------------------------------------------------------------------------------------------------

// sqrt((1 - a) / a) of every training step: the noise beside a clean picture of scale 1.
static std::vector<double> all_sigmas(const std::vector<float>& alphas_cumprod) {
  std::vector<double> s;
  for (double a : alphas_cumprod) s.push_back(std::sqrt((1 - a) / a));
  return s;
}

static double interpolate(const std::vector<double>& table, double at) {
  size_t low = std::min(size_t(std::max(at, 0.0)), table.size() - 1), high = std::min(low + 1, table.size() - 1);
  return table[low] + (table[high] - table[low]) * (at - double(low));
}

// The training step whose noise is `sigma`, between two of them by the logarithm.
static double step_of(double sigma, const std::vector<double>& table) {
  double log_sigma = std::log(std::max(sigma, 1e-10));
  size_t above = size_t(std::upper_bound(table.begin(), table.end(), std::exp(log_sigma)) - table.begin());
  size_t low = std::min(above == 0 ? 0 : above - 1, table.size() < 2 ? 0 : table.size() - 2);
  if (table.size() < 2) return 0;
  double a = std::log(table[low]), b = std::log(table[low + 1]);
  return double(low) + std::clamp((a - log_sigma) / (a - b), 0.0, 1.0);
}

// n falling levels, evenly spaced in sigma^(1 / 7) (Karras et al., equation 5).
static std::vector<double> karras_sigmas(double lowest, double highest, int64_t n) {
  constexpr double kRho = 7;
  double a = std::pow(highest, 1 / kRho), b = std::pow(lowest, 1 / kRho);
  std::vector<double> s;
  for (int64_t i = 0; i < n; i++) s.push_back(std::pow(a + (n > 1 ? double(i) / double(n - 1) : 0) * (b - a), kRho));
  return s;
}

Sampler::Sampler(const NoiseSchedule& schedule, const SamplerConfig& config) : schedule_(schedule), config_(config) {
  int64_t n = config.steps, total = schedule.steps();
  check<ValueError>(n >= 1 && n <= total, "[sampler] steps must be 1..", total, " but is ", n);
  if (!by_sigmas(config.kind)) {
    // "leading": whole strides from the start, plus the offset of the schedule
    for (int64_t i = n - 1; i >= 0; i--)
      timesteps_.push_back(double(std::min(i * (total / n) + schedule.config().steps_offset, total - 1)));
    // PNDM looks twice where it takes its first step to.
    if (config.kind == "pndm" && n > 1) timesteps_.insert(timesteps_.begin() + 1, timesteps_[1]);
    return;
  }
  // "linspace": from the last training step to the first (the Eulers), or towards it (DPM-Solver++)
  std::vector<double> table = all_sigmas(schedule.alphas_cumprod());
  int64_t last = is_euler(config.kind) ? n - 1 : n;
  for (int64_t i = 0; i < n; i++) {
    double t = last > 0 ? double(total - 1) * double(last - i) / double(last) : double(total - 1);
    timesteps_.push_back(is_euler(config.kind) ? t : std::nearbyint(t));
    sigmas_.push_back(interpolate(table, timesteps_.back()));
  }
  if (config.karras) {
    sigmas_ = karras_sigmas(table.front(), table.back(), n);
    for (size_t i = 0; i < sigmas_.size(); i++) {
      double t = step_of(sigmas_[i], table);
      timesteps_[i] = is_euler(config.kind) ? t : std::nearbyint(t);
    }
  }
  sigmas_.push_back(0);
}

double Sampler::initial_deviation() const { return is_euler(config_.kind) ? sigmas_.front() : 1; }

bool Sampler::draws(int64_t i) const {
  if (config_.kind == "ddpm") return timesteps_.at(size_t(i)) > 0;
  if (config_.kind == "ddim") return config_.eta > 0;
  return config_.kind == "euler_ancestral" && sigmas_.at(size_t(i) + 1) > 0;
}

double Sampler::alpha_bar(int64_t t) const {
  if (t >= 0) return schedule_.alphas_cumprod()[size_t(t)];
  return schedule_.config().set_alpha_to_one ? 1.0 : schedule_.alphas_cumprod()[0];
}

std::pair<double, double> Sampler::mix(int64_t i) const {
  check<IndexError>(i >= 0 && i < evaluations(), "[sampler] evaluation ", i, " is outside 0..", evaluations() - 1);
  if (is_euler(config_.kind)) return {1, sigmas_[size_t(i)]};
  if (by_sigmas(config_.kind)) {
    double scale = 1 / std::hypot(sigmas_[size_t(i)], 1);
    return {scale, sigmas_[size_t(i)] * scale};
  }
  double a = alpha_bar(int64_t(timesteps_[size_t(i)]));
  return {std::sqrt(a), std::sqrt(1 - a)};
}

// ---- rules -------------------------------------------------------------------------------------------------------------

// a x + b y, without touching what a factor of 0 leaves out (it may be infinite).
static Tensor mixed(const Tensor& x, double a, const Tensor& y, double b) {
  if (b == 0) return mul_scalar(x, a);
  if (a == 0) return mul_scalar(y, b);
  return add(mul_scalar(x, a), mul_scalar(y, b));
}

static const Tensor& need_noise(const MaybeTensor& noise, const Tensor& x) {
  check<ValueError>(noise.has_value(), "[sampler] this step adds noise, and none was given");
  check<ShapeError>(noise->shape() == x.shape(), "[sampler] noise must be ", x.shape(), " but has shape ",
                    noise->shape());
  return *noise;
}

// The clean picture that `output` says is in x = signal * clean + noise * eps, signal^2 + noise^2 = 1.
Tensor Sampler::clean(const Tensor& x, const Tensor& output, double signal, double noise) const {
  const std::string& type = schedule_.config().prediction_type;
  if (type == "epsilon") return mixed(x, 1 / signal, output, -noise / signal);
  if (type == "v_prediction") return mixed(x, signal, output, -noise);
  return output;
}

Tensor Sampler::ddim(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const {
  int64_t t = int64_t(timesteps_[size_t(i)]);
  double a = alpha_bar(t), before = alpha_bar(t - schedule_.steps() / config_.steps);
  double signal = std::sqrt(a), dev = std::sqrt(1 - a);
  Tensor x0 = clean(x, y, signal, dev);
  Tensor eps = schedule_.config().prediction_type == "epsilon" ? y : mixed(x, 1 / dev, x0, -signal / dev);
  double added = config_.eta * std::sqrt((1 - before) / (1 - a) * (1 - a / before));
  Tensor next = mixed(x0, std::sqrt(before), eps, std::sqrt(std::max(1 - before - added * added, 0.0)));
  return draws(i) ? mixed(next, 1, need_noise(noise, x), added) : next;
}

Tensor Sampler::ddpm(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const {
  int64_t t = int64_t(timesteps_[size_t(i)]), s = t - schedule_.steps() / config_.steps;
  double a = alpha_bar(t), before = s >= 0 ? alpha_bar(s) : 1, now = a / before;
  Tensor x0 = clean(x, y, std::sqrt(a), std::sqrt(1 - a));
  Tensor mean = mixed(x0, std::sqrt(before) * (1 - now) / (1 - a), x, std::sqrt(now) * (1 - before) / (1 - a));
  if (!draws(i)) return mean;
  double variance = std::max((1 - before) / (1 - a) * (1 - now), 1e-20);
  return mixed(mean, 1, need_noise(noise, x), std::sqrt(variance));
}

Tensor Sampler::pndm(const Tensor& x_now, const Tensor& y, int64_t i) {
  int64_t stride = schedule_.steps() / config_.steps, t = int64_t(timesteps_[size_t(i)]), before = t - stride;
  Tensor x = x_now, slope;
  if (held_.defined()) {  // second look: the first step again, by the mean of both slopes
    slope = mul_scalar(add(y, history_.back()), 0.5);
    x = held_;
    held_ = {};
    before = t;
    t = std::min(t + stride, schedule_.steps() - 1);
  } else {
    if (history_.size() == 4) history_.erase(history_.begin());
    history_.push_back(y);
    // Adams-Bashforth of as many slopes as there are
    static const double kWeights[4][4] = {
        {1}, {3.0 / 2, -1.0 / 2}, {23.0 / 12, -16.0 / 12, 5.0 / 12}, {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24}};
    size_t n = history_.size();
    slope = mul_scalar(history_[n - 1], kWeights[n - 1][0]);
    for (size_t k = 1; k < n; k++) slope = add(slope, mul_scalar(history_[n - 1 - k], kWeights[n - 1][k]));
    if (i == 0 && evaluations() > 1) held_ = x;
  }
  double a = alpha_bar(t), b = alpha_bar(before);
  const std::string& type = schedule_.config().prediction_type;
  if (type == "v_prediction") slope = mixed(slope, std::sqrt(a), x, std::sqrt(1 - a));
  if (type == "sample") slope = mixed(x, 1 / std::sqrt(1 - a), slope, -std::sqrt(a / (1 - a)));
  return mixed(x, std::sqrt(b / a), slope, -(b - a) / (a * std::sqrt(1 - b) + std::sqrt(a * (1 - a) * b)));
}

Tensor Sampler::dpmpp(const Tensor& x, const Tensor& y, int64_t i) {
  auto log_snr = [](double sigma) { return -std::log(sigma); };  // half of it
  double now = sigmas_[size_t(i)], next = sigmas_[size_t(i) + 1];
  double scale_now = 1 / std::hypot(now, 1), scale = 1 / std::hypot(next, 1);
  Tensor x0 = clean(x, y, scale_now, now * scale_now);
  double decay = next > 0 ? next / now : 0;  // exp(-h)
  Tensor out = mixed(x, decay * scale / scale_now, x0, scale * (1 - decay));
  if (!history_.empty() && next > 0) {
    double h = log_snr(next) - log_snr(now), r = (log_snr(now) - log_snr(sigmas_[size_t(i) - 1])) / h;
    // Repeated levels (more steps than the schedule can tell apart) have no slope.
    if (r > 0 && std::isfinite(r)) out = mixed(out, 1, sub(x0, history_.back()), scale * (1 - decay) / (2 * r));
  }
  history_ = {x0};
  return out;
}

Tensor Sampler::euler(const Tensor& x, const Tensor& y, int64_t i, const MaybeTensor& noise) const {
  double now = sigmas_[size_t(i)], next = sigmas_[size_t(i) + 1], down = next, up = 0;
  if (config_.kind == "euler_ancestral") {
    up = std::sqrt(next * next * (now * now - next * next) / (now * now));
    down = std::sqrt(next * next - up * up);
  }
  double root = std::hypot(now, 1);  // x / root has variance 1, as the denoiser knows it
  Tensor x0 = clean(mul_scalar(x, 1 / root), y, 1 / root, now / root);
  Tensor out = mixed(x, down / now, x0, 1 - down / now);
  return up > 0 ? mixed(out, 1, need_noise(noise, x), up) : out;
}

Tensor Sampler::scale_input(const Tensor& x, int64_t i) const {
  check<IndexError>(i >= 0 && i < evaluations(), "[sampler] evaluation ", i, " is outside 0..", evaluations() - 1);
  return is_euler(config_.kind) ? mul_scalar(x, 1 / std::hypot(sigmas_[size_t(i)], 1)) : x;
}

void Sampler::start(int64_t i) {
  check<IndexError>(i >= 0 && i < evaluations(), "[sampler] evaluation ", i, " is outside 0..", evaluations() - 1);
  history_.clear();
  held_ = {};
  next_ = i;
}

Tensor Sampler::step(const Tensor& x, const Tensor& output, int64_t i, const MaybeTensor& noise) {
  GradMode off(false);
  check<ValueError>(i == next_ && i < evaluations(), "[sampler] evaluation ", i, " was given but ", next_,
                    " is next of ", evaluations());
  check<ShapeError>(x.shape() == output.shape(), "[sampler] the denoiser's output must be ", x.shape(),
                    " but has shape ", output.shape());
  auto run = [&] {
    if (config_.kind == "ddim") return ddim(x, output, i, noise);
    if (config_.kind == "ddpm") return ddpm(x, output, i, noise);
    if (config_.kind == "pndm") return pndm(x, output, i);
    if (config_.kind == "dpmpp") return dpmpp(x, output, i);
    return euler(x, output, i, noise);
  };
  Tensor next = run();
  next_ = i + 1;  // a call that threw may be made again
  return next;
}

// ---- model -------------------------------------------------------------------------------------------------------------

namespace {

Tensor table(const std::vector<double>& v) {
  Tensor t = Tensor::empty({int64_t(v.size())});
  std::copy(v.begin(), v.end(), t.data<float>());
  return t;
}

// A sampler alone, for a denoiser of the caller's own.
struct SamplerModel : Model {
  NoiseSchedule schedule;
  Sampler sampler;

  // {scheduler, sampler?, steps?, karras?, eta?}
  SamplerModel(const Json& config, const BuildOptions& build)
      : Model(build),
        schedule(NoiseScheduleConfig::read(Config(config, "sampler").child("scheduler"))),
        sampler(schedule, read(Config(config, "sampler"))) {}

  static SamplerConfig read(const Config& c) {
    SamplerConfig r = SamplerConfig::read(c);
    c.ignore("scheduler");
    c.finish();
    return r;
  }

  // plan: -> timesteps [E], sigmas [E + 1] or empty, initial_deviation, betas, alphas_cumprod. start: {evaluation?}.
  // scale_input: sample {evaluation} -> sample. step: sample, output, noise? {evaluation} -> sample. add_noise: latent, noise, t
  // -> noisy, velocity. consistency_timesteps: t -> t as the consistency loss draws them.
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    Config o(options, "options");
    if (method == "plan") {
      o.finish();
      return {{"timesteps", table(sampler.timesteps())},
              {"sigmas", table(sampler.sigmas())},
              {"initial_deviation", Tensor::full({}, sampler.initial_deviation())},
              {"betas", table({schedule.betas().begin(), schedule.betas().end()})},
              {"alphas_cumprod", table({schedule.alphas_cumprod().begin(), schedule.alphas_cumprod().end()})}};
    }
    if (method == "add_noise") {
      o.finish();
      const Tensor &latent = input(inputs, "latent"), &noise = input(inputs, "noise"), &t = input(inputs, "t");
      return {{"noisy", schedule.add_noise(latent, noise, t)}, {"velocity", schedule.velocity(latent, noise, t)}};
    }
    if (method == "consistency_timesteps") {
      o.finish();
      return {{"t", sniffer_timesteps(input(inputs, "t"))}};
    }
    int64_t i = o.integer("evaluation", 0);
    o.finish();
    if (method == "start") {
      sampler.start(i);
      return {};
    }
    if (method == "scale_input") return {{"sample", sampler.scale_input(input(inputs, "sample"), i)}};
    if (method == "step")
      return {{"sample",
               sampler.step(input(inputs, "sample"), input(inputs, "output"), i, optional_input(inputs, "noise"))}};
    unknown_method("sampler", method);
  }
};

std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<SamplerModel>(config, build);
}
const RegisterModel r{"sampler", make};

}  // namespace

}  // namespace deem
