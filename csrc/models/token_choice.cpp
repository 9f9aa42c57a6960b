#include "models/token_choice.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace deem {

ChoiceRules ChoiceRules::read(const Config& c, int64_t rows, int64_t vocabulary) {
  ChoiceRules r{c.integers("banned", std::vector<int64_t>{}), c.id_lists("allowed"),
                c.integers("bias_ids", std::vector<int64_t>{}), c.numbers("bias", std::vector<double>{}),
                c.number("repetition_penalty", 1)};
  check<ConfigError>(r.allowed.empty() || int64_t(r.allowed.size()) == rows, "config '", c.path(),
                     ".allowed' must have a list for each of ", rows, " rows but has ", r.allowed.size());
  check<ConfigError>(r.bias_ids.size() == r.bias.size(), "config '", c.path(), ".bias' must have a number for each of ",
                     r.bias_ids.size(), " ids but has ", r.bias.size());
  check<ConfigError>(r.repetition_penalty > 0, "config '", c.path(), ".repetition_penalty' must be positive but is ",
                     r.repetition_penalty);
  auto check_ids = [&](const std::vector<int64_t>& ids) {
    for (int64_t id : ids)
      check<IndexError>(id >= 0 && id < vocabulary, "[choice] id ", id, " is outside 0..", vocabulary - 1);
  };
  check_ids(r.banned);
  check_ids(r.bias_ids);
  for (auto& ids : r.allowed) check_ids(ids);
  return r;
}

void ChoiceRules::apply(std::span<float> scores, int64_t row, std::span<const int64_t> held) const {
  for (int64_t id : banned) scores[size_t(id)] = -INFINITY;
  if (!allowed.empty() && !allowed[size_t(row)].empty()) {
    std::vector<float> kept;
    for (int64_t id : allowed[size_t(row)]) kept.push_back(scores[size_t(id)]);
    std::fill(scores.begin(), scores.end(), -INFINITY);
    for (size_t i = 0; i < kept.size(); i++) scores[size_t(allowed[size_t(row)][i])] = kept[i];
  }
  for (size_t i = 0; i < bias_ids.size(); i++) scores[size_t(bias_ids[i])] += float(bias[i]);
  if (repetition_penalty == 1) return;
  for (int64_t id : held) {  // each id once
    float& s = scores[size_t(id)];
    s = s > 0 ? float(s / repetition_penalty) : float(s * repetition_penalty);
  }
}

Sampling Sampling::read(const Config& c) {
  Sampling s{c.number("temperature", 0), c.integer("top_k", 0), c.number("top_p", 1), c.number("min_p", 0)};
  auto in = [&](const char* key, bool ok, const char* range, double v) {
    check<ConfigError>(ok, "config '", c.path(), ".", key, "' must be ", range, " but is ", v);
  };
  in("temperature", s.temperature >= 0, "at least 0", s.temperature);
  in("top_k", s.top_k >= 0, "at least 0", double(s.top_k));
  in("top_p", s.top_p > 0 && s.top_p <= 1, "above 0 and at most 1", s.top_p);
  in("min_p", s.min_p >= 0 && s.min_p <= 1, "in 0..1", s.min_p);
  return s;
}

int64_t Sampling::pick(std::span<const float> scores, double draw) const {
  auto best = std::max_element(scores.begin(), scores.end());
  check<ValueError>(*best > -INFINITY, "[choice] the rules leave no id to choose");
  if (temperature == 0) return best - scores.begin();
  // Candidates best first, so that every rule cuts the tail. Without a rule the order of the ids does as well.
  std::vector<int64_t> ids;
  bool all = top_k == 0 && top_p == 1;
  if (all) {
    ids.resize(scores.size());
    std::iota(ids.begin(), ids.end(), int64_t(0));
  } else {
    ids = largest(scores, top_k == 0 ? int64_t(scores.size()) : std::min(top_k, int64_t(scores.size())));
  }
  std::vector<double> weight;
  double sum = 0;
  for (int64_t id : ids) {
    weight.push_back(std::exp((double(scores[size_t(id)]) - double(*best)) / temperature));
    sum += weight.back();
  }
  size_t count = ids.size();
  if (top_p < 1) {
    double reached = 0;
    for (size_t i = 0; i < count; i++)
      if ((reached += weight[i]) >= top_p * sum) count = i + 1;
  }
  double total = 0;
  for (size_t i = 0; i < count; i++) {
    if (weight[i] < min_p) weight[i] = 0;  // the best one has weight 1
    total += weight[i];
  }
  double target = draw * total;
  size_t last = 0;
  for (size_t i = 0; i < count; i++) {
    if (weight[i] == 0) continue;
    last = i;
    if ((target -= weight[i]) < 0) break;
  }
  return ids[last];
}

void log_softmax(std::span<float> row) {
  float most = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(double(v - most));
  double base = double(most) + std::log(sum);
  for (float& v : row) v = float(double(v) - base);
}

std::vector<int64_t> largest(std::span<const float> values, int64_t n) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), int64_t(0));
  auto before = [&](int64_t a, int64_t b) {
    float x = values[size_t(a)], y = values[size_t(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + n, order.end(), before);
  order.resize(size_t(n));
  return order;
}

}  // namespace deem
