#include "models/mmfs.h"

#include <cmath>
#include <numbers>

namespace deem {

MmfsConfig MmfsConfig::read(const Config& c) {
  c.ignore("d_model");  // published, and not used by the published code either
  MmfsConfig m{c.positive("d_query"),     c.positive("d_value"),
               c.positive("d_out"),       c.positive("value_width"),
               c.positive("n_heads"),     c.positive("n_points"),
               c.integers("level_sides"), c.number("base_side"),
               c.positive("max_images"),  false};
  c.finish();
  return m;
}

Tensor relative_index(const Tensor& mask, int64_t queries, int64_t max_images) {
  check<ShapeError>(mask.ndim() == 2 || mask.ndim() == 3,
                    "[mmfs] mask must be [B, images] or [B, queries, images] but has shape ", mask.shape());
  bool per_query = mask.ndim() == 3;
  int64_t batch = mask.size(0), images = mask.size(-1), rows = per_query ? mask.size(1) : 1;
  check<ShapeError>(!per_query || rows >= queries, "[mmfs] mask must have at least ", queries, " rows but has shape ",
                    mask.shape());
  Tensor seen = contiguous(cast(mask.detach().to(Device::cpu), DType::f32)),
         out = Tensor::empty({batch, images, queries}, DType::i64);
  std::span<const float> visible = seen.values<float>();
  for (float v : visible) check<ValueError>(v == 0 || v == 1, "[mmfs] mask must hold 0 and 1 but holds ", v);
  int64_t* index = out.data<int64_t>();
  for (int64_t b = 0; b < batch; b++)
    for (int64_t q = 0; q < queries; q++) {
      // A mask longer than the queries comes from decoding with a cache: its last row serves the new tokens.
      const float* row = visible.data() + (b * rows + (rows == queries ? q : rows - 1)) * images;
      int64_t back = 0;
      for (int64_t n = images - 1; n >= 0; n--) index[(b * images + n) * queries + q] = row[n] != 0 ? ++back : 0;
      check<ValueError>(back < max_images, "[mmfs] a query may see at most ", max_images - 1, " images but one sees ",
                        back);
    }
  return out;
}

// The start of Deformable DETR: head h looks along its own direction, point p at p + 1 steps.
static Init directions(int64_t heads, int64_t points) {
  return Init::from([=] {
    std::vector<float> v;
    for (int64_t h = 0; h < heads; h++) {
      double angle = 2 * std::numbers::pi * double(h) / double(heads), x = std::cos(angle), y = std::sin(angle);
      double longest = std::max(std::abs(x), std::abs(y));
      for (int64_t p = 1; p <= points; p++) {
        v.push_back(float(x / longest * double(p)));
        v.push_back(float(y / longest * double(p)));
      }
    }
    return Tensor::from<float>({int64_t(v.size())}, v);
  });
}

static Init xavier(int64_t in, int64_t out) { return Init::uniform(std::sqrt(6.0 / double(in + out))); }

static const MmfsConfig& checked(const MmfsConfig& c) {
  check<ConfigError>(!c.level_sides.empty(), "mmfs: level_sides must not be empty");
  for (int64_t side : c.level_sides)
    check<ConfigError>(side >= 1, "mmfs: level_sides must be positive but hold ", side);
  check<ConfigError>(c.base_side > 0, "mmfs: base_side must be positive but is ", c.base_side);
  check<ConfigError>(c.value_width % c.heads == 0, "mmfs: a value width of ", c.value_width, " cannot be split into ",
                     c.heads, " heads");
  return c;
}

Mmfs::Mmfs(const Scope& s, const MmfsConfig& c)
    : config(checked(c)),
      ignore_token(c.trains_ignore_token ? s.param("ignore_token", {1, 1, 1, c.value_width}, Init::zeros())
                                         : s.buffer("ignore_token", {1, 1, 1, c.value_width}, Init::zeros())),
      sampling_offsets(s / "sampling_offsets", c.d_query, c.heads * c.points * 2, true, Init::zeros(),
                       directions(c.heads, c.points)),
      dynamic_offset_mask(s / "dynamic_offset_mask", c.d_query, c.d_query),
      attention_weights(s / "attention_weights", c.d_query, c.heads * int64_t(c.level_sides.size()) * (c.points + 1),
                        true, Init::zeros(), Init::zeros()),
      value_proj(s / "value_proj", c.d_value, c.value_width, true, xavier(c.d_value, c.value_width), Init::zeros()),
      output_proj(s / "output_proj", c.value_width, c.d_out, true, xavier(c.value_width, c.d_out), Init::zeros()),
      query_relpos((s / "query_relpos").param("weight", {c.max_images, c.d_query}, Init::normal(0.02))) {}

Tensor Mmfs::project(const Tensor& features) const {
  check<ShapeError>(features.ndim() == 4 && features.size(3) == config.d_value,
                    "[mmfs] features must be [B, images, positions, ", config.d_value, "] but have shape ",
                    features.shape());
  return value_proj(features);
}

Tensor Mmfs::attend(const Tensor& query, const Tensor& reference, const Tensor& value, const LevelShapes& shapes,
                    const Tensor& relative) const {
  check<ShapeError>(query.ndim() == 3 && query.size(2) == config.d_query, "[mmfs] query must be [B, queries, ",
                    config.d_query, "] but has shape ", query.shape());
  check<ShapeError>(shapes.size() == config.level_sides.size(), "[mmfs] there must be ", config.level_sides.size(),
                    " levels but got ", shapes.size());
  // Without images only the ignore token is left, whatever the query.
  if (value.ndim() == 4 && value.size(1) == 0)
    return broadcast_to(output_proj(reshape(ignore_token, {1, 1, config.value_width})),
                        {query.size(0), query.size(1), config.d_out});
  MmfsOptions options{config.heads, config.points, shapes, {}};
  for (int64_t side : config.level_sides) options.scale_ratios.push_back(double(side) / config.base_side);
  // The reference adds query_relpos[i] to every query before both linears; they are linear, so a table of each will do.
  Tensor q = dynamic_offset_mask(query);
  Tensor sampled = mmfs_attention(value, sampling_offsets(q), linear(query_relpos, sampling_offsets.weight),
                                  attention_weights(q), linear(query_relpos, attention_weights.weight), relative,
                                  reference, reshape(ignore_token, {config.value_width}), options);
  return output_proj(sampled);
}

Tensor Mmfs::operator()(const Tensor& query, const Tensor& reference, const Tensor& features, const LevelShapes& shapes,
                        const Tensor& mask) const {
  check<ShapeError>(query.ndim() == 3, "[mmfs] query must be [B, queries, ", config.d_query, "] but has shape ",
                    query.shape());
  return attend(query, reference, project(features), shapes, relative_index(mask, query.size(1), config.max_images));
}

namespace {

class MmfsModel : public Model {
 public:
  MmfsModel(const Json& config, const BuildOptions& build)
      : Model(build), mmfs_(Scope(params), MmfsConfig::read(Config(config, "mmfs"))) {}

  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override {
    if (method != "forward") unknown_method("mmfs", method);
    Config(options, "mmfs.forward").finish();
    LevelShapes shapes;
    for (int64_t side : mmfs_.config.level_sides) shapes.push_back({side, side});
    return {{"y", mmfs_(input(inputs, "query"), input(inputs, "reference_points"), input(inputs, "features"), shapes,
                        input(inputs, "mask"))}};
  }

 private:
  Mmfs mmfs_;
};

}  // namespace

static const RegisterModel r{"mmfs", [](const Json& config, const BuildOptions& build) -> std::unique_ptr<Model> {
                               return std::make_unique<MmfsModel>(config, build);
                             }};

}  // namespace deem
