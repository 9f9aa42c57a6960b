#include "models/resnet.h"

namespace deem {

static Conv2d conv(const Scope& s, int64_t in, int64_t out, int64_t kernel, std::optional<double> gain) {
  int64_t p = kernel / 2;
  if (!gain) return Conv2d(s, in, out, kernel, 1, p);
  return Conv2d(s, in, out, kernel, Conv2dOptions{1, p, p, p, p, 1}, Init::scaled(*gain, in * kernel * kernel));
}

ResnetBlock::ResnetBlock(const Scope& s, int64_t in, int64_t out, int64_t time_width, int64_t groups, double eps,
                         std::optional<double> gain)
    : norm1(s / "norm1", in, groups, eps),
      norm2(s / "norm2", out, groups, eps),
      conv1(conv(s / "conv1", in, out, 3, gain)),
      conv2(conv(s / "conv2", out, out, 3, gain ? std::optional(*gain / 10) : gain)) {
  if (time_width) time_emb_proj = Linear(s / "time_emb_proj", time_width, out);
  if (in != out) conv_shortcut = conv(s / "conv_shortcut", in, out, 1, gain);
}

Tensor ResnetBlock::operator()(const Tensor& x, const Tensor& time) const {
  Tensor h = conv1(norm1(x, true));
  if (time_emb_proj) {
    Tensor t = (*time_emb_proj)(time);
    h = add(h, reshape(t, {t.size(0), 1, 1, t.size(1)}));
  }
  h = conv2(norm2(h, true));
  return add(conv_shortcut ? (*conv_shortcut)(x) : x, h);
}

}  // namespace deem
