// From logits to tokens: rules that change a row's scores, and the ways to pick from them. Rows are f32, V ids.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "models/module.h"

namespace deem {

// What is allowed and preferred, the same for all rows unless it says otherwise. Applied in this order.
struct ChoiceRules {
  std::vector<int64_t> banned;                // ids that must not come now
  std::vector<std::vector<int64_t>> allowed;  // per row the only ids that may; no rows: all, an empty row: all
  std::vector<int64_t> bias_ids;              // added to the scores
  std::vector<double> bias;
  double repetition_penalty;  // above 1 makes ids that a row holds less likely (Keskar et al., CTRL, 2019)

  // Reads banned, allowed, bias_ids, bias, repetition_penalty; checks ids against V and rows.
  static ChoiceRules read(const Config& c, int64_t rows, int64_t vocabulary);
  // `held`: ids the row holds
  void apply(std::span<float> scores, int64_t row, std::span<const int64_t> held) const;
};

// What is drawn from. temperature 0: the best id, nothing is drawn.
struct Sampling {
  double temperature;
  int64_t top_k;  // 0: all
  double top_p;   // the fewest best ids whose probabilities reach it (Holtzman et al. 2020); 1: all
  double min_p;   // ids at least this likely beside the best one (Nguyen et al. 2024); 0: all

  static Sampling read(const Config& c);  // temperature, top_k, top_p, min_p
  // The id of one row. `draw` in [0, 1) decides.
  int64_t pick(std::span<const float> scores, double draw) const;
};

// log softmax in place; the sum in double
void log_softmax(std::span<float> row);
// The n largest, best first, of equals the lower index first.
std::vector<int64_t> largest(std::span<const float> values, int64_t n);

}  // namespace deem
