// The two heads of contrastive image-text training (Radford et al., CLIP): image features through a projection, captions as
// the mean of learned word vectors, both of unit length; the other captions of the batch are the negatives.
#include <cmath>

#include "models/module.h"

namespace deem {
namespace {

// x / |x| over the last axis.
Tensor unit_length(const Tensor& x) { return div(x, sqrt(add_scalar(sum(square(x), {-1}, true), 1e-12))); }

struct Contrastive : Model {
  int64_t pad;
  Linear image_projection;
  Tensor word_embedding, logit_scale;

  Contrastive(const Json& config, const BuildOptions& build) : Model(build) {
    Config c(config, "contrastive");
    int64_t features = c.positive("feature_dim"), words = c.positive("vocab_size"), width = c.positive("embed_dim");
    pad = c.integer("pad_token_id");
    c.finish();
    Scope s(params);
    image_projection = Linear(s / "image_projection", features, width, false);
    word_embedding = s.param("word_embedding.weight", {words, width}, Init::normal(0.05));
    logit_scale = s.param("logit_scale", {1}, Init::constant(std::log(1 / 0.07)));
  }

  // features [B, C], words [B, T] i64 padded with pad_token_id -> loss; logits [B, B], row i for image i.
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "loss") unknown_method("contrastive", method);
    Config(options, "options").finish();
    const Tensor &features = input(inputs, "features"), &words = input(inputs, "words");
    check<ShapeError>(words.ndim() == 2 && features.ndim() == 2 && words.size(0) == features.size(0),
                      "[contrastive] features [B, C] and words [B, T] must share B but have shapes ", features.shape(),
                      " and ", words.shape());
    Tensor keep = Tensor::empty({words.size(0), words.size(1), 1}), ids = contiguous(words),
           labels = Tensor::empty({words.size(0)}, DType::i64);
    for (int64_t i = 0; i < ids.numel(); i++) keep.data<float>()[i] = ids.data<int64_t>()[i] != pad;
    for (int64_t i = 0; i < labels.numel(); i++) labels.data<int64_t>()[i] = i;
    // In f32 from here on: little is left to compute, and scaled by 100 eight bits would not tell captions apart.
    Tensor vectors = cast(embedding(word_embedding, ids), DType::f32);
    Tensor text = unit_length(sum(mul(vectors, keep.to(vectors.device())), {1}));
    Tensor image = unit_length(cast(image_projection(cast(features, image_projection.weight.dtype())), DType::f32));
    // CLIP keeps the scale at or below 100.
    Tensor scale = exp(clamp(cast(logit_scale, DType::f32), -10, std::log(100.0)));
    Tensor logits = mul(matmul(image, text, false, true), scale);
    Tensor loss = mul_scalar(add(cross_entropy(logits, labels), cross_entropy(permute(logits, {1, 0}), labels)), 0.5);
    return {{"loss", loss}, {"logits", logits}};
  }
};

std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<Contrastive>(config, build);
}
const RegisterModel r{"contrastive", make};

}  // namespace
}  // namespace deem
