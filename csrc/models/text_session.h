// Text being written after interleaved prompts: the cache, the scores of what comes next, and the ways to go on.
// R rows (prompts times copies), V ids, N images of a row. Cache and maps are on the model's device; ids, what is kept and seen, and
// the scores that choices are made from are on the host.
#pragma once
#include "models/decode_graph.h"
#include "models/deem.h"

namespace deem {

class TextSession : public Model {
 public:
  // inputs: left-padded prompts as Deem takes them. options: copies (rows made of each prompt, default 1), reserve (positions to
  // come that the cache has room for). Holds the model.
  TextSession(std::shared_ptr<Deem> deem, const TensorMap& inputs, const Json& options);

  // next: ids? [R] to append, rows? [R] to go on from (beams), options of ChoiceRules and Sampling, seeds (one a row where
  //   something is drawn), alternatives -> ids [R], log_probs [R] under the model alone, alternative_ids and
  //   alternative_log_probs [R, alternatives].
  // beam: ids?, rows?, totals [R], options of ChoiceRules, beams, count -> the best `count` continuations of each prompt's beams:
  //   scores, tokens, beams [P, count].
  // logits: ids?, rows? -> logits [R, V].
  // score: ids [R, n], keep [R, n] -> log_probs [R, n] of these continuations, 0 where keep is 0. Nothing is appended.
  // append: more of the conversation, as the prompts (left-padded).
  // length: -> length, a scalar. truncate: {length}: forgets the tokens after it, at most those since the last append; then
  //   something must be appended before the session can say what comes next.
  TensorMap call(const std::string& method, const TensorMap& inputs, const Json& options) override;
  // picture: a PictureSession of what each row would show next. Nothing is appended.
  std::unique_ptr<Model> open(const std::string& kind, const TensorMap& inputs, const Json& options,
                              const std::shared_ptr<Model>& self) override;

 private:
  void feed(const TensorMap& inputs, bool first);
  void step(const TensorMap& inputs);  // rows?, ids?
  void select(const Tensor& rows);
  void look(const Tensor& hidden);      // scores after the last position
  void read_one(const Tensor& column);  // one id a row, and the scores after it
  void check_text(const Tensor& ids) const;
  Tensor forward(const Tensor& embeds, const Tensor& keep);
  // What f makes of the states of text of which nothing stays, whether it fails or not.
  Tensor peek(const Tensor& embeds, const Tensor& keep, const std::function<Tensor(const Tensor& hidden)>& f);
  Conditions painting();
  std::span<float> row(const Tensor& t, int64_t r) const;
  TensorMap next(const TensorMap& inputs, const Json& options);
  TensorMap beam(const TensorMap& inputs, const Json& options);
  TensorMap score(const TensorMap& inputs);
  void truncate(int64_t length);
  int64_t rows() const { return keep_.size(0); }

  std::shared_ptr<Deem> deem_;
  LlamaState state_;
  DecodeGraph graph_;
  Tensor keep_;                             // [R, length] i64
  Tensor visibility_;                       // [R, 1, N]: what the last position may look at
  Tensor logits_;                           // [R, V] f32 on the host; undefined after a truncation
  std::vector<std::vector<int64_t>> held_;  // text ids of each row, in order
  int64_t fixed_ = 0;                       // positions that cannot be taken back
  // Of each row the pictures that the next one may look at, nearest last; their maps [1, h, w, D].
  std::vector<std::vector<std::array<Tensor, 4>>> shown_;
};

}  // namespace deem
