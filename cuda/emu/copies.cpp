// Allocation and copies. A copy from pageable memory reads it at the call, one from pinned memory when the stream comes to it.
#include <algorithm>
#include <cstring>

#include "cuda/emu/memory.h"
#include "cuda/emu/runtime.h"
#include "cuda/emu/sanitizer.h"
#include "cuda/emu/scratch.h"

using namespace deem::emu;
using deem::str;

namespace {

const char* name_of(Kind k) { return k == Kind::device ? "device" : k == Kind::pinned ? "pinned" : "pageable"; }

// Rows of `width` bytes; a plain copy is one row.
struct Rows {
  char* to;
  const char* from;
  size_t to_pitch, from_pitch, width, height;

  size_t to_bytes() const { return height ? (height - 1) * to_pitch + width : 0; }
  size_t from_bytes() const { return height ? (height - 1) * from_pitch + width : 0; }
  void run() const {
    Access access;
    for (size_t r = 0; r < height; r++) std::memmove(to + r * to_pitch, from + r * from_pitch, width);
  }
};

cudaError_t copy(const Rows& rows, cudaMemcpyKind kind, cudaStream_t stream, bool wait, const char* what) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!rows.width || !rows.height) return cudaSuccess;
  if (rows.width > rows.to_pitch || rows.width > rows.from_pitch) return report(cudaErrorInvalidPitchValue);
  const Place to = place_of(rows.to), from = place_of(rows.from);
  const bool to_device = to.kind == Kind::device, from_device = from.kind == Kind::device;
  bool fits = true;
  if (kind == cudaMemcpyHostToDevice) fits = to_device && !from_device;
  if (kind == cudaMemcpyDeviceToHost) fits = !to_device && from_device;
  if (kind == cudaMemcpyDeviceToDevice) fits = to_device && from_device;
  if (kind == cudaMemcpyHostToHost) fits = !to_device && !from_device;
  if (!fits)
    return report(cudaErrorInvalidValue,
                  str(what, " of kind ", int(kind), " from ", name_of(from.kind), " to ", name_of(to.kind), " memory"));
  if ((to.start && rows.to_bytes() > to.left) || (from.start && rows.from_bytes() > from.left))
    return report(cudaErrorInvalidValue, str(what, " beyond the end of an allocation"));
  if (wait)
    if (cudaError_t e = refuse_in_capture(what, false)) return e;
  const bool pageable = to.kind == Kind::pageable || from.kind == Kind::pageable;
  if (pageable && capturing(stream))
    return report(cudaErrorStreamCaptureUnsupported, str(what, " of pageable memory in a stream that is captured"));
  if (from.kind == Kind::pageable && to_device) {
    auto bytes = std::make_shared<std::vector<char>>(rows.from, rows.from + rows.from_bytes());
    Rows staged = rows;
    staged.from = bytes->data();
    if (cudaError_t e = enqueue(stream, what, [staged, bytes] { staged.run(); })) return e;
  } else {
    if (cudaError_t e = enqueue(stream, what, [rows] { rows.run(); })) return e;
    wait = wait || to.kind == Kind::pageable || (!to_device && !from_device);
  }
  return wait ? finish(stream, what) : cudaSuccess;
}

cudaError_t fill(void* p, int value, size_t bytes, cudaStream_t stream, bool wait, const char* what) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (!bytes) return cudaSuccess;
  const Place place = place_of(p);
  if (place.kind != Kind::device || bytes > place.left)
    return report(cudaErrorInvalidValue, str(what, " of memory that is not the device's"));
  if (wait)
    if (cudaError_t e = refuse_in_capture(what, false)) return e;
  if (cudaError_t e = enqueue(stream, what, [=] {
        Access access;
        std::memset(p, value, bytes);
      }))
    return e;
  return wait ? finish(stream, what) : cudaSuccess;
}

cudaError_t allocate(void** p, size_t bytes) {
  if (!p) return report(cudaErrorInvalidValue);
  *p = nullptr;
  if (!bytes) return cudaSuccess;
  *p = device_allocate(bytes);
  if (!*p)
    return report(cudaErrorMemoryAllocation,
                  str(bytes, " bytes asked, ", device_bytes_used(), " of ", device_bytes_total(), " in use"));
  return cudaSuccess;
}

}  // namespace

namespace deem::emu {

void lend(void* block, size_t bytes, cudaStream_t stream) {
  enqueue(stream, "scratch", [=] {
    Access access;
    const size_t all = place_of(block).left;
    show(block, all);
    std::memset(block, 0xff, bytes);
    if (all > bytes) hide(static_cast<char*>(block) + bytes, all - bytes);
  });
}
void take_back(void* block, cudaStream_t stream) noexcept {
  enqueue(stream, "scratch", [=] { show(block, place_of(block).left); });
}

}  // namespace deem::emu

extern "C" {

cudaError_t cudaMalloc(void** p, size_t bytes) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (cudaError_t e = refuse_in_capture("cudaMalloc", true)) return e;
  return allocate(p, bytes);
}
cudaError_t cudaFree(void* p) {
  Lock lock(runtime_mutex());
  if (!p) return cudaSuccess;
  if (cudaError_t e = refuse_in_capture("cudaFree", true)) return e;
  if (cudaError_t e = finish_all("cudaFree")) return e;
  Access access;
  return device_free(p) ? cudaSuccess : report(cudaErrorInvalidValue, "cudaFree of what is not allocated");
}
cudaError_t cudaMallocAsync(void** p, size_t bytes, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  if (cudaError_t e = sticky()) return e;
  if (capturing(stream)) return report(cudaErrorStreamCaptureUnsupported, "graphs with allocations are not emulated");
  return allocate(p, bytes);
}
cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  Lock lock(runtime_mutex());
  if (!p) return cudaSuccess;
  if (capturing(stream)) return report(cudaErrorStreamCaptureUnsupported, "graphs with allocations are not emulated");
  const Place place = place_of(p);
  if (place.kind != Kind::device || place.start != p)
    return report(cudaErrorInvalidValue, "cudaFreeAsync of what is not allocated");
  return enqueue(stream, "cudaFreeAsync", [p] {
    Access access;
    if (!device_free(p)) report(cudaErrorInvalidValue, "cudaFreeAsync of what was freed");
  });
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Lock lock(runtime_mutex());
  *total = device_bytes_total();
  *free = *total - device_bytes_used();
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  Lock lock(runtime_mutex());
  if (!p) return report(cudaErrorInvalidValue);
  if (cudaError_t e = refuse_in_capture("cudaHostAlloc", true)) return e;
  *p = bytes ? pinned_allocate(bytes) : nullptr;
  return *p || !bytes ? cudaSuccess : report(cudaErrorMemoryAllocation, str(bytes, " bytes of pinned memory"));
}
cudaError_t cudaMallocHost(void** p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
cudaError_t cudaFreeHost(void* p) {
  Lock lock(runtime_mutex());
  if (!p) return cudaSuccess;
  if (cudaError_t e = finish_all("cudaFreeHost")) return e;
  return pinned_free(p) ? cudaSuccess : report(cudaErrorInvalidValue, "cudaFreeHost of what is not pinned");
}
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
  return pin(p, bytes) ? cudaSuccess : report(cudaErrorHostMemoryAlreadyRegistered);
}
cudaError_t cudaHostUnregister(void* p) {
  if (cudaError_t e = finish_all("cudaHostUnregister")) return e;
  return unpin(p) ? cudaSuccess : report(cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* p) {
  if (!attributes) return report(cudaErrorInvalidValue);
  *attributes = {};
  const Place place = place_of(p);
  attributes->type = place.kind == Kind::device   ? cudaMemoryTypeDevice
                     : place.kind == Kind::pinned ? cudaMemoryTypeHost
                                                  : cudaMemoryTypeUnregistered;
  attributes->device = place.kind == Kind::device ? current_device() : -1;
  if (place.kind == Kind::device) attributes->devicePointer = const_cast<void*>(p);
  if (place.kind == Kind::pinned) attributes->hostPointer = const_cast<void*>(p);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return copy({static_cast<char*>(to), static_cast<const char*>(from), bytes, bytes, bytes, 1}, kind, nullptr, true,
              "cudaMemcpy");
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy({static_cast<char*>(to), static_cast<const char*>(from), bytes, bytes, bytes, 1}, kind, stream, false,
              "cudaMemcpyAsync");
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  return copy({static_cast<char*>(to), static_cast<const char*>(from), to_pitch, from_pitch, width, height}, kind,
              nullptr, true, "cudaMemcpy2D");
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy({static_cast<char*>(to), static_cast<const char*>(from), to_pitch, from_pitch, width, height}, kind,
              stream, false, "cudaMemcpy2DAsync");
}
cudaError_t cudaMemset(void* p, int value, size_t bytes) { return fill(p, value, bytes, nullptr, true, "cudaMemset"); }
cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  return fill(p, value, bytes, stream, false, "cudaMemsetAsync");
}

}  // extern "C"
