// A list of at most kMaxDims sizes or strides, held inline so that making a tensor allocates nothing for its shape.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <vector>

#include "core/error.h"

namespace deem {

constexpr int kMaxDims = 8;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(dims.begin(), dims.end()) {}
  explicit Shape(const std::vector<int64_t>& dims) : Shape(dims.data(), dims.data() + dims.size()) {}
  Shape(const int64_t* first, const int64_t* last) {
    check<ShapeError>(last - first <= kMaxDims, "a tensor has at most ", kMaxDims, " dimensions but got ",
                      last - first);
    for (; first != last; ++first) d_[n_++] = *first;
  }

  int size() const { return n_; }
  bool empty() const { return n_ == 0; }
  int64_t& operator[](int i) { return d_[i]; }
  int64_t operator[](int i) const { return d_[i]; }
  int64_t* begin() { return d_.data(); }
  int64_t* end() { return d_.data() + n_; }
  const int64_t* begin() const { return d_.data(); }
  const int64_t* end() const { return d_.data() + n_; }
  int64_t back() const { return d_[n_ - 1]; }
  void push_back(int64_t v) {
    check<ShapeError>(n_ < kMaxDims, "a tensor has at most ", kMaxDims, " dimensions");
    d_[n_++] = v;
  }
  std::vector<int64_t> vec() const { return {begin(), end()}; }

  // Product of the sizes; 1 for a scalar. Throws ShapeError on negative sizes and on overflow.
  int64_t numel() const;
  Shape contiguous_strides() const;

  bool operator==(const Shape& o) const {
    if (n_ != o.n_) return false;
    for (int i = 0; i < n_; i++)
      if (d_[i] != o.d_[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxDims> d_{};
  int n_ = 0;
};

std::ostream& operator<<(std::ostream& out, const Shape& s);

// Right-aligned broadcasting as in NumPy; throws ShapeError naming `op`.
Shape broadcast_shapes(const char* op, const Shape& a, const Shape& b);

// Maps -n..n-1 to 0..n-1; throws ShapeError naming `op`.
int normalize_axis(const char* op, int64_t axis, int ndim);

}  // namespace deem
