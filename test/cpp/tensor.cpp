#include "core/tensor.h"

#include <vector>

#include "test.h"

namespace deem::test {

TEST("tensors: shapes, strides and copies of views") {
  std::vector<float> values(24);
  for (size_t i = 0; i < 24; i++) values[i] = float(i);
  Tensor t = Tensor::from<float>({2, 3, 4}, values);
  EXPECT(t.is_contiguous() && t.numel() == 24 && t.nbytes() == 96 && t.size(-1) == 4);
  Tensor swapped = t.view({4, 3, 2}, {1, 4, 12}, 0);
  EXPECT(!swapped.is_contiguous());
  Tensor copy = swapped.clone();
  EXPECT(copy.is_contiguous());
  for (int64_t i = 0; i < 24; i++) EXPECT_EQ(copy.data<float>()[i], float(i / 6 + i / 2 % 3 * 4 + i % 2 * 12));
  Tensor part = t.view({2}, {12}, 5);
  EXPECT_EQ(part.clone().data<float>()[1], 17.f);
  part.data<float>()[0] = -1;
  EXPECT_EQ(t.data<float>()[5], -1.f);
  EXPECT_EQ(t.detach().impl()->storage.get(), t.impl()->storage.get());
  expect_error<ShapeError>([&] { swapped.values<float>(); }, "contiguous");
}

TEST("tensors: empty and scalar ones") {
  Tensor none = Tensor::zeros({3, 0, 2});
  EXPECT(none.is_contiguous() && none.numel() == 0 && none.clone().numel() == 0);
  EXPECT_EQ(none.view({0, 3}, {1, 5}, 0).clone().numel(), 0);
  EXPECT_EQ(Tensor::scalar(2.5).item(), 2.5);
  for (DType d : {DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32, DType::u8})
    EXPECT_EQ(Tensor::full({1, 1}, 3, d).item(), 3.0);
  expect_error<ShapeError>([&] { none.item(); }, "one element");
}

TEST("tensors: what does not fit is refused") {
  std::vector<float> three(3);
  expect_error<ShapeError>([&] { Tensor::from<float>({2, 2}, three); }, "needs 4 values but got 3");
  expect_error<ShapeError>([] { Tensor::zeros({-1}); }, "negative");
  expect_error<ShapeError>([] { Tensor::zeros({1 << 20, 1 << 20, 1 << 20, 1 << 20}); }, "too many elements");
  expect_error<ShapeError>([] { Shape({1, 1, 1, 1, 1, 1, 1, 1, 1}); }, "at most 8");
  expect_error<DTypeError>([] { Tensor::zeros({1}).data<int64_t>(); }, "is f32 but was read as i64");
  expect_error<DTypeError>([] { Tensor::zeros({1}, DType::i64).set_requires_grad(true); }, "only floating");
  expect_error<DeviceError>([] { Tensor::zeros({1}, DType::f32, Device::cuda); }, "cuda");
  expect_error<DeviceError>([] { device_from_name("tpu"); }, "unknown device 'tpu'");
  auto bytes = std::make_shared<Storage>(size_t(8), Device::cpu);
  expect_error<ShapeError>([&] { Tensor::from_storage(bytes, {3}, DType::f32); }, "does not fit");
}

TEST("shapes: broadcasting and axes") {
  EXPECT(broadcast_shapes("op", {4, 1, 3}, {2, 1}) == (Shape{4, 2, 3}));
  EXPECT(broadcast_shapes("op", {}, {0, 1}) == (Shape{0, 1}));
  EXPECT(broadcast_shapes("op", {1}, {0}) == (Shape{0}));
  expect_error<ShapeError>([] { broadcast_shapes("add", {2, 3}, {2}); }, "[add] shapes [2, 3] and [2]");
  EXPECT_EQ(normalize_axis("op", -1, 3), 2);
  expect_error<ShapeError>([] { normalize_axis("sum", 3, 3); }, "[sum] axis 3 is out of range");
}

}  // namespace deem::test
