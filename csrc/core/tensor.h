// Tensor: a handle to shared storage with a shape, strides and a dtype. Copying a Tensor copies the handle.
// Feature maps are [N, H, W, C] (channels last), convolution weights [O, KH, KW, I / groups], tokens are rows.
#pragma once
#include <memory>
#include <optional>
#include <span>

#include "core/dtype.h"
#include "core/shape.h"

namespace deem {

enum class Device : uint8_t { cpu, cuda, count };
const char* name_of(Device d);
// cpu; cuda or cuda:1, which loads its plugin and chooses the GPU; auto, which is cuda where that works. Throws DeviceError that says
// what is unknown or missing.
Device device_from_name(const std::string& name);
// Of models and floating tensors where nothing else is said: DEEM_DEVICE, or what was set, else the CPU. Throws as the above.
Device default_device();
void set_default_device(Device d);

// Bytes with an owner. `owner` is set when the bytes belong to somebody else (a mapped file, a JavaScript buffer).
struct Storage {
  void* data;
  size_t bytes;
  Device device;
  std::shared_ptr<void> owner;

  Storage(size_t bytes, Device device);
  Storage(void* data, size_t bytes, Device device, std::shared_ptr<void> owner)
      : data(data), bytes(bytes), device(device), owner(std::move(owner)) {}
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
};

struct Node;             // one recorded operation, see autograd.h
struct QuantizedWeight;  // a weight in few bits, see ops/quantized_linear.h
[[noreturn]] void throw_quantized();

struct TensorImpl {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // elements
  Shape shape, strides;
  DType dtype = DType::f32;
  bool requires_grad = false;        // a leaf whose gradient is wanted
  std::shared_ptr<Node> node;        // what made this tensor, when it is tracked
  std::shared_ptr<TensorImpl> grad;  // leaves only
  // Leaves of bf16 or f16 in training: contiguous f32 values that these are the rounded ones of. Updates gather there.
  std::shared_ptr<TensorImpl> master;
  // Set for a weight in few bits: shape and dtype are those of the weight it stands for, and there are no elements.
  std::shared_ptr<const QuantizedWeight> quantized;
  // The values once more in the order that products read, see prepack() of ops.h. Whoever writes the values drops it.
  std::shared_ptr<TensorImpl> packed;
};

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : p_(std::move(impl)) {}

  static Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu);
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = Device::cpu);
  static Tensor full(const Shape& shape, double value, DType dtype = DType::f32, Device device = Device::cpu);
  static Tensor scalar(double value) { return full({}, value); }
  template <class T>
  static Tensor from(const Shape& shape, std::span<const T> values);  // copies; throws ShapeError on a wrong count
  static Tensor from_storage(std::shared_ptr<Storage> storage, const Shape& shape, DType dtype);
  static Tensor from_quantized(std::shared_ptr<const QuantizedWeight> weight, const Shape& shape, DType dtype);

  bool defined() const { return p_ != nullptr; }
  explicit operator bool() const { return defined(); }
  TensorImpl* impl() const { return p_.get(); }
  const std::shared_ptr<TensorImpl>& impl_ptr() const { return p_; }

  const Shape& shape() const { return p_->shape; }
  const Shape& strides() const { return p_->strides; }
  int ndim() const { return p_->shape.size(); }
  int64_t size(int axis) const { return p_->shape[axis < 0 ? axis + ndim() : axis]; }  // unchecked but for the sign
  int64_t numel() const { return p_->shape.numel(); }
  size_t nbytes() const { return size_t(numel()) * size_of(dtype()); }
  DType dtype() const { return p_->dtype; }
  Device device() const { return p_->storage->device; }
  bool is_contiguous() const;

  void* raw() const {  // throws DTypeError for a weight in few bits
    if (p_->quantized) throw_quantized();
    return static_cast<char*>(p_->storage->data) + p_->offset * int64_t(size_of(p_->dtype));
  }
  template <class T>
  T* data() const;  // throws DTypeError where T is not the tensor's type
  template <class T>
  std::span<T> values() const;  // all elements of a contiguous CPU tensor; throws DeviceError for another's
  double item() const;          // the only element, as a double, from any device; throws ShapeError for more

  // Same storage, other shape and strides; not recorded. Operations on graphs are in ops.h.
  Tensor view(const Shape& shape, const Shape& strides, int64_t offset) const;
  Tensor detach() const;  // same storage, no history
  Tensor clone() const;   // contiguous copy, no history
  // Itself where it is there already, else a contiguous copy without history: to_device() of ops.h is recorded. A weight in few bits
  // moves with its codes. Copies to the CPU wait for all that is queued.
  Tensor to(Device device) const;

  // Overwrites the first bytes of this contiguous tensor with those of a contiguous one of the same dtype, on whatever devices. Not
  // recorded.
  void overwrite(const Tensor& from) const;

  bool requires_grad() const { return p_->requires_grad; }
  void set_requires_grad(bool on) const;  // leaves of a floating dtype only
  bool tracked() const { return p_ && (p_->requires_grad || p_->node); }
  Tensor grad() const { return p_->grad ? Tensor(p_->grad) : Tensor(); }
  void clear_grad() const { p_->grad.reset(); }
  Tensor master() const { return p_->master ? Tensor(p_->master) : Tensor(); }
  void keep_master() const;  // its own values, widened, where there is none; nothing for f32
  void drop_master() const { p_->master.reset(); }
  // After somebody wrote the values: the master becomes what they say wherever it no longer rounds to them.
  void sync_master() const;
  void drop_packed() const { p_->packed.reset(); }

 private:
  std::shared_ptr<TensorImpl> p_;
};

using MaybeTensor = std::optional<Tensor>;

// A tensor or none, for lists of arguments that are only looked at.
struct TensorRef {
  const Tensor* p;
  TensorRef(const Tensor& t) : p(t.defined() ? &t : nullptr) {}
  TensorRef(const MaybeTensor& t) : p(t && t->defined() ? &*t : nullptr) {}
};
[[noreturn]] void throw_devices_differ(const char* op, Device a, Device b);

// Throws DeviceError, naming `op`, unless all that are given lie on one device; returns that one (the CPU for none).
inline Device check_same_device(const char* op, std::initializer_list<TensorRef> tensors) {
  const Tensor* first = nullptr;
  for (TensorRef t : tensors) {
    if (!t.p) continue;
    if (!first) first = t.p;
    else if (t.p->device() != first->device()) throw_devices_differ(op, first->device(), t.p->device());
  }
  return first ? first->device() : Device::cpu;
}

[[noreturn]] void throw_not_on_cpu(const char* what, Device d);

template <class T>
T* Tensor::data() const {
  check<DTypeError>(dtype() == dtype_of<std::remove_const_t<T>>::value, "the tensor is ", dtype(), " but was read as ",
                    dtype_of<std::remove_const_t<T>>::value);
  return static_cast<T*>(raw());
}

template <class T>
std::span<T> Tensor::values() const {
  if (device() != Device::cpu) throw_not_on_cpu("values()", device());
  check<ShapeError>(is_contiguous(), "values() needs a contiguous tensor");
  return {data<T>(), size_t(numel())};
}

template <class T>
Tensor Tensor::from(const Shape& shape, std::span<const T> values) {
  check<ShapeError>(shape.numel() == int64_t(values.size()), "shape ", shape, " needs ", shape.numel(),
                    " values but got ", values.size());
  Tensor t = empty(shape, dtype_of<T>::value);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

}  // namespace deem
