// Logits of all ids from the published head, plus those of the added ids from a second one (model.md, step 7).
#pragma once
#include "models/module.h"

namespace deem {

struct TextHeadConfig {
  int64_t hidden_size;
  int64_t txt_vocab_size;       // all ids
  int64_t orig_txt_vocab_size;  // ids from here on are added ones; may equal txt_vocab_size

  static TextHeadConfig read(const Config& c);
};

struct TextHead {
  TextHeadConfig config;
  Linear head;                     // freezing it is the caller's choice
  std::optional<Linear> head_new;  // none without added ids

  TextHead(const Scope& s, const TextHeadConfig& c);
  Tensor operator()(const Tensor& hidden) const;  // [..., C] -> [..., txt_vocab_size]
};

}  // namespace deem
