#include "models/deem.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"

namespace deem {

static constexpr double kClipMean[] = {0.48145466, 0.4578275, 0.40821073};
static constexpr double kClipStd[] = {0.26862954, 0.26130258, 0.27577711};

static Init rgb(const double (&v)[3]) {
  return Init::from([&v] {
    float f[] = {float(v[0]), float(v[1]), float(v[2])};
    return Tensor::from<float>({1, 3, 1, 1}, f);
  });
}

// 1 where the mask [N, H, W, 1], resized bilinearly without antialias, is positive: regions dilate.
static Tensor region(const Tensor& mask, int64_t height, int64_t width, DType dtype) {
  return cast(greater(resize_bilinear(mask, height, width), 0), dtype);
}

// ---- parts -------------------------------------------------------------------------------------------------------------

Denoiser::Denoiser(const Scope& s, const DeemConfig& c)
    : vae(s / "vae", c.vae),
      unet(s / "unet", c.unet),
      mmfs(s / "mmfs_module", c.mmfs, c.unet.residual_widths(), c.image_embed_dim),
      schedule(c.schedule),
      sample_size(c.image_size_dec >> (c.vae.block_out_channels.size() - 1)) {}

static constexpr int64_t kMaskSide = 112;

MaskPooling::MaskPooling(const Scope& s, int64_t width)
    : mask_linear{Linear(s / "mask_linear" / "layers" / 0, kMaskSide * kMaskSide, width),
                  Linear(s / "mask_linear" / "layers" / 1, width, width),
                  Linear(s / "mask_linear" / "layers" / 2, width, width)},
      mask_feat_linear(s / "mask_feat_linear", width, width),
      width(width) {}

Tensor MaskPooling::operator()(const std::array<Tensor, 4>& maps, const Tensor& mask) const {
  int64_t n = mask.size(0);
  Tensors rows;
  for (const Tensor& m : maps) {
    Tensor inside = region(mask, m.size(1), m.size(2), m.dtype());
    Tensor count = add_scalar(sum(inside, {1, 2}), 1e-8);  // [N, 1]
    rows.push_back(mask_feat_linear(div(sum(mul(m, inside), {1, 2}), count)));
  }
  Tensor shape =
      reshape(resize_bilinear(cast(mask, maps[0].dtype()), kMaskSide, kMaskSide), {n, kMaskSide * kMaskSide});
  rows.push_back(mask_linear[2](mask_linear[1](mask_linear[0](shape, Activation::relu), Activation::relu)));
  return stack(rows, 1);
}

VisualTokenizer::VisualTokenizer(const Scope& s, const DeemConfig& c)
    : encoder(s / "encoder", c),
      sniffer(s / "sniffer", c.convnext),
      pos_proj(s / "pos_proj", c.visual_perceiver.encoder_hidden_size, c.visual_perceiver.encoder_hidden_size),
      proj_t(s / "proj_t", c.visual_perceiver.hidden_size, c.llm.hidden_size, true, Init::normal(1e-3), Init::zeros()),
      proj_i(s / "proj_i", c.visual_perceiver.hidden_size, c.image_embed_dim, true, Init::normal(1e-3), Init::zeros()),
      pos_ln(s / "pos_ln", c.visual_perceiver.encoder_hidden_size, 1e-6),
      post_ln(s / "post_ln", c.visual_perceiver.encoder_hidden_size, 1e-6),
      pos_embed(
          s.buffer("pos_embed", {c.grid_size * c.grid_size + 1, c.visual_perceiver.encoder_hidden_size},
                   Init::from([&] { return sincos_2d(c.visual_perceiver.encoder_hidden_size, c.grid_size, true); }))),
      clip_mean(s.buffer("clip_mean", {1, 3, 1, 1}, rgb(kClipMean))),
      clip_std(s.buffer("clip_std", {1, 3, 1, 1}, rgb(kClipStd))),
      perceiver(s / "perceiver_resampler", c.visual_perceiver) {
  if (c.mask_align) feature_extractor.emplace(s / "feature_extractor", c.visual_perceiver.encoder_hidden_size);
}

Seen VisualTokenizer::look(const Tensor& image, const Tensor& mask, Mode mode) const {
  auto features = sniffer.forward(
      div(sub(image, cast(reshape(clip_mean, {3}), image.dtype())), cast(reshape(clip_std, {3}), image.dtype())), mode);
  Seen seen{{}, features.tokens, {}};
  Tensor grid_pos = slice(pos_embed, 0, 1, pos_embed.size(0));
  for (size_t i = 0; i < 4; i++) {
    const Tensor& m = features.maps[i];
    int64_t h = m.size(1), w = m.size(2);
    seen.maps[i] = add(m, reshape(resample_table(grid_pos, h * w), {1, h, w, m.size(3)}));
  }
  int64_t n = image.size(0), count = features.tokens.size(1), side = int64_t(std::lround(std::sqrt(double(count - 1))));
  check<ShapeError>(side * side == count - 1, "[deem] images must be square but the encoder's map has ", count - 1,
                    " positions");
  Tensor q = add(pos_ln(pos_proj(features.tokens)), resample_table(pos_embed, count));
  Tensor inside = reshape(region(mask, side, side, q.dtype()), {n, side * side, 1});
  q = post_ln(mul(q, cat({Tensor::full({n, 1, 1}, 1, q.dtype(), q.device()), inside}, 1)));
  if (feature_extractor) q = cat({(*feature_extractor)(seen.maps, mask), q}, 1);
  seen.query_embeds = perceiver(q, {}, mode);
  return seen;
}

Tensors masked_maps(const Seen& seen, const Tensor& mask) {
  Tensors maps;
  for (const Tensor& m : seen.maps)
    maps.push_back(reshape(mul(m, region(mask, m.size(1), m.size(2), m.dtype())),
                           {m.size(0), 1, m.size(1), m.size(2), m.size(3)}));
  return maps;
}

Deem::Deem(const Json& config, const BuildOptions& build)
    : Model(build),
      c_(DeemConfig::read(config)),
      visual_(Scope(params) / "visual_tokenizer", c_),
      llm_(Scope(params) / "mm_decoder",
           [&] {
             LlamaConfig llm = c_.llm;
             llm.vocab_size = c_.txt_vocab_size;
             return llm;
           }()),
      head_(Scope(params) / "text_decoder", TextHeadConfig{c_.llm.hidden_size, c_.txt_vocab_size, c_.llm.vocab_size}),
      image_perceiver_(Scope(params) / "image_decoder" / "perceiver_resampler", c_.image_perceiver),
      neg_prompt_embeds_(Scope(params).param("image_decoder.neg_prompt_embeds",
                                             {1, c_.image_perceiver.num_queries, c_.image_perceiver.hidden_size},
                                             Init::normal(0.02))),
      context_feat_proj_(Scope(params) / "context_feat_proj", c_.llm.hidden_size, c_.llm.hidden_size),
      soi_token_(Scope(params).param("soi_token", {1, c_.llm.hidden_size}, Init::zeros())) {
  params.alias("visual_tokenizer.neg_prompt_embeds", "image_decoder.neg_prompt_embeds");
  for (Parameter& p : params.list()) {
    auto in = [&](const char* prefix) { return p.name.starts_with(prefix); };
    bool frozen =
        (c_.freeze_llm && in("mm_decoder.") && p.name.find("llama_cross_attn") == std::string::npos) ||
        in("text_decoder.head.") || in("visual_tokenizer.encoder.vae.") ||
        (c_.freeze_dm && in("visual_tokenizer.encoder.unet.")) ||
        (c_.freeze_vfm && in("visual_tokenizer.sniffer.") && !in("visual_tokenizer.sniffer.vision_model.adapter"));
    if (frozen && !p.buffer) p.value.set_requires_grad(false);
  }
}

Tensor Deem::visible_mask(const TensorMap& inputs) const {
  if (auto mask = optional_input(inputs, "image_tensors_mask")) return *mask;
  const Tensor& image = input(inputs, "image_tensors");
  return Tensor::full({image.size(0), image.size(1), image.size(2), 1}, 1, image.dtype(), image.device());
}

static void check_images(const char* name, const Tensor& t, const Shape& shape) {
  check<ShapeError>(t.shape() == shape, "[deem] ", name, " must be ", shape, " but has shape ", t.shape());
  check<DTypeError>(is_float(t.dtype()), "[deem] ", name, " must be floating but is ", t.dtype());
  // One pixel that is not finite would make every loss NaN, and generated text the first id of the vocabulary.
  check<ValueError>(t.numel() == 0 || std::isfinite(sum(t.detach()).item()), "[deem] ", name,
                    " hold values that are not finite");
}

void Deem::check_pictures(const TensorMap& inputs, int64_t n) const {
  int64_t side = c_.image_size_in;
  check_images("image_tensors", input(inputs, "image_tensors"), {n, side, side, 3});
  if (auto mask = optional_input(inputs, "image_tensors_mask"))
    check_images("image_tensors_mask", *mask, {n, side, side, 1});
}

Deem::Prepared Deem::prepare(const TensorMap& inputs, Mode mode) const {
  const Tensor& ids = input(inputs, "text_ids");
  Prepared p;
  p.starts =
      find_images(ids, input(inputs, "num_image_per_seq"), optional_input(inputs, "nearest_bos_idxs"), c_.tokens);
  int64_t n = p.starts.images();
  p.visibility = image_visibility(ids, p.starts, c_.tokens);
  if (n == 0) {
    p.embeds = embedding(llm_.embed_tokens, ids);
    // No images rather than no features: a row reads the same whether or not its neighbours have pictures.
    int64_t positions = 0;
    for (int64_t side : c_.spatial_shapes) positions += side * side;
    p.features = Tensor::zeros({ids.size(0), 0, positions, c_.image_embed_dim}, p.embeds.dtype(), p.embeds.device());
    return p;
  }
  check_pictures(inputs, n);
  const Tensor& image = input(inputs, "image_tensors");
  p.mask = visible_mask(inputs);
  p.seen = visual_.look(image, p.mask, mode);
  p.embeds = embed_interleaved(ids, llm_.embed_tokens, visual_.proj_t(p.seen.query_embeds), soi_token_, c_.tokens.image,
                               c_.tokens.soi);
  Tensors flat;
  for (const Tensor& m : p.seen.maps)
    if (std::find(c_.spatial_shapes.begin(), c_.spatial_shapes.end(), m.size(2)) != c_.spatial_shapes.end())
      flat.push_back(reshape(m, {n, m.size(1) * m.size(2), m.size(3)}));
  check<ShapeError>(flat.size() == c_.spatial_shapes.size(), "[deem] images of ", image.size(1), " x ", image.size(2),
                    " pixels give maps that do not match spatial_shapes");
  p.features = gather_rows(cat(flat, 1), images_of_rows(p.starts));
  return p;
}

Deem::ImageContext Deem::read_context(const Tensor& states, const Contexts& contexts, Mode mode) const {
  ImageContext out;
  int64_t longest = contexts.index.size(1), width = states.size(1);
  check<ShapeError>(longest <= c_.seq_len, "[deem] a context of ", longest, " positions exceeds seq_len ", c_.seq_len);
  Tensor read = gather_rows(states, contexts.index);
  out.features = add(context_feat_proj_(read), cast(sincos_1d(width, longest).to(states.device()), states.dtype()));
  out.keep = contexts.keep;
  out.cond = image_perceiver_(out.features, out.keep, mode);
  return out;
}

Deem::ImageContext Deem::image_context(const Prepared& p, const Tensor& hidden, Mode mode) const {
  Tensor states = reshape(hidden, {hidden.size(0) * hidden.size(1), hidden.size(2)});
  ImageContext out = read_context(states, image_contexts(p.starts), mode);
  History history = image_history(p.starts, c_.compat.whole_history);
  out.history_mask = history.mask;
  for (const Tensor& m : p.seen.maps) out.history.push_back(gather_rows(m, history.index));
  return out;
}

// ---- training ----------------------------------------------------------------------------------------------------------

namespace {

// One pass of the denoiser over images: the squared error before any weighting.
struct Denoised {
  Tensor error, latent, noisy, pred;
};

Denoised denoise(const Denoiser& d, const Tensor& mean, const Tensor& logvar, const Tensor& eps, const Tensor& noise,
                 const Tensor& t, const Tensor& context, const std::vector<Tensor>& maps, const Tensor& mask) {
  Denoised out;
  {
    GradMode off(false);  // DEEM never differentiates through the VAE
    out.latent = d.vae.sample_scaled(mean, logvar, eps);
    out.noisy = d.schedule.add_noise(out.latent, noise, t);
  }
  out.pred = d.unet.forward(out.noisy, t, context, MmfsInputs{&d.mmfs, maps, mask});
  out.error = square(sub(out.pred, d.schedule.target(out.latent, noise, t)));
  return out;
}

// Indices of the elements of x [n] that are not zero.
Tensor nonzero(const Tensor& x) {
  std::vector<int64_t> at;
  for (int64_t i = 0; i < x.numel(); i++)
    if (x.data<float>()[i] != 0) at.push_back(i);
  return Tensor::from<int64_t>({int64_t(at.size())}, at);
}

// The draws of a step: given by name, or from the step's random stream. Timesteps are on the host.
struct Draws {
  const TensorMap& inputs;
  uint64_t seed;
  Device device;
  Tensor normal(const char* name, const Shape& shape) const {
    if (auto t = optional_input(inputs, name)) return checked(name, *t, shape, DType::f32);
    return randn(shape, int64_t(seed), int64_t(take_stream()), device);
  }
  Tensor uniform(const char* name, const Shape& shape) const {
    if (auto t = optional_input(inputs, name)) return checked(name, *t, shape, DType::f32);
    return rand(shape, int64_t(seed), int64_t(take_stream()), device);
  }
  Tensor timesteps(const char* name, int64_t n, int64_t steps) const {
    if (auto t = optional_input(inputs, name)) return checked(name, *t, {n}, DType::i64);
    return randint({n}, 0, steps, int64_t(seed), int64_t(take_stream()));
  }
  static Tensor checked(const char* name, const Tensor& t, const Shape& shape, DType dtype) {
    check<ShapeError>(t.shape() == shape, "[deem] ", name, " must be ", shape, " but has shape ", t.shape());
    check<DTypeError>(t.dtype() == dtype || (is_float(dtype) && is_float(t.dtype())), "[deem] ", name, " must be ",
                      dtype, " but is ", t.dtype());
    return t;
  }
};

}  // namespace

TensorMap Deem::train(const TensorMap& inputs, const Json& options) const {
  Config o(options, "train");
  bool details = o.boolean("details", false), noimage_cond = o.boolean("noimage_cond", false);
  bool twice = o.boolean("second_normalization", c_.compat.second_normalization);
  bool with_img = o.boolean("image_loss", true), with_sniffer = o.boolean("feedback", true);
  double w_txt = o.number("weight_txt", c_.weight_txt), w_img = o.number("weight_img", c_.weight_img),
         w_sniffer = o.number("weight_sniffer", c_.weight_sniffer);
  Mode mode{o.boolean("training", false)};
  o.finish();

  const Tensor &ids = input(inputs, "text_ids"), &keep = input(inputs, "attention_mask");
  // Fetched before anything is queued that one would have to wait for.
  Tensor loss_mask;
  if (auto m = optional_input(inputs, "image_loss_mask")) loss_mask = m->detach().to(Device::cpu);
  Prepared p = prepare(inputs, mode);
  int64_t n = p.starts.images();
  with_img &= n > 0;
  with_sniffer &= n > 0;
  TensorMap out;
  Tensor total;
  auto gather = [&](const char* name, const Tensor& loss, double weight) {
    out[name] = loss;
    Tensor part = mul_scalar(loss, weight);
    total = total ? add(total, part) : part;
  };

  // Text.
  auto llm = llm_.forward(p.embeds, keep, p.features, p.visibility, {}, {.hidden_states = details});
  Tensor logits = head_(llm.last_hidden);
  Tensor labels = optional_input(inputs, "labels")
                      ? Draws::checked("labels", input(inputs, "labels"), {ids.size(0), ids.size(1) - 1}, DType::i64)
                      : next_token_labels(ids, keep, optional_input(inputs, "prompt_offset"), noimage_cond, c_.tokens);
  int64_t rows = ids.size(0), length = ids.size(1);
  Tensor shifted = reshape(slice(logits, 1, 0, length - 1), {rows * (length - 1), logits.size(2)});
  gather("loss_txt", cross_entropy(shifted, reshape(labels, {rows * (length - 1)})), w_txt);

  // Both diffusion losses look at the same pictures; the moments are shared where the normalisation is.
  Draws draws{inputs, rng_state().seed, p.embeds.device()};
  const Denoiser& sd = visual_.encoder;
  Tensor mean, logvar, once;
  auto moments = [&](const Tensor& image) {
    GradMode off(false);
    return sd.vae.encode(image);
  };
  if (with_img || with_sniffer) {
    const Tensor& image = input(inputs, "image_tensors_dec");
    check_images("image_tensors_dec", image, {n, c_.image_size_dec, c_.image_size_dec, 3});
    once = add_scalar(mul_scalar(image, 2), -1);
    if (with_sniffer || !twice) std::tie(mean, logvar) = moments(once);
  }

  if (with_sniffer) {
    Shape latent = mean.shape();
    Tensor t = draws.timesteps("sniffer_t", n, sd.schedule.steps());
    if (c_.compat.map_timesteps) t = sniffer_timesteps(t);
    Denoised d =
        denoise(sd, mean, logvar, draws.normal("sniffer_eps", latent), draws.normal("sniffer_noise", latent), t,
                visual_.proj_i(p.seen.query_embeds), masked_maps(p.seen, p.mask), Tensor::full({n, 1}, 1, DType::i64));
    // Full area over mask area, so that small regions weigh as much as whole pictures.
    Tensor inside = region(p.mask, latent[1], latent[2], d.error.dtype());
    Tensor weight = div(mul_scalar(inside, double(latent[1] * latent[2])), add_scalar(sum(inside, {1, 2}, true), 1e-8));
    gather("loss_sniffer", deem::mean(mul(d.error, weight)), w_sniffer);
    if (details) {
      out["sniffer_timesteps"] = t;
      out["sniffer_latent"] = d.latent;
      out["sniffer_noisy"] = d.noisy;
      out["sniffer_pred"] = d.pred;
    }
  }

  if (with_img) {
    if (twice) std::tie(mean, logvar) = moments(add_scalar(mul_scalar(once, 2), -1));
    Shape latent = mean.shape();
    ImageContext ctx = image_context(p, llm.last_hidden, mode);
    Tensor t = draws.timesteps("img_t", n, sd.schedule.steps());
    Tensor eps = draws.normal("img_eps", latent), noise = draws.normal("img_noise", latent);
    // Below uncond_prob the picture is unconditional: the mask is 1 where the condition stays.
    Tensor stays = reshape(greater(add_scalar(draws.uniform("uncond_rand", {n}), -c_.uncond_prob), -1e-30), {n, 1, 1});
    Tensor cond = where(stays, ctx.cond, neg_prompt_embeds_);
    // Pictures whose context is only [bos, soi] have nothing to be painted from.
    // On the host, where it says which pictures are denoised.
    Tensor real = cast(greater(add_scalar(sum(cast(ctx.keep, DType::f32), {1}), -2), 0), DType::f32);
    if (loss_mask) real = mul(real, Draws::checked("image_loss_mask", loss_mask, {n}, DType::f32));
    // What carries no loss is not denoised, unless somebody wants to see it.
    Tensor rows = details ? Tensor() : nonzero(real);
    auto pick = [&](const Tensor& x) { return rows && rows.numel() < n ? gather_rows(x, rows) : x; };
    std::vector<Tensor> history;
    for (const Tensor& m : ctx.history) history.push_back(pick(m));
    Denoised d;
    if (!rows || rows.numel() > 0) {
      d = denoise(sd, pick(mean), pick(logvar), pick(eps), pick(noise), pick(t), pick(cond), history,
                  pick(ctx.history_mask));
      Tensor weight = cast(reshape(pick(real), {d.error.size(0), 1, 1, 1}), d.error.dtype()).to(d.error.device());
      gather("loss_img", mul_scalar(deem::mean(mul(d.error, weight)), double(d.error.size(0)) / double(n)), w_img);
    } else {
      gather("loss_img", Tensor::full({}, 0, mean.dtype(), mean.device()), w_img);
    }
    if (details) {
      out["context_features"] = ctx.features;
      out["context_attention_mask"] = ctx.keep;
      out["image_cond"] = cond;
      out["mmfs_mask"] = ctx.history_mask;
      out["img_latent"] = d.latent;
      out["img_noisy"] = d.noisy;
      out["img_pred"] = d.pred;
    }
  }
  out["loss"] = total;
  if (details) {
    out["mm_embeds"] = p.embeds;
    out["cross_attention_mask"] = p.visibility;
    out["logits"] = logits;
    out["labels"] = labels;
    for (size_t i = 1; i < llm.layer_inputs.size(); i++) out["hidden." + std::to_string(i)] = llm.layer_inputs[i];
    out["hidden." + std::to_string(std::max<size_t>(1, llm.layer_inputs.size()))] = llm.last_hidden;
    if (n > 0) {
      out["query_embeds"] = p.seen.query_embeds;
      out["sniffer_tokens"] = p.seen.tokens;
      for (int i = 0; i < 4; i++) out["map.c" + std::to_string(i + 2)] = p.seen.maps[i];
    }
  }
  return out;
}

}  // namespace deem
