#include "cpu/dnnl.h"

#include <omp.h>

#include <algorithm>
#include <functional>
#include <list>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <unordered_map>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/wide.h"

namespace deem::onednn {
namespace {

using dnnl::memory;
using Dims = memory::dims;

dnnl::engine& engine() {
  static dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}
dnnl::stream& stream() {
  static thread_local dnnl::stream s(engine());
  return s;
}

memory::data_type type_of(DType t) {
  switch (t) {
    case DType::f32: return memory::data_type::f32;
    case DType::bf16: return memory::data_type::bf16;
    default: throw DTypeError(str("convolutions take f32 or bf16 but got ", t));
  }
}

// One built primitive: its arguments are made once, their pointers set at every call. Weights go through a reorder into the layout that
// the primitive prefers, their gradient through one out of it; what that takes is scratch memory, so that a problem keeps none.
struct Built {
  dnnl::primitive primitive;
  std::unordered_map<int, memory> args;
  struct Moved {
    int arg;
    bool input;
    dnnl::reorder reorder;
    memory plain, packed;
  };
  std::optional<Moved> moved;

  void set(int arg, const void* data) {
    memory& m = moved && moved->arg == arg ? moved->plain : args.at(arg);
    m.set_data_handle(const_cast<void*>(data));
  }
  void run() {
    openmp_takes_over();
    Scratch room;
    if (moved) {
      room.take(int64_t(moved->packed.get_desc().get_size()), DType::u8);
      moved->packed.set_data_handle(room.data());
    }
    if (moved && moved->input) moved->reorder.execute(stream(), moved->plain, moved->packed);
    primitive.execute(stream(), args);
    if (moved && !moved->input) moved->reorder.execute(stream(), moved->packed, moved->plain);
  }

  void plain(int arg, const memory::desc& md) { args.emplace(arg, memory(md, engine(), nullptr)); }
  // The argument in the caller's layout where the primitive wants the same, else through a reorder.
  void through(int arg, const memory::desc& caller, const memory::desc& wanted, bool input) {
    if (caller == wanted) return plain(arg, caller);
    plain(arg, wanted);
    auto pd = input ? dnnl::reorder::primitive_desc(engine(), caller, engine(), wanted)
                    : dnnl::reorder::primitive_desc(engine(), wanted, engine(), caller);
    moved = Moved{arg, input, dnnl::reorder(pd), memory(caller, engine(), nullptr), args.at(arg)};
  }
};

using Key = std::vector<int64_t>;
struct HashKey {
  size_t operator()(const Key& k) const {
    size_t h = 1469598103934665603u;
    for (int64_t v : k) h = (h ^ size_t(v)) * 1099511628211u;
    return h;
  }
};

// Least recently used problems are dropped beyond kMostPrimitives, so that endlessly new shapes cannot fill the memory.
constexpr size_t kMostPrimitives = 2048;

Built& built(Key key, const std::function<void(Built&)>& make) {
  struct Cache {
    std::list<std::pair<Key, Built>> order;  // most recent first
    std::unordered_map<Key, decltype(order)::iterator, HashKey> index;
  };
  static thread_local Cache cache;
  omp_set_num_threads(num_threads());
  key.push_back(num_threads());  // a primitive is laid out for a number of threads
  if (auto it = cache.index.find(key); it != cache.index.end()) {
    cache.order.splice(cache.order.begin(), cache.order, it->second);
    return it->second->second;
  }
  Built fresh;
  try {
    make(fresh);
  } catch (const dnnl::error& e) {
    throw NotImplemented(str("oneDNN cannot build this operation: ", e.what()));
  }
  cache.order.emplace_front(key, std::move(fresh));
  cache.index[key] = cache.order.begin();
  if (cache.order.size() > kMostPrimitives) {
    cache.index.erase(cache.order.back().first);
    cache.order.pop_back();
  }
  return cache.order.front().second;
}

enum Kind : int64_t { kConvForward, kConvData, kConvWeights };

#if DNNL_VERSION_MAJOR >= 3
template <class Primitive, class... Args>
typename Primitive::primitive_desc describe(const dnnl::primitive_attr& attr, const Args&... args) {
  return typename Primitive::primitive_desc(engine(), args..., attr);
}
#else
template <class Primitive, class... Args>
typename Primitive::primitive_desc describe(const dnnl::primitive_attr& attr, const Args&... args) {
  return typename Primitive::primitive_desc(typename Primitive::desc(args...), attr, engine());
}
#endif

struct ConvDescs {
  memory::desc x, w, w_any, b, y;
  Dims strides, pad_begin, pad_end;
};

Key conv_key(Kind kind, const ConvShape& s, bool bias) {
  return {kind,
          s.n,
          s.h,
          s.w,
          s.in,
          s.out,
          s.kh,
          s.kw,
          s.oh,
          s.ow,
          s.stride,
          s.pad_top,
          s.pad_left,
          s.pad_bottom,
          s.pad_right,
          s.groups,
          int64_t(s.dtype),
          bias};
}

// oneDNN names dimensions N C H W and (G) O I H W whatever the layout; the tags say how they lie.
ConvDescs describe_conv(const ConvShape& s) {
  using tag = memory::format_tag;
  auto t = type_of(s.dtype);
  bool grouped = s.groups > 1;
  Dims w = grouped ? Dims{s.groups, s.out / s.groups, s.in / s.groups, s.kh, s.kw} : Dims{s.out, s.in, s.kh, s.kw};
  return {.x = {{s.n, s.in, s.h, s.w}, t, tag::nhwc},
          .w = grouped ? memory::desc(w, t, tag::gohwi) : memory::desc(w, t, tag::ohwi),
          .w_any = {w, t, tag::any},
          .b = {{s.out}, t, tag::x},
          .y = {{s.n, s.out, s.oh, s.ow}, t, tag::nhwc},
          .strides = {s.stride, s.stride},
          .pad_begin = {s.pad_top, s.pad_left},
          .pad_end = {s.pad_bottom, s.pad_right}};
}

dnnl::convolution_forward::primitive_desc forward_desc(const ConvDescs& d, bool bias) {
  using dnnl::algorithm;
  dnnl::primitive_attr attr;
  auto kind = dnnl::prop_kind::forward_training;
  return bias ? describe<dnnl::convolution_forward>(attr, kind, algorithm::convolution_direct, d.x, d.w_any, d.b, d.y,
                                                    d.strides, d.pad_begin, d.pad_end)
              : describe<dnnl::convolution_forward>(attr, kind, algorithm::convolution_direct, d.x, d.w_any, d.y,
                                                    d.strides, d.pad_begin, d.pad_end);
}

// Backward descriptors need the forward one as a hint.
template <class Primitive, class... Args>
typename Primitive::primitive_desc backward_desc(const dnnl::convolution_forward::primitive_desc& hint,
                                                 const Args&... args) {
#if DNNL_VERSION_MAJOR >= 3
  return typename Primitive::primitive_desc(engine(), args..., hint);
#else
  return typename Primitive::primitive_desc(typename Primitive::desc(args...), engine(), hint);
#endif
}

}  // namespace

void conv_forward(const ConvShape& s, const void* x, const void* weight, const void* bias, void* y) {
  Built& p = built(conv_key(kConvForward, s, bias), [&](Built& p) {
    ConvDescs d = describe_conv(s);
    auto pd = forward_desc(d, bias);
    p.primitive = dnnl::convolution_forward(pd);
    p.plain(DNNL_ARG_SRC, d.x);
    p.plain(DNNL_ARG_DST, d.y);
    if (bias) p.plain(DNNL_ARG_BIAS, d.b);
    p.through(DNNL_ARG_WEIGHTS, d.w, pd.weights_desc(), true);
  });
  p.set(DNNL_ARG_SRC, x);
  p.set(DNNL_ARG_WEIGHTS, weight);
  p.set(DNNL_ARG_DST, y);
  if (bias) p.set(DNNL_ARG_BIAS, bias);
  p.run();
}

void conv_backward_data(const ConvShape& s, const void* dy, const void* weight, void* dx) {
  Built& p = built(conv_key(kConvData, s, false), [&](Built& p) {
    ConvDescs d = describe_conv(s);
    auto pd =
        backward_desc<dnnl::convolution_backward_data>(forward_desc(d, false), dnnl::algorithm::convolution_direct, d.x,
                                                       d.w_any, d.y, d.strides, d.pad_begin, d.pad_end);
    p.primitive = dnnl::convolution_backward_data(pd);
    p.plain(DNNL_ARG_DIFF_DST, d.y);
    p.plain(DNNL_ARG_DIFF_SRC, d.x);
    p.through(DNNL_ARG_WEIGHTS, d.w, pd.weights_desc(), true);
  });
  p.set(DNNL_ARG_DIFF_DST, dy);
  p.set(DNNL_ARG_WEIGHTS, weight);
  p.set(DNNL_ARG_DIFF_SRC, dx);
  p.run();
}

void conv_backward_weights(const ConvShape& s, const void* x, const void* dy, void* dweight, void* dbias) {
  Built& p = built(conv_key(kConvWeights, s, dbias), [&](Built& p) {
    ConvDescs d = describe_conv(s);
    using Backward = dnnl::convolution_backward_weights;
    auto algorithm = dnnl::algorithm::convolution_direct;
    auto hint = forward_desc(d, dbias);
    auto pd = dbias
                  ? backward_desc<Backward>(hint, algorithm, d.x, d.w_any, d.b, d.y, d.strides, d.pad_begin, d.pad_end)
                  : backward_desc<Backward>(hint, algorithm, d.x, d.w_any, d.y, d.strides, d.pad_begin, d.pad_end);
    p.primitive = Backward(pd);
    p.plain(DNNL_ARG_SRC, d.x);
    p.plain(DNNL_ARG_DIFF_DST, d.y);
    if (dbias) p.plain(DNNL_ARG_DIFF_BIAS, d.b);
    p.through(DNNL_ARG_DIFF_WEIGHTS, d.w, pd.diff_weights_desc(), false);
  });
  p.set(DNNL_ARG_SRC, x);
  p.set(DNNL_ARG_DIFF_DST, dy);
  p.set(DNNL_ARG_DIFF_WEIGHTS, dweight);
  if (dbias) p.set(DNNL_ARG_DIFF_BIAS, dbias);
  p.run();
}

}  // namespace deem::onednn
