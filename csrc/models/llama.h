// LLaMA decoder with MMFS between attention and MLP of every n-th layer (model.md, step 5). B rows, T positions, C width,
// N images of S positions and D channels, H heads.
#pragma once
#include "models/mmfs.h"
#include "ops/embedding.h"

namespace deem {

struct LlamaConfig {
  int64_t hidden_size, num_attention_heads, num_key_value_heads, intermediate_size, num_hidden_layers, vocab_size;
  double rms_norm_eps;
  int64_t max_position_embeddings;
  double rope_theta;
  int64_t mmfs_heads, mmfs_points;
  double mmfs_base_side;
  int64_t mmfs_max_images;
  int64_t image_embed_dim;              // D
  int64_t cross_attention_frequency;    // layers whose index is a multiple of it look at the images
  std::vector<int64_t> spatial_shapes;  // sides of the square levels, in the order of S

  static LlamaConfig read(const Config& c);
  // For a configuration that gives the last three elsewhere.
  static LlamaConfig read(const Config& c, int64_t image_embed_dim, int64_t cross_attention_frequency,
                          const std::vector<int64_t>& spatial_shapes);
};

// What decoding keeps between calls: keys and values in buffers with room for more, so that a step copies nothing but itself.
// Starts empty; forward() extends it, or leaves it as it was if it throws.
class LlamaState {
 public:
  int64_t length() const { return length_; }                                      // positions held
  bool has_images() const { return !image_values_.empty() && image_values_[0]; }  // layer 0 always looks at them
  // Room for so many positions in all; without it the room doubles when it is full.
  void reserve(int64_t positions) { reserved_ = positions; }
  void keep_hidden() { keeps_hidden_ = true; }  // of all positions; to be said before the first
  void truncate(int64_t length);                // forgets what came after the first `length` positions
  void select(const Tensor& rows);              // row i becomes row rows[i] (i64), e.g. of surviving beams
  Tensor keys(size_t layer) const;              // [B, length, Hkv, head size], after RoPE; a view
  Tensor values(size_t layer) const;
  Tensor hidden() const;                         // [B, length, C] after the final norm, where they are kept
  int64_t room() const;                          // positions that fit before the buffers are replaced
  uint64_t version() const { return version_; }  // another one whenever a buffer is replaced or what lies there moves
  void count(int64_t positions) { length_ += positions; }  // that Llama::step() wrote
  // Starts from keys and values of a layer [B, T, Hkv, head size], equal T in all layers.
  void put(size_t layer, const Tensor& keys, const Tensor& values);

 private:
  friend struct Llama;
  struct Layer {
    Tensor keys, values;  // [B, room, Hkv, head size]
  };
  // Writes x [B, T, Hkv, head size] after what is there; gives all of it.
  Tensor extend(Tensor& buffer, const Tensor& x);

  std::vector<Layer> layers_;
  Tensor hidden_;  // [B, room, 1, C]
  bool keeps_hidden_ = false;
  Tensors image_values_;  // per layer [B, N, S, D] as MMFS samples them; undefined where a layer sees no images
  int64_t length_ = 0, reserved_ = 0;
  uint64_t version_ = 0;
};

struct LlamaOutput {
  Tensor last_hidden;    // [B, T, C] after the final norm
  Tensors layer_inputs;  // per layer [B, T, C], if asked for
};

struct LlamaOptions {
  bool hidden_states = false;  // give layer_inputs
  bool checkpoint = false;     // recompute each layer in the backward pass; not with a state
};

struct Llama {
  struct Layer {
    RmsNorm input_norm, post_attention_norm;
    Linear q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
    struct Cross {
      Tensor gate;
      Mmfs attn;
      RmsNorm norm1, norm2;
      Cross(const Scope& s, const LlamaConfig& c);
    };
    std::optional<Cross> cross;
    Layer(const Scope& s, const LlamaConfig& c, bool with_cross);
    bool trains() const;  // some parameter wants a gradient
  };

  LlamaConfig config;
  Tensor embed_tokens;  // [V, C]
  std::vector<Layer> layers;
  RmsNorm norm;

  Llama(const Scope& s, const LlamaConfig& c);

  // embeds [B, T, C]; keep [B, T so far + T] i64 or u8, 0 on padding; features [B, N, S, D]; image_mask [B, T or more, N]
  // 0/1, given with features; positions [B, T] i64, by default counted on from the state's length. A state is extended in place
  // and remembers the projected images: later calls then need image_mask alone, and features only to replace them.
  LlamaOutput forward(const Tensor& embeds, const MaybeTensor& keep = {}, const MaybeTensor& features = {},
                      const MaybeTensor& image_mask = {}, const MaybeTensor& positions = {},
                      const LlamaOptions& options = {}, LlamaState* state = nullptr) const;

  // One more position for each row, as work that can be recorded once and replayed: what differs from one to the next lies in tensors
  // on the model's device, and sizes are those of the state's buffers, however full they are.
  struct Step {
    Tensor embeds;     // [B, 1, C]
    Tensor turns;      // of rope_table(), [B, 1, 2, D / 2]
    Tensor plan;       // of attention_plan() for 1 query and room() keys
    RowPlaces places;  // row b to b * room() + length()
    Tensor relative;   // of relative_index(), on the host; undefined without images
  };
  // [B, 1, C] after the final norm. The state's length is the caller's to count.
  Tensor step(const Step& in, LlamaState& state) const;
};

}  // namespace deem
