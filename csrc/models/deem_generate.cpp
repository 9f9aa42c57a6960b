// What a trained DEEM does: answers, paints, shows what its encoder saw. Only `see` and `conditions` are recorded.
#include <algorithm>

#include "core/engine.h"
#include "core/rng.h"
#include "models/deem.h"

namespace deem {

// Positions of a padded prompt: the running count of kept tokens minus 1; 1 on padding, as published.
static Tensor prompt_positions(const Tensor& keep) {
  Tensor out = Tensor::empty(keep.shape(), DType::i64);
  int64_t rows = keep.size(0), length = keep.size(1);
  for (int64_t b = 0; b < rows; b++) {
    int64_t count = 0;
    for (int64_t i = 0; i < length; i++) {
      int64_t k = keep.data<int64_t>()[b * length + i];
      count += k != 0;
      out.data<int64_t>()[b * length + i] = k ? count - 1 : 1;
    }
  }
  return out;
}

// Greedy decoding from left-padded prompts (text_ids, attention_mask, images). ids [B, 1 + new]: bos, then what was generated;
// eos or soi ends a row, pad fills it. bos counts for min_length.
TensorMap Deem::generate_text(const TensorMap& inputs, const Json& options) const {
  Config o(options, "generate_text");
  int64_t most = o.positive("max_new_tokens", 32), least = o.integer("min_length", 0);
  o.finish();
  const Tensor& ids = input(inputs, "text_ids");
  Tensor keep = checked_keep(input(inputs, "attention_mask"), ids);
  check<ShapeError>(ids.ndim() == 2 && ids.size(1) > 0,
                    "[generate_text] text_ids must be rows of at least one id but have shape ", ids.shape());
  int64_t rows = ids.size(0), length = ids.size(1);
  for (int64_t b = 0; b < rows; b++)
    check<ValueError>(keep.data<int64_t>()[(b + 1) * length - 1] != 0,
                      "[generate_text] prompts must be padded on the left, but row ", b, " ends in padding");

  Prepared p = prepare(inputs, {});
  LlamaState state;
  Tensor hidden =
      llm_.forward(p.embeds, keep, p.features, p.visibility, prompt_positions(keep), {}, &state).last_hidden;
  Tensor positions = Tensor::empty({rows, 1}, DType::i64);
  for (int64_t b = 0; b < rows; b++)
    positions.data<int64_t>()[b] = std::count_if(
        keep.data<int64_t>() + b * length, keep.data<int64_t>() + (b + 1) * length, [](int64_t k) { return k != 0; });

  std::vector<std::vector<int64_t>> out(size_t(rows), {c_.tokens.bos});
  std::vector<bool> done(static_cast<size_t>(rows), false);
  Tensor ones = Tensor::full({rows, 1}, 1, DType::i64);
  for (int64_t step = 0; step < most; step++) {
    Tensor logits = contiguous(cast(head_(slice(hidden, 1, hidden.size(1) - 1, hidden.size(1))), DType::f32));
    if (step + 1 < least)
      for (int64_t b = 0; b < rows; b++)
        for (int64_t stop : {c_.tokens.eos, c_.tokens.soi}) logits.data<float>()[b * logits.size(2) + stop] = -INFINITY;
    Tensor best = argmax(logits), next = Tensor::empty({rows, 1}, DType::i64);
    for (int64_t b = 0; b < rows; b++) {
      int64_t id = done[size_t(b)] ? c_.tokens.pad : best.data<int64_t>()[b];
      next.data<int64_t>()[b] = id;
      out[size_t(b)].push_back(id);
      done[size_t(b)] = done[size_t(b)] || id == c_.tokens.eos || id == c_.tokens.soi;
    }
    report_progress(step + 1, most);
    if (std::all_of(done.begin(), done.end(), [](bool d) { return d; }) || step + 1 == most) break;
    keep = cat({keep, ones}, 1);
    hidden =
        llm_.forward(embedding(llm_.embed_tokens, next), keep, {}, p.visibility, positions, {}, &state).last_hidden;
    for (int64_t b = 0; b < rows; b++) positions.data<int64_t>()[b]++;
  }
  int64_t width = int64_t(out.empty() ? 1 : out[0].size());
  Tensor result = Tensor::empty({rows, width}, DType::i64);
  for (int64_t b = 0; b < rows; b++)
    std::copy(out[size_t(b)].begin(), out[size_t(b)].end(), result.data<int64_t>() + b * width);
  return {{"ids", result}};
}

namespace {

struct PaintOptions {
  SamplerConfig sampler;
  double guidance;
  explicit PaintOptions(const Config& o) : sampler(SamplerConfig::read(o)), guidance(o.number("guidance", 3.5)) {
    o.finish();
  }
};

Tensor to_picture(const Tensor& decoded) { return clamp(add_scalar(mul_scalar(decoded, 0.5), 0.5), 0, 1); }

}  // namespace

// The state to start from: given, or drawn.
Tensor Deem::starting_noise(const TensorMap& inputs, int64_t n) const {
  int64_t side = c_.image_size_dec >> (c_.vae.block_out_channels.size() - 1);
  Shape shape{n, side, side, c_.vae.latent_channels};
  MaybeTensor given = optional_input(inputs, "latent");
  if (!given) return randn(shape, int64_t(rng_state().seed), int64_t(take_stream()));
  check<ShapeError>(given->shape() == shape, "[deem] latent must be ", shape, " but has shape ", given->shape());
  check<DTypeError>(is_float(given->dtype()), "[deem] latent must be floating but is ", given->dtype());
  return *given;
}

// Paints the images named by `which` [k] (indices in reading order) from the states before them; pixels given for them are
// not looked at by anything that comes before. latent [k, h, w, C]: the noise to start from, else drawn from the seed.
TensorMap Deem::paint(const TensorMap& inputs, const Json& options) const {
  PaintOptions o(Config(options, "paint"));
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
  const Denoiser& sd = visual_.encoder;
  MmfsInputs mmfs{&sd.mmfs, maps, gather_rows(ctx.history_mask, which)};
  Tensor noise = starting_noise(inputs, which.numel());
  Sampler sampler(sd.schedule, o.sampler);
  Tensor latent = sample(sd.unet, sampler, noise, {gather_rows(ctx.cond, which), neg_prompt_embeds_, mmfs, o.guidance});
  return {{"latent", latent}, {"image", to_picture(sd.vae.decode(latent))}};
}

// What the encoder saw: its own tokens and masked maps condition the denoiser, as in the consistency loss.
TensorMap Deem::reconstruct(const TensorMap& inputs, const Json& options) const {
  PaintOptions o(Config(options, "reconstruct"));
  const Tensor& image = input(inputs, "image_tensors");
  int64_t n = image.ndim() > 0 ? image.size(0) : 0;
  check_pictures(inputs, n);
  Tensor mask = visible_mask(inputs);
  Seen seen = visual_.look(image, mask, {});
  const Denoiser& sd = visual_.encoder;
  MmfsInputs mmfs{&sd.mmfs, masked_maps(seen, mask), Tensor::full({n, 1}, 1, DType::i64)};
  Tensor noise = starting_noise(inputs, n);
  Sampler sampler(sd.schedule, o.sampler);
  Tensor latent =
      sample(sd.unet, sampler, noise, {visual_.proj_i(seen.query_embeds), neg_prompt_embeds_, mmfs, o.guidance});
  return {{"latent", latent}, {"image", to_picture(sd.vae.decode(latent))}};
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
                                              "latent"};
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
  GradMode off(false);
  if (method == "generate_text") return generate_text(inputs, options);
  if (method == "paint") return paint(inputs, options);
  if (method == "reconstruct") return reconstruct(inputs, options);
  unknown_method("deem", method);
}

static std::unique_ptr<Model> make(const Json& config, uint64_t seed, DType dtype) {
  return std::make_unique<Deem>(config, seed, dtype);
}
static const RegisterModel r{"deem", make};

}  // namespace deem
