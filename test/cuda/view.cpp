#include "ops/view.h"
#include <algorithm>

#include "ops/embedding.h"
#include "ops/resample.h"
#include "parity.h"

namespace deem::test {
namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

struct CopyCase {
  const char* name;
  Shape shape, y, x;  // strides in elements
  int64_t y_size, x_size;
};
const CopyCase kCopies[] = {
    {"one", {1}, {1}, {1}, 1, 1},
    {"flat", {1027}, {1}, {1}, 1027, 1027},
    {"one number everywhere", {4, 72}, {72, 1}, {0, 0}, 288, 1},
    {"a row everywhere", {9, 33}, {33, 1}, {0, 1}, 297, 33},
    {"a column everywhere", {9, 33}, {33, 1}, {1, 0}, 297, 9},
    {"out of wider rows", {6, 32}, {32, 1}, {80, 1}, 192, 480},
    {"into wider rows", {6, 32}, {80, 1}, {32, 1}, 480, 192},
    {"transposed", {65, 70}, {70, 1}, {1, 65}, 4550, 4550},
    {"transposed, tiles that fit", {64, 96}, {96, 1}, {1, 64}, 6144, 6144},
    {"transposed in y", {40, 50}, {1, 40}, {50, 1}, 2000, 2000},
    {"heads before rows", {2, 3, 17, 16}, {816, 272, 16, 1}, {816, 16, 48, 1}, 1632, 1632},
    {"batches transposed", {3, 33, 9}, {297, 9, 1}, {297, 1, 33}, 891, 891},
    {"channels first", {2, 20, 21, 3}, {1260, 63, 3, 1}, {1260, 21, 1, 420}, 2520, 2520},
    {"outer and middle axes swapped with the last", {10, 4, 12}, {48, 12, 1}, {1, 10, 40}, 480, 480},
    {"steps of two", {7, 31}, {31, 1}, {64, 2}, 217, 450},
};

TEST("cuda view: copies between any strides") {
  for (const CopyCase& c : kCopies)
    for (DType dtype : {DType::u8, DType::bf16, DType::f32, DType::i64})
      for (int64_t first : {0, 1}) {
        Parity p(str("copy ", dtype, ' ', c.name, " from ", first));
        auto x = p.integers(c.x_size + first, dtype, 0, 200), y = p.zeros(c.y_size + first, dtype);
        const auto axes = coalesce<2>(c.shape, {c.y, c.x});
        p.run([&](Device d) { copy_kernel(d, {y(d, first), x(d, first), axes, int64_t(size_of(dtype))}); });
        p.same(y);
      }
}

TEST("cuda view: gathered rows, and zeros for -1") {
  for (int64_t bytes : {1, 6, 12, 16, 33, 64, 4096, 4098})
    for (int64_t count : {1, 3, 40}) {
      Parity p(str("gather ", count, " rows of ", bytes, " bytes"));
      auto x = p.integers(20 * bytes, DType::u8, 0, 256), index = p.integers(count, DType::i64, -1, 20),
           y = p.output(count * bytes, DType::u8);
      p.run([&](Device d) { gather_rows_kernel(d, {x(d), index(d), y(d), count, bytes}); });
      p.same(y);
    }
}

TEST("cuda embedding: rows of a table and of images") {
  for (DType dtype : kFloats)
    for (int64_t cols : {1, 31, 64, 200})
      for (bool marks : {false, true}) {
        const int64_t rows = 29;
        Parity p(str("embedding ", dtype, " cols ", cols, marks ? " with marks" : ""));
        auto table = p.random(10 * cols, dtype), images = marks ? p.random(4 * cols, dtype) : Buffer(),
             source = p.integers(rows, DType::i64, marks ? -4 : 0, 10),
             added = marks ? p.random(cols, dtype) : Buffer(),
             marked = marks ? p.integers(rows, DType::u8, 0, 2) : Buffer(), y = p.output(rows * cols, dtype);
        p.run([&](Device d) {
          embedding_kernel(d, {.table = table(d),
                               .images = images(d),
                               .source = source(d),
                               .added = added(d),
                               .marked = marked(d),
                               .y = y(d),
                               .rows = rows,
                               .cols = cols,
                               .dtype = dtype});
        });
        p.same(y);
      }
}

TEST("cuda embedding: rows summed by segment, in order") {
  const std::vector<int64_t> begin = {0, 1, 4, 4, 29, 40}, target = {3, 0, 5, 2, 9};
  for (DType dtype : kFloats)
    for (int64_t cols : {1, 31, 64, 260}) {
      Parity p(str("sum_rows ", dtype, " cols ", cols));
      auto x = p.random(50 * cols, dtype), order = p.integers(40, DType::i64, 0, 50), starts = p.of(begin),
           targets = p.of(target), to = p.zeros(10 * cols, dtype);
      p.run([&](Device d) {
        sum_rows_kernel(d, {.x = x(d),
                            .order = order(d),
                            .begin = starts(d),
                            .target = targets(d),
                            .to = to(d),
                            .segments = 5,
                            .cols = cols,
                            .dtype = dtype});
      });
      p.same(to);
    }
}

// As gradients of gathered rows need it: many rows, segments of different lengths, some empty. Equal bits: each is added in order.
TEST("cuda view: rows added where they were gathered") {
  for (DType dtype : kFloats)
    for (int64_t cols : {3, 1040}) {
      const int64_t rows = cols > 100 ? 300 : 1100, segments = 37;
      std::vector<int64_t> begin{0}, target;
      for (int64_t s = 0; s < segments; s++) {
        begin.push_back(s + 1 < segments ? std::min(rows, begin.back() + s * 7 % 64) : rows);
        target.push_back(segments - 1 - s);
      }
      Parity p(str("sum_rows ", dtype, ' ', rows, " rows of ", cols));
      auto x = p.random(rows * cols, dtype), order = p.integers(rows, DType::i64, 0, rows), starts = p.of(begin),
           targets = p.of(target), to = p.zeros(segments * cols, dtype);
      p.run([&](Device d) {
        sum_rows_kernel(d, {.x = x(d),
                            .order = order(d),
                            .begin = starts(d),
                            .target = targets(d),
                            .to = to(d),
                            .segments = segments,
                            .cols = cols,
                            .dtype = dtype});
      });
      p.same(to);
    }
}

TEST("cuda resample: one axis of a separable filter") {
  for (DType dtype : kFloats)
    for (int64_t inner : {1, 3, 32, 70})
      for (auto [in, out] : {std::pair<int64_t, int64_t>{1, 1}, {5, 9}, {16, 7}}) {
        const int64_t outer = 3;
        std::vector<int64_t> begin{0};
        for (int64_t o = 0; o < out; o++) begin.push_back(begin.back() + o % 5);  // some outputs see nothing
        const int64_t taps = begin.back() + 1;
        Parity p(str("resample_axis ", dtype, ' ', in, " to ", out, " inner ", inner));
        auto x = p.random(outer * in * inner, dtype), y = p.output(outer * out * inner), starts = p.of(begin),
             index = p.integers(taps, DType::i64, 0, in), weight = p.random(taps);
        p.run([&](Device d) {
          resample_axis_kernel(d, {.x = x(d),
                                   .y = y(d),
                                   .begin = starts(d),
                                   .index = index(d),
                                   .weight = weight(d),
                                   .outer = outer,
                                   .in = in,
                                   .out = out,
                                   .inner = inner,
                                   .dtype = dtype});
        });
        p.close(y);
      }
}

std::vector<int64_t> ranges(int64_t in, int64_t out) {
  std::vector<int64_t> begin;
  for (int64_t s = 0; s <= in; s++) begin.push_back((s * out + in - 1) / in);
  return begin;
}

TEST("cuda resample: nearest, and its gradient") {
  struct Case {
    int64_t n, height, width, out_height, out_width, channels;
  };
  for (DType dtype : kFloats)
    for (const Case& c :
         {Case{1, 1, 1, 1, 1, 1}, {2, 3, 5, 6, 10, 8}, {1, 7, 4, 3, 9, 33}, {2, 4, 4, 9, 3, 3}, {1, 2, 2, 32, 4, 64}}) {
      Parity p(str("nearest ", dtype, ' ', c.height, 'x', c.width, " to ", c.out_height, 'x', c.out_width, " of ",
                   c.channels));
      const int64_t small = c.n * c.height * c.width * c.channels,
                    large = c.n * c.out_height * c.out_width * c.channels;
      auto x = p.random(small, dtype), y = p.output(large, dtype), dy = p.random(large, dtype),
           dx = p.output(small, dtype), rows = p.of(ranges(c.height, c.out_height)),
           columns = p.of(ranges(c.width, c.out_width));
      p.run([&](Device d) {
        ResizeNearestArgs args{.x = x(d),
                               .y = y(d),
                               .rows = rows(d),
                               .columns = columns(d),
                               .n = c.n,
                               .height = c.height,
                               .width = c.width,
                               .out_height = c.out_height,
                               .out_width = c.out_width,
                               .channels = c.channels,
                               .dtype = dtype};
        resize_nearest_kernel(d, args);
        args.x = dy(d);
        args.y = dx(d);
        resize_nearest_backward_kernel(d, args);
      });
      p.same(y);
      p.same(dx, "dx");
    }
}

}  // namespace
}  // namespace deem::test
