// Steps of decoding on a device beside the CPU: of one size however much is held, so that from the third on they are replayed from a
// graph, whose kernels are queued at once instead of one by one.
#pragma once
#include "core/graph.h"
#include "models/llama.h"
#include "models/text_head.h"

namespace deem {

class DecodeGraph {
 public:
  // Logits [R, V] in f32 of the position after what `state` holds, which is counted; the next call may overwrite them. embeds [R, 1, C];
  // keep [R, length + 1], positions [R, 1] and visibility [R, 1, N] on the host. Undefined, and nothing done, on the CPU and where
  // the state has no room: there Llama::forward() does it.
  Tensor step(const Llama& llm, const TextHead& head, LlamaState& state, const Tensor& embeds, const Tensor& keep,
              const Tensor& positions, const Tensor& visibility);
  // What positions may look at is another now.
  void forget() { *this = {}; }

 private:
  std::optional<uint64_t> version_;
  Llama::Step in_;
  Tensor logits_;
  std::unique_ptr<DeviceGraph> graph_;
  bool records_ = true;
};

}  // namespace deem
