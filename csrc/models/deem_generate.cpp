// What a trained DEEM is asked for: what it sees, what it would paint from; sessions that write and paint. Only `see` and
// `conditions` are recorded.
#include <algorithm>

#include "core/engine.h"
#include "core/rng.h"
#include "models/deem.h"
#include "models/picture_session.h"
#include "models/text_session.h"

namespace deem {

// What images `which` [K] (indices in reading order) are painted from: the states before them. Pixels given for them are not looked
// at by anything that comes before.
Conditions Deem::painting(const TensorMap& inputs) const {
  Prepared p = prepare(inputs, {});
  check<ValueError>(p.starts.images() > 0, "[paint] the rows hold no image to paint");
  Tensor which = contiguous(input(inputs, "which"));
  check<ShapeError>(which.ndim() == 1, "[paint] which must be [k] but has shape ", which.shape());
  check<DTypeError>(which.dtype() == DType::i64, "[paint] which must be i64 but is ", which.dtype());
  for (int64_t i : which.values<int64_t>())
    check<IndexError>(i >= 0 && i < p.starts.images(), "[paint] which holds ", i, " but there are ", p.starts.images(),
                      " images");
  Tensor hidden = llm_.forward(p.embeds, input(inputs, "attention_mask"), p.features, p.visibility).last_hidden;
  ImageContext ctx = image_context(p, hidden, {});
  Tensors maps;
  for (const Tensor& m : ctx.history) maps.push_back(gather_rows(m, which));
  return {gather_rows(ctx.cond, which), neg_prompt_embeds_,
          MmfsInputs{&visual_.encoder.mmfs, maps, gather_rows(ctx.history_mask, which)}};
}

// What the encoder saw: its own tokens and masked maps condition the denoiser, as in the consistency loss.
Conditions Deem::reconstruction(const TensorMap& inputs) const {
  const Tensor& image = input(inputs, "image_tensors");
  int64_t n = image.ndim() > 0 ? image.size(0) : 0;
  check_pictures(inputs, n);
  Tensor mask = visible_mask(inputs);
  Seen seen = visual_.look(image, mask, {});
  return {visual_.proj_i(seen.query_embeds), neg_prompt_embeds_,
          MmfsInputs{&visual_.encoder.mmfs, masked_maps(seen, mask), Tensor::full({n, 1}, 1, DType::i64)}};
}

TensorMap Deem::see(const TensorMap& inputs, const Json& options) const {
  Config(options, "see").finish();
  const Tensor& image = input(inputs, "image_tensors");
  check_pictures(inputs, image.ndim() > 0 ? image.size(0) : 0);
  Seen seen = visual_.look(image, visible_mask(inputs), {});
  return {{"query_embeds", seen.query_embeds}, {"sniffer_tokens", seen.tokens}};
}

// A batch may be handed to any method: what a method does not need it does not read. A name that no method knows is a mistake.
static void check_names(const TensorMap& inputs) {
  static const std::vector<std::string> known{"text_ids",
                                              "attention_mask",
                                              "num_image_per_seq",
                                              "nearest_bos_idxs",
                                              "labels",
                                              "prompt_offset",
                                              "image_tensors",
                                              "image_tensors_dec",
                                              "image_tensors_mask",
                                              "image_loss_mask",
                                              "sniffer_t",
                                              "sniffer_noise",
                                              "sniffer_eps",
                                              "img_t",
                                              "img_noise",
                                              "img_eps",
                                              "uncond_rand",
                                              "which",
                                              "latent",
                                              "picture",
                                              "repaint"};
  for (auto& [name, unused] : inputs)
    check<ValueError>(std::find(known.begin(), known.end(), name) != known.end(), "[deem] there is no input '", name,
                      "'; the nearest name is '", nearest_name(name, known), "'");
}

// What the denoiser would be told about every image of the rows, from what stands before it: [N, Q, C].
TensorMap Deem::conditions(const TensorMap& inputs, const Json& options) const {
  Config(options, "conditions").finish();
  Prepared p = prepare(inputs, {});
  check<ValueError>(p.starts.images() > 0, "[conditions] the rows hold no image");
  Tensor hidden = llm_.forward(p.embeds, input(inputs, "attention_mask"), p.features, p.visibility).last_hidden;
  return {{"cond", image_context(p, hidden, {}).cond}};
}

TensorMap Deem::call(const std::string& method, const TensorMap& inputs, const Json& options) {
  check_names(inputs);
  if (method == "train") return train(inputs, options);
  if (method == "see") return see(inputs, options);
  if (method == "conditions") return conditions(inputs, options);
  unknown_method("deem", method);
}

std::unique_ptr<Model> Deem::open(const std::string& kind, const TensorMap& inputs, const Json& options,
                                  const std::shared_ptr<Model>& self) {
  check_names(inputs);
  if (kind == "text") return std::make_unique<TextSession>(std::static_pointer_cast<Deem>(self), inputs, options);
  auto picture = [&](Conditions c) {
    return std::make_unique<PictureSession>(self, visual_.encoder, std::move(c), inputs,
                                            PictureOptions(Config(options, kind), visual_.encoder));
  };
  if (kind == "picture") return picture(painting(inputs));
  if (kind == "reconstruction") return picture(reconstruction(inputs));
  throw ValueError("deem has no sessions of kind '" + kind + "', known are text, picture, reconstruction");
}

static std::unique_ptr<Model> make(const Json& config, const BuildOptions& build) {
  return std::make_unique<Deem>(config, build);
}
static const RegisterModel r{"deem", make};

}  // namespace deem
