// Convolutions as tests describe them, and the same by the definition in doubles.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "ops/conv.h"
#include "parity.h"

namespace deem::test {

struct ConvCase {
  const char* name;
  int64_t n, h, w, in, out, kh, kw, stride;
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int64_t groups = 1;
  int64_t offset = 0;  // elements by which the tensors lie off their allocations, which are aligned

  ConvSizes sizes(DType dtype) const {
    return {n,
            h,
            w,
            in,
            out,
            kh,
            kw,
            (h + top + bottom - kh) / stride + 1,
            (w + left + right - kw) / stride + 1,
            stride,
            top,
            left,
            bottom,
            right,
            groups,
            dtype};
  }
};

// f(n, y index, x index, weight index) for every product of the sums.
template <class F>
void for_each_product(const ConvSizes& s, F&& f) {
  const int64_t per_group = s.in / s.groups;
  for (int64_t n = 0; n < s.n; n++)
    for (int64_t i = 0; i < s.oh; i++)
      for (int64_t j = 0; j < s.ow; j++)
        for (int64_t kh = 0; kh < s.kh; kh++)
          for (int64_t kw = 0; kw < s.kw; kw++) {
            const int64_t ih = i * s.stride + kh - s.pad_top, iw = j * s.stride + kw - s.pad_left;
            if (ih < 0 || ih >= s.h || iw < 0 || iw >= s.w) continue;
            for (int64_t o = 0; o < s.out; o++)
              for (int64_t c = 0; c < per_group; c++)
                f(((n * s.oh + i) * s.ow + j) * s.out + o, ((n * s.h + ih) * s.w + iw) * s.in + (s.groups > 1 ? o : c),
                  ((o * s.kh + kh) * s.kw + kw) * per_group + c);
          }
}

// |got - want| <= tolerance * max(1, largest |want|), from element `offset` of got on.
inline void expect_close(const Buffer& got, int64_t offset, const std::vector<double>& want, double tolerance,
                         const std::string& what) {
  const std::vector<double> values = got.device_values();
  double largest = 1;
  for (double v : want) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < want.size(); i++)
    if (!(std::abs(values[i + size_t(offset)] - want[i]) <= tolerance * largest))
      throw Failure{str(what, ": element ", i, " is ", values[i + size_t(offset)], ", not ", want[i])};
}

}  // namespace deem::test
