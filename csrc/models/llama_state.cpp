// The cache of decoding.
#include <algorithm>

#include "models/llama.h"
#include "ops/view.h"

namespace deem {

Tensor LlamaState::keys(size_t layer) const { return slice(layers_[layer].keys, 1, 0, length_); }
Tensor LlamaState::values(size_t layer) const { return slice(layers_[layer].values, 1, 0, length_); }

Tensor LlamaState::hidden() const {
  check<ValueError>(keeps_hidden_ && length_ > 0, "[llama] the state keeps no hidden states");
  return reshape(slice(hidden_, 1, 0, length_), {hidden_.size(0), length_, hidden_.size(3)});
}

int64_t LlamaState::room() const { return layers_.empty() || !layers_[0].keys ? 0 : layers_[0].keys.size(1); }

Tensor LlamaState::extend(Tensor& buffer, const Tensor& x) {
  no_gradient("llama with a state", x, {x});
  int64_t batch = x.size(0), end = length_ + x.size(1);
  if (!buffer || buffer.size(1) < end) {
    int64_t room = std::max({end, reserved_, buffer ? 2 * buffer.size(1) : int64_t(0)});
    Tensor wider = Tensor::empty({batch, room, x.size(2), x.size(3)}, x.dtype(), x.device());
    if (length_ > 0) copy_into(slice(wider, 1, 0, length_), slice(buffer, 1, 0, length_));
    buffer = wider;
    version_++;
  }
  check<ShapeError>(buffer.size(0) == batch, "[llama] the state holds ", buffer.size(0), " rows but got ", batch);
  copy_into(slice(buffer, 1, length_, end), x);
  return slice(buffer, 1, 0, end);
}

void LlamaState::put(size_t layer, const Tensor& keys, const Tensor& values) {
  if (layers_.size() <= layer) layers_.resize(layer + 1);
  layers_[layer] = {};
  length_ = 0;
  version_++;
  extend(layers_[layer].keys, keys);
  extend(layers_[layer].values, values);
  length_ = keys.size(1);
}

void LlamaState::truncate(int64_t length) {
  check<ValueError>(length >= 0 && length <= length_, "[llama] a state of ", length_, " positions cannot be cut to ",
                    length);
  length_ = length;
}

void LlamaState::select(const Tensor& rows) {
  version_++;
  std::vector<Tensor*> buffers;
  for (Layer& l : layers_) buffers.insert(buffers.end(), {&l.keys, &l.values});
  if (keeps_hidden_) buffers.push_back(&hidden_);
  for (Tensor* t : buffers) {
    // What lies beyond the length is room, not content.
    Tensor kept = gather_rows(contiguous(slice(*t, 1, 0, length_)), rows), wider = kept;
    if (t->size(1) > length_) {
      wider = Tensor::empty({rows.size(0), t->size(1), t->size(2), t->size(3)}, t->dtype(), t->device());
      copy_into(slice(wider, 1, 0, length_), kept);
    }
    *t = wider;
  }
  for (Tensor& t : image_values_)
    if (t) t = gather_rows(t, rows);
}

}  // namespace deem
