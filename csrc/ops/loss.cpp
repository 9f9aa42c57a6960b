// loss = mean over kept rows of log(sum(exp(x))) - x[label]; dx = (softmax(x) - onehot(label)) * dy / kept, 0 where ignored.
#include "ops/loss.h"

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<CrossEntropyArgs> cross_entropy_kernel{"cross_entropy"};
constinit Kernel<CrossEntropyBackwardArgs> cross_entropy_backward_kernel{"cross_entropy_backward"};

static void check_cross_entropy(const Tensor& logits, const Tensor& labels) {
  check<ShapeError>(logits.ndim() == 2 && logits.size(1) > 0, "[cross_entropy] logits must be [R, K] but has shape ",
                    logits.shape());
  check<ShapeError>(labels.shape() == Shape{logits.size(0)}, "[cross_entropy] labels must be [", logits.size(0),
                    "] but has shape ", labels.shape());
  check<DTypeError>(is_float(logits.dtype()), "[cross_entropy] logits must be floating but is ", logits.dtype());
  check<DTypeError>(labels.dtype() == DType::i64, "[cross_entropy] labels must be i64 but is ", labels.dtype());
}

// Their sum over `kept`, a scalar; 0 where nothing is kept.
static Tensor mean_of(const Tensor& losses, int64_t kept) {
  if (kept == 0) return Tensor::full({}, 0, DType::f32, losses.device());
  if (losses.device() != Device::cpu) return mul_scalar(sum(losses), 1 / double(kept));
  double sum = 0;
  for (float loss : losses.values<float>()) sum += loss;
  return Tensor::scalar(sum / double(kept));
}

Tensor cross_entropy(const Tensor& logits_in, const Tensor& labels_in, int64_t ignore_index) {
  check_cross_entropy(logits_in, labels_in);
  Tensor logits = contiguous(logits_in), labels = on_host(labels_in);
  Device device = logits.device();
  int64_t rows = logits.size(0), cols = logits.size(1), kept = 0;
  for (int64_t label : labels.values<int64_t>()) {
    if (label == ignore_index) continue;
    check<IndexError>(label >= 0 && label < cols, "[cross_entropy] labels must be in 0..", cols - 1, " or ",
                      ignore_index, " but one is ", label);
    kept++;
  }
  Tensor targets = labels.to(device);
  Tensor lse = Tensor::empty({rows}, DType::f32, device), losses = Tensor::empty({rows}, DType::f32, device);
  cross_entropy_kernel(device, {.logits = logits.raw(),
                                .labels = targets.data<int64_t>(),
                                .lse = lse.data<float>(),
                                .loss = losses.data<float>(),
                                .rows = rows,
                                .cols = cols,
                                .ignore_index = ignore_index,
                                .dtype = logits.dtype()});
  Tensor y = mean_of(losses, kept);
  return record("cross_entropy", y, {logits}, [=](const Tensor& dy, Needs) -> Tensors {
    Tensor dx = Tensor::empty(logits.shape(), logits.dtype(), device);
    cross_entropy_backward_kernel(device, {.logits = logits.raw(),
                                           .labels = targets.data<int64_t>(),
                                           .lse = lse.data<float>(),
                                           .dlogits = dx.raw(),
                                           .dy = dy.data<float>(),
                                           .kept = kept,
                                           .rows = rows,
                                           .cols = cols,
                                           .ignore_index = ignore_index,
                                           .dtype = logits.dtype()});
    return {dx};
  });
}

}  // namespace deem
