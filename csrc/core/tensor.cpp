#include "core/tensor.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/device_api.h"
#include "core/memory.h"
#include "ops.h"
#include "ops/quantized_linear.h"
#include "ops/view.h"

namespace deem {

void throw_devices_differ(const char* op, Device a, Device b) {
  throw DeviceError(str("[", op, "] tensors are on different devices: ", name_of(a), " and ", name_of(b)));
}

void throw_not_on_cpu(const char* what, Device d) {
  throw DeviceError(str(what, " needs a tensor on the cpu but it is on ", name_of(d)));
}

Storage::Storage(size_t bytes, Device device)
    : data(device == Device::cpu ? allocate(bytes) : device_api(device).allocate(bytes)),
      bytes(bytes),
      device(device) {}

Storage::~Storage() {
  if (owner) return;
  if (device == Device::cpu) release(data, bytes);
  else device_api(device).release(data, bytes);
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  size_t bytes = size_t(shape.numel()) * size_of(dtype);
  return from_storage(std::make_shared<Storage>(bytes, device), shape, dtype);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  device_api(device).fill(t.raw(), 0, t.nbytes());
  return t;
}

// Cut towards zero and clamped to the range of T, NaN becomes 0: as cast() does.
template <class T>
static T whole(double value) {
  using Limits = std::numeric_limits<T>;
  if (value != value) return 0;
  if (value <= double(Limits::min())) return Limits::min();
  return value >= double(Limits::max()) ? Limits::max() : T(value);
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device) {
  if (device != Device::cpu) {
    if (value == 0 && !std::signbit(value)) return zeros(shape, dtype, device);
    Tensor t = empty(shape, dtype, device), one = full({}, value, dtype).to(device);
    Shape still;
    for (int i = 0; i < shape.size(); i++) still.push_back(0);
    copy_into(t, one.view(shape, still, 0));
    return t;
  }
  Tensor t = empty(shape, dtype);
  int64_t n = t.numel();
  switch (dtype) {
    case DType::f32: std::fill_n(t.data<float>(), n, float(value)); break;
    case DType::bf16: std::fill_n(t.data<bf16>(), n, bf16(float(value))); break;
    case DType::f16: std::fill_n(t.data<f16>(), n, f16(float(value))); break;
    case DType::i64: std::fill_n(t.data<int64_t>(), n, whole<int64_t>(value)); break;
    case DType::i32: std::fill_n(t.data<int32_t>(), n, whole<int32_t>(value)); break;
    case DType::u8: std::fill_n(t.data<uint8_t>(), n, whole<uint8_t>(value)); break;
  }
  return t;
}

Tensor Tensor::from_storage(std::shared_ptr<Storage> storage, const Shape& shape, DType dtype) {
  check<ShapeError>(size_t(shape.numel()) * size_of(dtype) <= storage->bytes, "shape ", shape, " of ", dtype,
                    " does not fit into ", storage->bytes, " bytes");
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::move(storage);
  impl->shape = shape;
  impl->strides = shape.contiguous_strides();
  impl->dtype = dtype;
  return Tensor(std::move(impl));
}

Tensor Tensor::from_quantized(std::shared_ptr<const QuantizedWeight> weight, const Shape& shape, DType dtype) {
  auto impl = std::make_shared<TensorImpl>();
  // No bytes of its own: the codes' tensor stands in for their owner.
  impl->storage = std::make_shared<Storage>(nullptr, 0, weight->packed.device(), weight->packed.impl_ptr());
  impl->shape = shape;
  impl->strides = shape.contiguous_strides();
  impl->dtype = dtype;
  impl->quantized = std::move(weight);
  return Tensor(std::move(impl));
}

void throw_quantized() {
  throw DTypeError("this weight lies in few bits: linear() takes it, and nothing else reads or writes its numbers");
}

bool Tensor::is_contiguous() const {
  int64_t step = 1;
  for (int i = ndim() - 1; i >= 0; i--) {
    if (p_->shape[i] != 1 && p_->strides[i] != step) return p_->shape.numel() == 0;
    step *= p_->shape[i];
  }
  return true;
}

double Tensor::item() const {
  check<ShapeError>(numel() == 1, "item() needs one element but the shape is ", shape());
  if (device() != Device::cpu) return to(Device::cpu).item();
  switch (dtype()) {
    case DType::f32: return *data<float>();
    case DType::bf16: return float(*data<bf16>());
    case DType::f16: return float(*data<f16>());
    case DType::i64: return double(*data<int64_t>());
    case DType::i32: return *data<int32_t>();
    case DType::u8: return *data<uint8_t>();
  }
  return 0;
}

Tensor Tensor::view(const Shape& shape, const Shape& strides, int64_t offset) const {
  if (p_->quantized) throw_quantized();
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = p_->storage;
  impl->offset = p_->offset + offset;
  impl->shape = shape;
  impl->strides = strides;
  impl->dtype = p_->dtype;
  return Tensor(std::move(impl));
}

Tensor Tensor::detach() const { return view(shape(), strides(), 0); }

Tensor Tensor::to(Device device) const {
  if (device == this->device()) return *this;
  if (p_->quantized)
    return from_quantized(std::make_shared<QuantizedWeight>(p_->quantized->packed.to(device), p_->quantized->format),
                          shape(), dtype());
  Tensor from = is_contiguous() ? *this : clone(), out = empty(shape(), dtype(), device);
  out.overwrite(from);
  return out;
}

void Tensor::overwrite(const Tensor& from) const {
  check<ShapeError>(is_contiguous() && from.is_contiguous() && from.nbytes() <= nbytes(), "overwrite() needs ",
                    "contiguous tensors, the new one no larger, but got ", from.shape(), " for ", shape());
  check<DTypeError>(from.dtype() == dtype(), "overwrite() needs ", dtype(), " but got ", from.dtype());
  if (from.nbytes() == 0) return;
  drop_packed();
  const DeviceApi& api = device_api(device() == Device::cpu ? from.device() : device());
  auto* move = from.device() == device() ? api.copy : device() == Device::cpu ? api.download : api.upload;
  move(raw(), from.raw(), from.nbytes());
}

Tensor Tensor::clone() const {
  Tensor out = empty(shape(), dtype(), device());
  if (is_contiguous()) device_api(device()).copy(out.raw(), raw(), nbytes());
  else copy_into(out, *this);
  return out;
}

void Tensor::set_requires_grad(bool on) const {
  if (on && p_->quantized) throw_quantized();
  check<DTypeError>(!on || is_float(dtype()), "only floating tensors can require a gradient but this one is ", dtype());
  check<ValueError>(!on || !p_->node, "requires_grad can be set on leaves only, not on the result of an operation");
  p_->requires_grad = on;
  if (!on) p_->grad.reset();
}

void Tensor::keep_master() const {
  check<DTypeError>(is_float(dtype()), "only floating tensors can have a master copy but this one is ", dtype());
  if (dtype() == DType::f32 || p_->master) return;
  check<ValueError>(is_contiguous() && !p_->node, "only a contiguous leaf can have a master copy");
  if (device() != Device::cpu) {
    p_->master = cast(detach(), DType::f32).impl_ptr();
    return;
  }
  Tensor m = empty(shape(), DType::f32, device());
  dispatch_float(dtype(), "keep_master", [&]<class T>(T) {
    const T* from = static_cast<const T*>(raw());
    std::transform(from, from + numel(), m.data<float>(), [](T v) { return float(v); });
  });
  p_->master = m.impl_ptr();
}

void Tensor::sync_master() const {
  if (!p_->master) return;
  if (device() != Device::cpu) {  // once a weight is loaded: the host does it
    Tensor values = to(Device::cpu);
    values.p_->master = master().to(Device::cpu).impl_ptr();
    values.sync_master();
    master().overwrite(values.master());
    return;
  }
  float* to = master().data<float>();
  dispatch_float(dtype(), "sync_master", [&]<class T>(T) {
    if constexpr (!std::is_same_v<T, float>) {
      const T* from = static_cast<const T*>(raw());
      for (int64_t i = 0; i < numel(); i++)
        if (T(to[i]).bits != from[i].bits) to[i] = float(from[i]);
    }
  });
}

}  // namespace deem
