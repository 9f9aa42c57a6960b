// Rows of a table by id. Gradient of the table: the rows of dy summed by id, in reading order, so that it does not depend on
// threads; other rows are zero. Nothing is spent on a table that wants none.
#include "ops/embedding.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops.h"
#include "ops/device.h"

namespace deem {

constinit Kernel<EmbeddingArgs> embedding_kernel{"embedding"};
constinit Kernel<SumRowsArgs> sum_rows_kernel{"sum_rows"};

using Indices = std::vector<int64_t>;

Tensor sum_rows(const Tensor& x, std::span<const int64_t> target, int64_t size, int64_t cols) {
  Indices order;
  for (size_t i = 0; i < target.size(); i++)
    if (target[i] >= 0) order.push_back(int64_t(i));
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return target[size_t(a)] < target[size_t(b)]; });
  Indices begin, targets;
  for (size_t i = 0; i < order.size(); i++) {
    int64_t t = target[size_t(order[i])];
    if (targets.empty() || targets.back() != t) {
      targets.push_back(t);
      begin.push_back(int64_t(i));
    }
  }
  begin.push_back(int64_t(order.size()));
  Device device = x.device();
  Tensor to = Tensor::zeros({size, cols}, x.dtype(), device);
  Uploaded order_there(order, device), begin_there(begin, device), targets_there(targets, device);
  sum_rows_kernel(device, {.x = x.raw(),
                           .order = order_there.data(),
                           .begin = begin_there.data(),
                           .target = targets_there.data(),
                           .to = to.raw(),
                           .segments = int64_t(targets.size()),
                           .cols = cols,
                           .dtype = x.dtype()});
  return to;
}

RowPlaces row_places(std::span<const int64_t> target, Device device) {
  int64_t n = int64_t(target.size());
  Indices count(size_t(n) + 1);
  std::iota(count.begin(), count.end(), int64_t(0));
  auto list = [&](std::span<const int64_t> values) {
    return Tensor::from<int64_t>({int64_t(values.size())}, values).to(device);
  };
  return {list(std::span(count).first(size_t(n))), list(count), list(target)};
}

void put_rows(const Tensor& to, const Tensor& x_in, const RowPlaces& places) {
  Tensor x = contiguous(x_in.detach());
  int64_t n = x.size(0);
  check<ShapeError>(to.is_contiguous() && to.dtype() == x.dtype() && places.target.numel() == n && n > 0, "[put_rows] ",
                    n, " rows of ", x.dtype(), " do not fit ", places.target.numel(), " places of ", to.dtype());
  sum_rows_kernel(to.device(), {.x = x.raw(),
                                .order = places.order.data<int64_t>(),
                                .begin = places.begin.data<int64_t>(),
                                .target = places.target.data<int64_t>(),
                                .to = to.raw(),
                                .segments = n,
                                .cols = x.numel() / n,
                                .dtype = x.dtype()});
}

static void check_table(const char* op, const Tensor& table, const Tensor& ids) {
  check<ShapeError>(table.ndim() == 2, "[", op, "] the table must be [V, C] but has shape ", table.shape());
  check<DTypeError>(is_float(table.dtype()), "[", op, "] the table must be floating but is ", table.dtype());
  check<DTypeError>(ids.dtype() == DType::i64, "[", op, "] ids must be i64 but is ", ids.dtype());
}

static void check_id(const char* op, int64_t id, const Tensor& table) {
  check<IndexError>(id >= 0 && id < table.size(0), "[", op, "] ids must be in the table of ", table.size(0),
                    " rows but one is ", id);
}

static Shape with_columns(Shape shape, int64_t cols) {
  shape.push_back(cols);
  return shape;
}

Tensor embedding(const Tensor& table_in, const Tensor& ids_in) {
  check_table("embedding", table_in, ids_in);
  Tensor table = contiguous(table_in), ids = on_host(ids_in);
  for (int64_t id : ids.values<int64_t>()) check_id("embedding", id, table);
  Shape size = table.shape();
  Tensor y = Tensor::empty(with_columns(ids.shape(), size[1]), table.dtype(), table.device());
  Tensor source = ids.to(table.device());
  embedding_kernel(table.device(), {.table = table.raw(),
                                    .images = nullptr,
                                    .source = source.data<int64_t>(),
                                    .added = nullptr,
                                    .marked = nullptr,
                                    .y = y.raw(),
                                    .rows = ids.numel(),
                                    .cols = size[1],
                                    .dtype = table.dtype()});
  return record("embedding", y, {table}, [ids, size](const Tensor& dy, Needs) -> Tensors {
    return {sum_rows(dy, ids.values<int64_t>(), size[0], size[1])};
  });
}

static void check_interleaved(const Tensor& ids, const Tensor& table, const Tensor& images, const Tensor& soi,
                              int64_t image_token, int64_t soi_token) {
  check_table("embed_interleaved", table, ids);
  int64_t cols = table.size(1);
  check<ShapeError>(ids.ndim() == 2, "[embed_interleaved] ids must be [B, T] but has shape ", ids.shape());
  check<ShapeError>(images.ndim() >= 1 && images.size(-1) == cols,
                    "[embed_interleaved] image embeddings must be [..., ", cols, "] but have shape ", images.shape());
  check<ShapeError>(soi.shape() == Shape{1, cols}, "[embed_interleaved] the start-of-image vector must be [1, ", cols,
                    "] but has shape ", soi.shape());
  check<DTypeError>(images.dtype() == table.dtype() && soi.dtype() == table.dtype(),
                    "[embed_interleaved] image embeddings and start-of-image vector must be ", table.dtype(),
                    " but are ", images.dtype(), " and ", soi.dtype());
  check_same_device("embed_interleaved", {table, images, soi});
  check<ValueError>(image_token != soi_token,
                    "[embed_interleaved] image and start-of-image token must differ but both are ", image_token);
}

Tensor embed_interleaved(const Tensor& ids_in, const Tensor& table_in, const Tensor& images_in, const Tensor& soi_in,
                         int64_t image_token, int64_t soi_token) {
  check_interleaved(ids_in, table_in, images_in, soi_in, image_token, soi_token);
  Tensor ids = on_host(ids_in), table = contiguous(table_in), images = contiguous(images_in), soi = contiguous(soi_in);
  int64_t cols = table.size(1), slots = 0, rows = ids.numel(), given = 1;
  for (int i = 0; i + 1 < images.ndim(); i++) given *= images.size(i);
  Indices source;
  std::vector<uint8_t> marked;
  for (int64_t id : ids.values<int64_t>()) {
    if (id != image_token) check_id("embed_interleaved", id, table);
    source.push_back(id == image_token ? ~slots++ : id);
    marked.push_back(id == soi_token);
  }
  check<ShapeError>(slots == given, "[embed_interleaved] the ids have ", slots, " image slots but there are ", given,
                    " image embeddings");
  Device device = table.device();
  Tensor y = Tensor::empty(with_columns(ids.shape(), cols), table.dtype(), device);
  Uploaded source_there(source, device);
  Uploaded marked_there(marked, device);
  embedding_kernel(device, {.table = table.raw(),
                            .images = images.raw(),
                            .source = source_there.data(),
                            .added = soi.raw(),
                            .marked = marked_there.data(),
                            .y = y.raw(),
                            .rows = rows,
                            .cols = cols,
                            .dtype = table.dtype()});
  Shape table_shape = table.shape(), image_shape = images.shape();
  return record("embed_interleaved", y, {table, images, soi}, [=](const Tensor& dy, Needs needs) {
    Tensors grads(3);
    if (needs[0]) grads[0] = sum_rows(dy, source, table_shape[0], cols);
    if (needs[1]) {
      Indices at;
      for (int64_t i = 0; i < rows; i++)
        if (source[size_t(i)] < 0) at.push_back(i);
      grads[1] = Tensor::empty(image_shape, dy.dtype(), device);
      Uploaded at_there(at, device);
      embedding_kernel(dy.device(), {.table = dy.raw(),
                                     .images = nullptr,
                                     .source = at_there.data(),
                                     .added = nullptr,
                                     .marked = nullptr,
                                     .y = grads[1].raw(),
                                     .rows = int64_t(at.size()),
                                     .cols = cols,
                                     .dtype = dy.dtype()});
    }
    if (needs[2]) {
      Indices target;
      for (uint8_t m : marked) target.push_back(m ? 0 : -1);
      grads[2] = sum_rows(dy, target, 1, cols);
    }
    return grads;
  });
}

}  // namespace deem
