#include "models/text_head.h"

#include <algorithm>

#include "ops/view.h"

namespace deem {

TextHeadConfig TextHeadConfig::read(const Config& c) {
  TextHeadConfig t{c.positive("hidden_size"), c.positive("txt_vocab_size"), c.positive("orig_txt_vocab_size")};
  c.finish();
  return t;
}

// The published start: added ids are silent in the first head (weight 0, bias -100), and the second one lifts them to -5.
TextHead::TextHead(const Scope& s, const TextHeadConfig& c) : config(c) {
  int64_t added = c.txt_vocab_size - c.orig_txt_vocab_size;
  check<ConfigError>(added >= 0, "text head: txt_vocab_size ", c.txt_vocab_size,
                     " is smaller than orig_txt_vocab_size ", c.orig_txt_vocab_size);
  Init bias = Init::from([&] {
    Tensor b = Tensor::zeros({c.txt_vocab_size});
    std::fill(b.data<float>() + c.orig_txt_vocab_size, b.data<float>() + c.txt_vocab_size, -100.0f);
    return b;
  });
  // Rows of both weights are taken apart and added below, so they never lie in few bits.
  head.weight =
      (s / "head")
          .param("weight", {c.txt_vocab_size, c.hidden_size}, Init::normal(0.02).first_rows(c.orig_txt_vocab_size));
  head.bias = (s / "head").param("bias", {c.txt_vocab_size}, bias);
  if (added == 0) return;
  head_new.emplace();
  head_new->weight = (s / "head_new").param("weight", {added, c.hidden_size}, Init::normal(0.02));
  head_new->bias = (s / "head_new").param("bias", {added}, Init::constant(95));
}

Tensor TextHead::operator()(const Tensor& hidden) const {
  check<ShapeError>(hidden.ndim() >= 1 && hidden.size(-1) == config.hidden_size, "[text_head] hidden must be [..., ",
                    config.hidden_size, "] but has shape ", hidden.shape());
  if (!head_new) return head(hidden);
  // Two linear maps of one input add up to one; summing the few rows of weights also keeps -100 + 95 out of the logits.
  int64_t base = config.orig_txt_vocab_size, all = config.txt_vocab_size;
  Tensor kept = linear(hidden, slice(head.weight, 0, 0, base), slice(*head.bias, 0, 0, base));
  Tensor added = linear(hidden, add(slice(head.weight, 0, base, all), head_new->weight),
                        add(slice(*head.bias, 0, base, all), *head_new->bias));
  return cat({kept, added}, -1);
}

namespace {

class TextHeadModel : public Model {
 public:
  TextHeadModel(const Json& config, const BuildOptions& build)
      : Model(build), head_(Scope(params), TextHeadConfig::read(Config(config, "text_head"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "forward") unknown_method("text_head", method);
    Config(options, "text_head.forward").finish();
    return {{"logits", head_(input(inputs, "hidden"))}};
  }

 private:
  TextHead head_;
};

}  // namespace

static const RegisterModel r{"text_head", [](const Json& config, const BuildOptions& build) -> std::unique_ptr<Model> {
                               return std::make_unique<TextHeadModel>(config, build);
                             }};

}  // namespace deem
