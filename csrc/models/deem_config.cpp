#include "models/deem.h"

namespace deem {

static SpecialTokens read_tokens(const Config& c) {
  SpecialTokens t{c.integer("bos_token_id"), c.integer("eos_token_id"),   c.integer("pad_token_id"),
                  c.integer("soi_token_id"), c.integer("image_token_id"), 0};
  for (const char* key : {"refleft_token_id", "refright_token_id", "boxleft_token_id", "boxright_token_id"})
    c.ignore(key);
  c.finish();
  return t;
}

static Compat read_compat(const Config& c) {
  std::string kind = c.string("compat", "official");
  check<ConfigError>(kind == "official" || kind == "paper", "config key '", c.path(),
                     ".compat' must be 'official' or 'paper' but is '", kind, "'");
  bool official = kind == "official";
  return {official, official, !official};
}

namespace {

// Two sizes that have to be one.
struct Size {
  const char* name;
  int64_t value;
  const char* other;
  int64_t wanted;
};

}  // namespace

DeemConfig DeemConfig::read(const Json& json) {
  Config c(json, "deem");
  DeemConfig d;
  d.txt_vocab_size = c.integer("txt_vocab_size");
  d.seq_len = c.positive("seq_len");
  d.tokens = read_tokens(c.child("special_token_dict"));
  d.tokens.slots = d.num_img_token = c.positive("num_img_token");
  d.image_embed_dim = c.integer("image_embed_dim");
  d.spatial_shapes = c.integers("spatial_shapes");
  d.grid_size = c.positive("grid_size");
  d.image_size_in = c.positive("image_size_in");
  d.uncond_prob = c.number("uncond_prob", 0.1);
  d.compat = read_compat(c);
  d.freeze_llm = c.boolean("freeze_llm", true);
  d.freeze_vfm = c.boolean("freeze_vfm", false);
  d.freeze_dm = c.boolean("freeze_dm", true);
  d.mask_align = c.boolean("mask_align", false);

  Config weights = c.child("loss_weights");
  d.weight_txt = weights.number("txt");
  d.weight_img = weights.number("img");
  d.weight_sniffer = weights.number("sniffer");
  weights.finish();

  // The parts share sizes that the file gives once.
  Json llm = json.at("llm");
  c.ignore("llm");
  check<ConfigError>(llm.is_object(), "config 'deem.llm' must be an object");
  d.llm = LlamaConfig::read(Config(llm, "deem.llm"), d.image_embed_dim, c.integer("cross_attention_frequency"),
                            d.spatial_shapes);
  d.convnext = ConvNextConfig::read(c.child("convnext"));
  d.visual_perceiver = PerceiverConfig::read(c.child("visual_perceiver"));
  d.image_perceiver = PerceiverConfig::read(c.child("image_perceiver"));
  Config sd = c.child("sd");
  d.image_size_dec = sd.positive("image_size");
  d.vae = VaeConfig::read(sd.child("vae"));
  d.unet = UnetConfig::read(sd.child("unet"));
  d.schedule = NoiseScheduleConfig::read(sd.child("scheduler"));
  d.mmfs = MmfsNetConfig::read(sd.child("mmfs"));
  sd.finish();
  c.finish();

  for (auto [name, value, other, wanted] :
       {Size{"convnext.adapter_dim", d.convnext.adapter_dim, "image_embed_dim", d.image_embed_dim},
        Size{"visual_perceiver.encoder_hidden_size", d.visual_perceiver.encoder_hidden_size, "image_embed_dim",
             d.image_embed_dim},
        Size{"visual_perceiver.num_queries", d.visual_perceiver.num_queries, "num_img_token", d.num_img_token},
        Size{"image_perceiver.encoder_hidden_size", d.image_perceiver.encoder_hidden_size, "llm.hidden_size",
             d.llm.hidden_size},
        Size{"image_perceiver.hidden_size", d.image_perceiver.hidden_size, "sd.unet.cross_attention_dim",
             d.unet.cross_attention_dim},
        Size{"image_embed_dim", d.image_embed_dim, "sd.unet.cross_attention_dim", d.unet.cross_attention_dim},
        Size{"sd.unet.in_channels", d.unet.in_channels, "sd.vae.latent_channels", d.vae.latent_channels},
        Size{"sd.unet.out_channels", d.unet.out_channels, "sd.vae.latent_channels", d.vae.latent_channels}})
    check<ConfigError>(value == wanted, "config 'deem': ", name, " is ", value, " but ", other, " is ", wanted);
  check<ConfigError>(d.uncond_prob >= 0 && d.uncond_prob <= 1, "config key 'deem.uncond_prob' must be in 0..1 but is ",
                     d.uncond_prob);
  check<ConfigError>(d.txt_vocab_size >= d.llm.vocab_size, "config 'deem': txt_vocab_size ", d.txt_vocab_size,
                     " is smaller than llm.vocab_size ", d.llm.vocab_size);
  for (int64_t id : {d.tokens.bos, d.tokens.eos, d.tokens.pad, d.tokens.soi, d.tokens.image})
    check<ConfigError>(id >= 0 && id < d.txt_vocab_size, "config 'deem.special_token_dict': id ", id,
                       " is outside the vocabulary of ", d.txt_vocab_size);
  check<ConfigError>(d.tokens.soi != d.tokens.image,
                     "config 'deem.special_token_dict': soi_token_id and image_token_id are both ", d.tokens.soi);
  return d;
}

}  // namespace deem
