#include "parity.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "cuda/emu/emu.h"
#include "cuda/slot.h"

namespace deem::test {

struct Buffer::State {
  DType dtype;
  int64_t n;
  std::vector<unsigned char> start, host, fetched;
  void* device = nullptr;
  bool ran = false;
};

static void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string text = cudaGetErrorString(status);
  emu::clear_fault();
  throw Failure{str(what, ": ", text)};
}

Address Buffer::operator()(Device d) const {
  if (!state_) return {nullptr};
  return {d == Device::cpu ? state_->host.data() : state_->device};
}
Address Buffer::operator()(Device d, int64_t element) const {
  return {static_cast<char*>((*this)(d).p) + element * int64_t(size_of(state_->dtype))};
}
void* Buffer::host_data() const { return state_->host.data(); }
int64_t Buffer::size() const { return state_->n; }
DType Buffer::dtype() const { return state_->dtype; }

static double value_at(const std::vector<unsigned char>& bytes, DType dtype, int64_t i) {
  auto read = [&]<class T>(T v) {
    std::memcpy(static_cast<void*>(&v), bytes.data() + size_t(i) * sizeof v, sizeof v);
    return double(v);
  };
  switch (dtype) {
    case DType::f32: return read(float());
    case DType::bf16: return read(bf16());
    case DType::f16: return read(f16());
    case DType::i64: return read(int64_t());
    case DType::i32: return read(int32_t());
    case DType::u8: return read(uint8_t());
  }
  return 0;
}
static std::vector<double> values_of(const std::vector<unsigned char>& bytes, DType dtype, int64_t n) {
  std::vector<double> v(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) v[size_t(i)] = value_at(bytes, dtype, i);
  return v;
}
std::vector<double> Buffer::device_values() const { return values_of(state_->fetched, state_->dtype, state_->n); }
std::vector<double> Buffer::host_values() const { return values_of(state_->host, state_->dtype, state_->n); }

static void write(std::vector<unsigned char>& bytes, DType dtype, int64_t i, double v) {
  auto put = [&]<class T>(T t) { std::memcpy(bytes.data() + size_t(i) * sizeof t, static_cast<void*>(&t), sizeof t); };
  switch (dtype) {
    case DType::f32: return put(float(v));
    case DType::bf16: return put(bf16(float(v)));
    case DType::f16: return put(f16(float(v)));
    case DType::i64: return put(int64_t(v));
    case DType::i32: return put(int32_t(v));
    case DType::u8: return put(uint8_t(v));
  }
}

void register_cuda_kernels() {
  static const bool once = [] {
    for (auto* k = cuda::KernelList::first(); k; k = k->next)
      register_kernel(k->kernel.op, k->kernel.args_size, Device::cuda, k->kernel.fn);
    return true;
  }();
  (void)once;
}

std::vector<uint32_t> seeds() {
  const char* text = std::getenv("EMU_SEEDS");
  if (!text) text = std::getenv("EMU_SEED");
  if (!text) text = "0,1,2";
  std::vector<uint32_t> list;
  for (char* end; *text; text = *end ? end + 1 : end) list.push_back(uint32_t(std::strtoul(text, &end, 0)));
  return list;
}

Parity::Parity(std::string name) : name_(std::move(name)) { register_cuda_kernels(); }
Parity::~Parity() {
  for (auto& b : buffers_)
    if (b.device) cudaFree(b.device);
}

Buffer Parity::add(int64_t n, DType dtype) {
  Buffer b;
  buffers_.emplace_back();
  b.state_ = &buffers_.back();
  b.state_->n = n;
  b.state_->dtype = dtype;
  const size_t bytes = size_t(n) * size_of(dtype);
  b.state_->host.resize(bytes, 0xff);
  if (bytes) check_cuda(cudaMalloc(&b.state_->device, bytes), "cudaMalloc");
  return b;
}
Buffer Parity::random(int64_t n, DType dtype, double scale, double offset) {
  Buffer b = add(n, dtype);
  for (int64_t i = 0; i < n; i++) {
    uint64_t z = random_ += 0x9e3779b97f4a7c15ull;  // splitmix64
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    const double unit = double((z ^ z >> 31) >> 11) * 0x1p-53;
    write(b.state_->host, dtype, i, offset + scale * (2 * unit - 1));
  }
  return b;
}
Buffer Parity::integers(int64_t n, DType dtype, int64_t low, int64_t high) {
  Buffer unit = random(n, DType::f32, 0.5, 0.5), b = add(n, dtype);
  for (int64_t i = 0; i < n; i++) {
    // The whole range of 64 bits may be asked for.
    const double v = double(low) + double(unit.host<float>()[i]) * (double(high) - double(low));
    write(b.state_->host, dtype, i, v < double(high) ? std::floor(v) : double(high - 1));
  }
  return b;
}
Buffer Parity::output(int64_t n, DType dtype) { return add(n, dtype); }
Buffer Parity::zeros(int64_t n, DType dtype) {
  Buffer b = add(n, dtype);
  std::fill(b.state_->host.begin(), b.state_->host.end(), 0);
  return b;
}
Buffer Parity::raw(const void* values, int64_t n, DType dtype) {
  Buffer b = add(n, dtype);
  if (n) std::memcpy(b.state_->host.data(), values, b.state_->host.size());
  return b;
}

void Parity::run(const std::function<void(Device)>& f) {
  for (auto& b : buffers_) b.start = b.host, b.ran = false;
  f(Device::cpu);
  const uint32_t before = emu::seed();
  for (uint32_t seed : seeds()) {
    emu::set_seed(seed);
    for (auto& b : buffers_)
      if (b.n) check_cuda(cudaMemcpy(b.device, b.start.data(), b.start.size(), cudaMemcpyHostToDevice), "upload");
    try {
      f(Device::cuda);
    } catch (...) {
      emu::clear_fault();
      emu::set_seed(before);
      throw;
    }
    check_cuda(cudaDeviceSynchronize(), name_.c_str());
    for (auto& b : buffers_) {
      std::vector<unsigned char> bytes(b.start.size());
      if (b.n) check_cuda(cudaMemcpy(bytes.data(), b.device, bytes.size(), cudaMemcpyDeviceToHost), "download");
      if (b.ran && bytes != b.fetched)
        for (int64_t i = 0; i < b.n; i++) {
          const double one = value_at(b.fetched, b.dtype, i), two = value_at(bytes, b.dtype, i);
          if (one != two && !(one != one && two != two))
            throw Failure{str(name_, ": element ", i, " of ", b.n, " is ", one, " and with seed ", seed, " ", two)};
        }
      b.fetched = std::move(bytes);
      b.ran = true;
    }
  }
  emu::set_seed(before);
}

void Parity::close(const Buffer& b, double tolerance, const char* what) {
  const DType t = b.dtype();
  if (tolerance < 0) tolerance = t == DType::f32 ? 2e-6 : t == DType::bf16 ? 0x1p-8 : t == DType::f16 ? 0x1p-11 : 0;
  const std::vector<double> want = b.host_values(), got = b.device_values();
  double largest = 1;
  for (double v : want)
    if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
  int64_t bad = 0, worst = -1;
  double distance = 0;
  for (size_t i = 0; i < want.size(); i++) {
    if (want[i] == got[i] || (std::isnan(want[i]) && std::isnan(got[i]))) continue;
    const double d = std::fabs(want[i] - got[i]);
    if (d <= tolerance * largest) continue;
    bad++;
    if (worst < 0 || !(d <= distance)) distance = d, worst = int64_t(i);
  }
  if (bad)
    throw Failure{str(name_, *what ? ", " : "", what, ": ", bad, " of ", want.size(), " differ; element ", worst,
                      " is ", got[size_t(worst)], ", on the CPU ", want[size_t(worst)], ", allowed ",
                      tolerance * largest)};
}

}  // namespace deem::test
