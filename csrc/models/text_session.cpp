#include "models/text_session.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/engine.h"
#include "core/rng.h"
#include "models/picture_session.h"
#include "models/token_choice.h"

namespace deem {

// Positions of new tokens: the running count of kept ones minus 1; 1 on padding, as published.
static Tensor running_positions(const Tensor& keep, int64_t begin) {
  int64_t rows = keep.size(0), length = keep.size(1);
  Tensor out = Tensor::empty({rows, length - begin}, DType::i64);
  for (int64_t b = 0; b < rows; b++) {
    const int64_t* k = keep.data<int64_t>() + b * length;
    int64_t count = 0, *to = out.data<int64_t>() + b * (length - begin);
    for (int64_t i = 0; i < length; i++) {
      count += k[i] != 0;
      if (i >= begin) *to++ = k[i] ? count - 1 : 1;
    }
  }
  return out;
}

TextSession::TextSession(std::shared_ptr<Deem> deem, const TensorMap& inputs, const Json& options)
    : Model({.dtype = deem->params.dtype()}), deem_(std::move(deem)) {
  Config o(options, "text");
  int64_t copies = o.positive("copies", 1), reserve = o.integer("reserve", 0);
  o.finish();
  check<ConfigError>(reserve >= 0, "config 'text.reserve' must not be negative but is ", reserve);
  state_.keep_hidden();
  feed(inputs, true);
  state_.reserve(state_.length() + reserve);
  if (copies == 1) return;
  Tensor order = Tensor::empty({rows() * copies}, DType::i64);
  for (int64_t i = 0; i < order.numel(); i++) order.data<int64_t>()[i] = i / copies;
  select(order);
}

// Reads prompts, or more of them.
void TextSession::feed(const TensorMap& given, bool first) {
  TensorMap inputs = placed(deem_->params, given);
  const Tensor& ids = input(inputs, "text_ids");
  check<ShapeError>(ids.ndim() == 2 && ids.size(1) > 0,
                    "[text] text_ids must be rows of at least one id but have shape ", ids.shape());
  Tensor keep = checked_keep(input(inputs, "attention_mask"), ids);
  int64_t count = ids.size(0), length = ids.size(1);
  check<ShapeError>(first || count == rows(), "[text] there are ", first ? 0 : rows(), " rows but ", count,
                    " were given");
  for (int64_t b = 0; b < count; b++)
    check<ValueError>(keep.data<int64_t>()[(b + 1) * length - 1] != 0,
                      "[text] prompts must be padded on the left, but row ", b, " ends in padding");
  Deem::Prepared p = deem_->prepare(inputs, {});
  Tensor visibility = p.visibility, all = first ? keep : cat({keep_, keep}, 1);
  bool news = p.starts.images() > 0;
  if (!first) {
    // Earlier images stay in sight until a bos.
    int64_t before = visibility_.size(2);
    Tensor old = Tensor::zeros({count, length, before}), flat = contiguous(ids);
    for (int64_t b = 0; b < count; b++) {
      bool seen = true;
      for (int64_t i = 0; i < length; i++) {
        seen = seen && flat.data<int64_t>()[b * length + i] != deem_->c_.tokens.bos;
        for (int64_t n = 0; n < before && seen; n++)
          old.data<float>()[(b * length + i) * before + n] = visibility_.data<float>()[b * before + n];
      }
    }
    visibility = cat({old, visibility}, 2);
  }
  auto shown = shown_;
  shown.resize(size_t(count));
  for (int64_t i = 0; i < p.starts.images(); i++) {
    auto& row = shown[size_t(p.starts.row[size_t(i)])];
    if (!deem_->c_.compat.whole_history) row.clear();
    row.emplace_back();
    for (size_t level = 0; level < 4; level++) row.back()[level] = slice(p.seen.maps[level], 0, i, i + 1).clone();
  }
  LlamaOutput y = deem_->llm_.forward(p.embeds, all, first || news ? MaybeTensor(p.features) : MaybeTensor(),
                                      visibility, running_positions(all, first ? 0 : keep_.size(1)), {}, &state_);
  // From here on nothing throws: a call that fails leaves the session as it was.
  visibility_ = contiguous(slice(visibility, 1, length - 1, length));
  graph_.forget();
  shown_ = std::move(shown);
  keep_ = all;
  fixed_ = state_.length();
  held_.resize(size_t(count));
  Tensor flat = contiguous(ids);
  for (int64_t b = 0; b < count; b++)
    for (int64_t i = 0; i < length; i++) {
      int64_t id = flat.data<int64_t>()[b * length + i];
      if (keep.data<int64_t>()[b * length + i] && id != deem_->c_.tokens.image) held_[size_t(b)].push_back(id);
    }
  look(y.last_hidden);
}

void TextSession::look(const Tensor& hidden) {
  int64_t last = hidden.size(1);
  Tensor logits = cast(deem_->head_(slice(hidden, 1, last - 1, last)), DType::f32);
  logits_ = contiguous(reshape(logits, {logits.size(0), logits.size(2)})).to(Device::cpu);
}

void TextSession::read_one(const Tensor& column) {
  Tensor embeds = embedding(deem_->llm_.embed_tokens, reshape(column, {rows(), 1}));
  Tensor one = Tensor::full({rows(), 1}, 1, DType::i64), all = cat({keep_, one}, 1);
  Tensor logits =
      graph_.step(deem_->llm_, deem_->head_, state_, embeds, all, running_positions(all, keep_.size(1)), visibility_);
  if (!logits) return look(forward(embeds, one));
  keep_ = all;
  logits_ = logits.to(Device::cpu);
}

// States of new text [R, n, C] with its keep [R, n].
Tensor TextSession::forward(const Tensor& embeds, const Tensor& keep) {
  Tensor all = cat({keep_, keep}, 1);
  Shape seen{rows(), embeds.size(1), visibility_.size(2)};
  Tensor hidden = deem_->llm_
                      .forward(embeds, all, {}, contiguous(broadcast_to(visibility_, seen)),
                               running_positions(all, keep_.size(1)), {}, &state_)
                      .last_hidden;
  keep_ = all;
  return hidden;
}

Tensor TextSession::peek(const Tensor& embeds, const Tensor& keep, const std::function<Tensor(const Tensor&)>& f) {
  Tensor before = keep_;
  int64_t length = state_.length();
  auto forget = [&] {
    keep_ = before;
    state_.truncate(length);
  };
  try {
    Tensor y = f(forward(embeds, keep));
    forget();
    return y;
  } catch (...) {
    forget();
    throw;
  }
}

void TextSession::select(const Tensor& order) {
  graph_.forget();
  state_.select(order);
  for (Tensor* t : {&keep_, &visibility_, &logits_})
    if (*t) *t = gather_rows(*t, order);
  std::vector<std::vector<int64_t>> held;
  std::vector<std::vector<std::array<Tensor, 4>>> shown;
  for (int64_t r : order.values<int64_t>()) held.push_back(held_[size_t(r)]), shown.push_back(shown_[size_t(r)]);
  held_ = std::move(held);
  shown_ = std::move(shown);
}

void TextSession::check_text(const Tensor& ids) const {
  for (int64_t id : ids.values<int64_t>()) {
    check<IndexError>(id >= 0 && id < deem_->c_.txt_vocab_size, "[text] id ", id, " is outside 0..",
                      deem_->c_.txt_vocab_size - 1);
    check<ValueError>(id != deem_->c_.tokens.image, "[text] image slots come with their image, by append");
  }
}

static Tensor row_ids(const Tensor& t, int64_t rows, const char* name) {
  check<ShapeError>(t.shape() == Shape{rows}, "[text] ", name, " must be [", rows, "] but has shape ", t.shape());
  check<DTypeError>(t.dtype() == DType::i64, "[text] ", name, " must be i64 but is ", t.dtype());
  return contiguous(t);
}

void TextSession::step(const TensorMap& inputs) {
  MaybeTensor order = optional_input(inputs, "rows"), ids = optional_input(inputs, "ids");
  check<ValueError>(ids || logits_, "[text] after a truncation something must be appended first");
  Tensor column = ids ? row_ids(*ids, rows(), "ids") : Tensor();
  if (column) check_text(column);
  if (order) {
    Tensor from = row_ids(*order, rows(), "rows");
    auto list = from.values<int64_t>();
    bool same = true;
    for (int64_t i = 0; i < rows(); i++) {
      check<IndexError>(list[size_t(i)] >= 0 && list[size_t(i)] < rows(), "[text] rows holds ", list[size_t(i)],
                        " but there are ", rows());
      same = same && list[size_t(i)] == i;
    }
    if (!same) select(from);
  }
  if (!column) return;
  read_one(column);
  for (int64_t r = 0; r < rows(); r++) held_[size_t(r)].push_back(column.data<int64_t>()[r]);
}

std::span<float> TextSession::row(const Tensor& t, int64_t r) const {
  return {t.data<float>() + r * t.size(1), size_t(t.size(1))};
}

// Each id once.
static std::vector<int64_t> distinct(const std::vector<int64_t>& ids) {
  std::set<int64_t> s(ids.begin(), ids.end());
  return {s.begin(), s.end()};
}

TensorMap TextSession::next(const TensorMap& inputs, const Json& options) {
  Config o(options, "next");
  ChoiceRules rules = ChoiceRules::read(o, rows(), deem_->c_.txt_vocab_size);
  Sampling sampling = Sampling::read(o);
  std::vector<int64_t> seeds = o.integers("seeds", std::vector<int64_t>{});
  int64_t alternatives = o.integer("alternatives", 0), most = deem_->c_.txt_vocab_size;
  o.finish();
  check<ConfigError>(sampling.temperature == 0 || int64_t(seeds.size()) == rows(),
                     "config 'next.seeds' must have a seed for ", "each of ", rows(), " rows but has ", seeds.size());
  check<ConfigError>(alternatives >= 0 && alternatives <= most, "config 'next.alternatives' must be 0..", most,
                     " but is ", alternatives);
  step(inputs);
  int64_t n = rows();
  Tensor ids = Tensor::empty({n}, DType::i64), log_probs = Tensor::empty({n});
  Tensor other_ids = Tensor::empty({n, alternatives}, DType::i64), other = Tensor::empty({n, alternatives});
  Tensor scores = logits_.clone(), own = logits_.clone();
  for (int64_t r = 0; r < n; r++) {
    rules.apply(row(scores, r), r, distinct(held_[size_t(r)]));
    // One number a position, from the row's own seed: neither neighbours nor the order of calls change it.
    double draw =
        seeds.empty() ? 0 : uniform01(philox(uint64_t(seeds[size_t(r)]), 0, uint64_t(held_[size_t(r)].size()))[0]);
    int64_t id = sampling.pick(row(scores, r), draw);
    log_softmax(row(own, r));
    ids.data<int64_t>()[r] = id;
    log_probs.data<float>()[r] = row(own, r)[size_t(id)];
    if (alternatives == 0) continue;
    auto best = largest(row(own, r), alternatives);
    for (int64_t k = 0; k < alternatives; k++) {
      other_ids.data<int64_t>()[r * alternatives + k] = best[size_t(k)];
      other.data<float>()[r * alternatives + k] = row(own, r)[size_t(best[size_t(k)])];
    }
  }
  return {{"ids", ids}, {"log_probs", log_probs}, {"alternative_ids", other_ids}, {"alternative_log_probs", other}};
}

TensorMap TextSession::beam(const TensorMap& inputs, const Json& options) {
  Config o(options, "beam");
  ChoiceRules rules = ChoiceRules::read(o, rows(), deem_->c_.txt_vocab_size);
  int64_t beams = o.positive("beams"), count = o.positive("count"), width = deem_->c_.txt_vocab_size;
  o.finish();
  check<ConfigError>(rows() % beams == 0, "config 'beam.beams' must divide the ", rows(), " rows but is ", beams);
  check<ConfigError>(count <= beams * width, "config 'beam.count' must be at most ", beams * width, " but is ", count);
  Tensor totals = contiguous(input(inputs, "totals").to(Device::cpu));
  check<ShapeError>(totals.shape() == Shape{rows()}, "[text] totals must be [", rows(), "] but has shape ",
                    totals.shape());
  check<DTypeError>(totals.dtype() == DType::f32, "[text] totals must be f32 but is ", totals.dtype());
  step(inputs);
  int64_t prompts = rows() / beams;
  Tensor all = logits_.clone();
  for (int64_t r = 0; r < rows(); r++) {
    log_softmax(row(all, r));
    rules.apply(row(all, r), r, distinct(held_[size_t(r)]));
    for (float& v : row(all, r)) v += totals.data<float>()[r];
  }
  Tensor scores = Tensor::empty({prompts, count}), tokens = Tensor::empty({prompts, count}, DType::i64),
         from = Tensor::empty({prompts, count}, DType::i64);
  for (int64_t p = 0; p < prompts; p++) {
    std::span<const float> own{all.data<float>() + p * beams * width, size_t(beams * width)};
    auto best = largest(own, count);
    for (int64_t k = 0; k < count; k++) {
      scores.data<float>()[p * count + k] = own[size_t(best[size_t(k)])];
      tokens.data<int64_t>()[p * count + k] = best[size_t(k)] % width;
      from.data<int64_t>()[p * count + k] = best[size_t(k)] / width;
    }
  }
  return {{"scores", scores}, {"tokens", tokens}, {"beams", from}};
}

TensorMap TextSession::score(const TensorMap& inputs) {
  Tensor ids = contiguous(input(inputs, "ids"));
  check<ShapeError>(ids.ndim() == 2 && ids.size(0) == rows() && ids.size(1) > 0, "[text] ids must be [", rows(),
                    ", n] but have shape ", ids.shape());
  check<DTypeError>(ids.dtype() == DType::i64, "[text] ids must be i64 but are ", ids.dtype());
  Tensor keep = checked_keep(input(inputs, "keep"), ids);
  check<ValueError>(logits_.defined(), "[text] after a truncation something must be appended first");
  check_text(ids);
  int64_t n = ids.size(1), width = deem_->c_.txt_vocab_size;
  Tensor out = Tensor::empty({rows(), n}), logits;
  if (n > 1) {
    Tensor embeds = embedding(deem_->llm_.embed_tokens, slice(ids, 1, 0, n - 1));
    logits = peek(embeds, slice(keep, 1, 0, n - 1), [this](const Tensor& hidden) {
      return contiguous(cast(deem_->head_(hidden), DType::f32)).to(Device::cpu);
    });
  }
  for (int64_t r = 0; r < rows(); r++)
    for (int64_t i = 0; i < n; i++) {
      int64_t at = r * n + i;
      std::vector<float> own(static_cast<size_t>(width));
      const float* from =
          i == 0 ? logits_.data<float>() + r * width : logits.data<float>() + (r * (n - 1) + i - 1) * width;
      std::copy_n(from, width, own.begin());
      log_softmax(own);
      out.data<float>()[at] = keep.data<int64_t>()[at] ? own[size_t(ids.data<int64_t>()[at])] : 0;
    }
  return {{"log_probs", out}};
}

void TextSession::truncate(int64_t length) {
  check<ValueError>(length > 0 && length >= fixed_ && length <= state_.length(), "[text] length must be ", fixed_, "..",
                    state_.length(), " but is ", length);
  int64_t gone = state_.length() - length;
  if (gone == 0) return;
  state_.truncate(length);
  keep_ = contiguous(slice(keep_, 1, 0, length));
  logits_ = {};
  for (auto& ids : held_) ids.resize(ids.size() - size_t(gone));
}

// What each row would paint next.
Conditions TextSession::painting() {
  const Deem& d = *deem_;
  int64_t n = rows(), length = state_.length();
  // The start-of-image token that would come is read, and forgotten again: it comes for good with its picture.
  Tensor soi = add(embedding(d.llm_.embed_tokens, Tensor::full({n, 1}, double(d.c_.tokens.soi), DType::i64)),
                   reshape(d.soi_token_, {1, 1, d.c_.llm.hidden_size}));
  Tensor one = Tensor::full({n, 1}, 1, DType::i64), keep = cat({keep_, one}, 1);
  Tensor hidden = peek(soi, one, [this](const Tensor&) { return contiguous(state_.hidden()); });

  // Newest first, and without padding: a row paints what it would alone.
  std::vector<std::vector<int64_t>> columns(static_cast<size_t>(n));
  size_t longest = 0;
  for (int64_t r = 0; r < n; r++) {
    for (int64_t at = (r + 1) * (length + 1); at-- > r * (length + 1);)
      if (keep.data<int64_t>()[at]) columns[size_t(r)].push_back(at);
    longest = std::max(longest, columns[size_t(r)].size());
  }
  Contexts contexts{Tensor::full({n, int64_t(longest)}, -1, DType::i64),
                    Tensor::zeros({n, int64_t(longest)}, DType::i64)};
  for (int64_t r = 0; r < n; r++) {
    const auto& row = columns[size_t(r)];
    std::copy(row.begin(), row.end(), contexts.index.data<int64_t>() + r * int64_t(longest));
    std::fill_n(contexts.keep.data<int64_t>() + r * int64_t(longest), row.size(), 1);
  }

  size_t most = 0;
  for (auto& row : shown_) most = std::max(most, row.size());
  Tensor index = Tensor::full({n, int64_t(most)}, -1, DType::i64), mask = Tensor::zeros(index.shape(), DType::i64);
  std::array<Tensors, 4> levels;
  for (int64_t r = 0; r < n; r++) {
    const auto& row = shown_[size_t(r)];
    for (size_t k = 0; k < row.size(); k++) {
      int64_t at = r * int64_t(most) + int64_t(k);
      index.data<int64_t>()[at] = int64_t(levels[0].size());
      mask.data<int64_t>()[at] = 1;
      for (size_t level = 0; level < 4; level++) levels[level].push_back(row[k][level]);
    }
  }
  Tensors maps;
  for (const Tensors& level : levels)
    maps.push_back(most > 0 ? gather_rows(cat(level, 0), index)
                            : Tensor::zeros({n, 0, 1, 1, d.c_.image_embed_dim}, hidden.dtype(), hidden.device()));
  Tensor states = reshape(hidden, {n * (length + 1), d.c_.llm.hidden_size});
  return {d.read_context(states, contexts, {}).cond, d.neg_prompt_embeds_,
          MmfsInputs{&d.visual_.encoder.mmfs, maps, mask}};
}

std::unique_ptr<Model> TextSession::open(const std::string& kind, const TensorMap& inputs, const Json& options,
                                         const std::shared_ptr<Model>&) {
  check<ValueError>(kind == "picture", "texts have no sessions of kind '", kind, "', known is picture");
  static const std::vector<std::string> known{"latent", "picture", "repaint"};
  for (auto& [name, unused] : inputs)
    check<ValueError>(std::find(known.begin(), known.end(), name) != known.end(), "[text] there is no input '", name,
                      "'; the nearest name is '", nearest_name(name, known), "'");
  PictureOptions o(Config(options, kind), deem_->visual_.encoder);
  return std::make_unique<PictureSession>(deem_, deem_->visual_.encoder, painting(), inputs, o);
}

TensorMap TextSession::call(const std::string& method, const TensorMap& inputs, const Json& options) {
  GradMode off(false);
  if (method == "next") return next(inputs, options);
  if (method == "beam") return beam(inputs, options);
  Config o(options, method);
  if (method == "truncate") {
    int64_t length = o.integer("length");
    o.finish();
    truncate(length);
    return {};
  }
  o.finish();
  if (method == "logits") {
    step(inputs);
    return {{"logits", logits_.clone()}};
  }
  if (method == "score") return score(inputs);
  if (method == "length") return {{"length", Tensor::full({}, double(state_.length()), DType::i64)}};
  if (method == "append") {
    feed(inputs, false);
    return {};
  }
  unknown_method("text", method);
}

}  // namespace deem
