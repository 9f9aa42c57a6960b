#include "models/decode_graph.h"

#include <algorithm>

namespace deem {

// keep with zeros up to the room there is: keys of a plan are named one by one, so those beyond the length are never looked at.
static Tensor kept_in(const Tensor& keep, int64_t room) {
  Tensor rest = Tensor::zeros({keep.size(0), room - keep.size(1)}, keep.dtype());
  return cat({keep, rest}, 1);
}

Tensor DecodeGraph::step(const Llama& llm, const TextHead& head, LlamaState& state, const Tensor& embeds,
                         const Tensor& keep, const Tensor& positions, const Tensor& visibility) {
  Device device = embeds.device();
  const LlamaConfig& c = llm.config;
  if (device == Device::cpu || state.length() >= std::min(state.room(), c.max_position_embeddings)) return {};
  int64_t rows = embeds.size(0), room = state.room();
  std::vector<int64_t> target;
  for (int64_t r = 0; r < rows; r++) target.push_back(r * room + state.length());
  Tensor turns = rope_table(positions, c.hidden_size / c.num_attention_heads, c.rope_theta, device);
  Tensor plan = attention_plan(kept_in(keep, room), 1, room, false, Device::cpu);
  auto run = [&](const Llama::Step& in) {
    Tensor logits = cast(head(llm.step(in, state)), DType::f32);
    return contiguous(reshape(logits, {rows, logits.size(2)}));
  };
  auto fresh = [&] {
    return Llama::Step{.embeds = contiguous(embeds),
                       .turns = turns,
                       .plan = plan.to(device),
                       .places = row_places(target, device),
                       .relative = state.has_images() ? relative_index(visibility, 1, c.mmfs_max_images) : Tensor()};
  };
  auto at_once = [&] {
    Tensor logits = run(fresh());
    state.count(1);
    return logits;
  };
  if (!records_ || !records_graphs(device)) return at_once();
  if (version_ != state.version()) {
    forget();
    version_ = state.version();
    return at_once();
  }
  if (!graph_) try {
      in_ = fresh();
      in_.embeds = in_.embeds.clone();
      graph_ = std::make_unique<DeviceGraph>(device, [&] { logits_ = run(in_); });
    } catch (const OutOfMemory&) {  // a graph keeps all that a step makes
      forget();
      records_ = false;
      return at_once();
    }
  in_.embeds.overwrite(contiguous(embeds));
  in_.turns.overwrite(turns);
  in_.plan.overwrite(plan);
  in_.places.target.overwrite(Tensor::from<int64_t>({rows}, target));
  graph_->launch();
  state.count(1);
  return logits_;
}

}  // namespace deem
