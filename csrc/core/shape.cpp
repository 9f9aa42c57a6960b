#include "core/shape.h"

#include <algorithm>

namespace deem {

int64_t Shape::numel() const {
  int64_t n = 1;
  bool zero = false;
  for (int64_t d : *this) {
    check<ShapeError>(d >= 0, "sizes must not be negative but the shape is ", *this);
    if (d == 0) zero = true;
    else
      check<ShapeError>(!__builtin_mul_overflow(n, d, &n) && n < (int64_t(1) << 46), "shape ", *this,
                        " has too many elements");
  }
  return zero ? 0 : n;
}

Shape Shape::contiguous_strides() const {
  Shape s = *this;
  int64_t step = 1;
  for (int i = n_ - 1; i >= 0; i--) {
    s[i] = step;
    step *= std::max<int64_t>(d_[i], 1);
  }
  return s;
}

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << '[';
  for (int i = 0; i < s.size(); i++) out << (i ? ", " : "") << s[i];
  return out << ']';
}

Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b) {
  int n = std::max(a.size(), b.size());
  Shape out;
  for (int i = 0; i < n; i++) {
    int ia = i - (n - a.size()), ib = i - (n - b.size());
    int64_t x = ia < 0 ? 1 : a[ia], y = ib < 0 ? 1 : b[ib];
    check<ShapeError>(x == y || x == 1 || y == 1, "[", op, "] shapes ", a, " and ", b, " cannot be broadcast together");
    out.push_back(x == 1 ? y : x);
  }
  return out;
}

int normalize_axis(const char* op, int64_t axis, int ndim) {
  check<ShapeError>(axis >= -ndim && axis < ndim, "[", op, "] axis ", axis, " is out of range for ", ndim,
                    " dimensions");
  return int(axis < 0 ? axis + ndim : axis);
}

}  // namespace deem
