#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/engine.h"

namespace deem {
namespace {

struct Descriptor {
  int fd;
  explicit Descriptor(int fd) : fd(fd) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
};

[[noreturn]] void fail_io(const char* what, const std::string& path, int error = errno) {
  throw IoError(str("cannot ", what, " '", path, "': ", std::strerror(error)));
}

void check_path(const std::string& path) {
  check<IoError>(!path.empty(), "the path of a file is empty");
  check<IoError>(path.find('\0') == std::string::npos, "the path of a file holds a zero byte");
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  check_path(path);
  // Not blocking: opening a pipe must fail below, not wait for a writer.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.fd < 0) fail_io("open", path);
  struct stat st;
  if (::fstat(file.fd, &st) != 0) fail_io("read", path);
  check<IoError>(S_ISREG(st.st_mode), "cannot open '", path, "': not a regular file");
  if (st.st_size == 0) return std::shared_ptr<MappedFile>(new MappedFile(nullptr, 0));
  // Private: a stray write changes a copy of the page, never the file. No swap is set aside for such copies.
  void* data = ::mmap(nullptr, size_t(st.st_size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.fd, 0);
  if (data == MAP_FAILED) fail_io("map", path);
  return std::shared_ptr<MappedFile>(new MappedFile(static_cast<char*>(data), uint64_t(st.st_size)));
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, bytes_);
}

uint64_t checked_numel(const Shape& shape, const std::string& where) {
  uint64_t n = 1;
  bool zero = false;
  for (int64_t d : shape) {
    check<FormatError>(d >= 0, where, "shape ", shape, " has a negative size");
    if (d == 0) zero = true;
    else
      check<FormatError>(!__builtin_mul_overflow(n, uint64_t(d), &n) && n < (uint64_t(1) << 46), where, "shape ", shape,
                         " has too many elements");
  }
  return zero ? 0 : n;
}

Tensor MappedFile::tensor(uint64_t begin, DType dtype, const Shape& shape, const Shape& strides,
                          const std::string& where) {
  uint64_t n = checked_numel(shape, where), size = size_of(dtype), reach = n;
  bool plain = strides.size() == 0;
  if (!plain) {
    check<FormatError>(strides.size() == shape.size(), where, "shape ", shape, " and strides ", strides,
                       " differ in length");
    reach = n > 0;
    for (int i = 0; i < shape.size() && n > 0; i++) {
      uint64_t step;
      check<FormatError>(strides[i] >= 0 &&
                             !__builtin_mul_overflow(uint64_t(shape[i] - 1), uint64_t(strides[i]), &step) &&
                             !__builtin_add_overflow(reach, step, &reach),
                         where, "strides ", strides, " reach too far");
    }
  }
  uint64_t length;
  check<FormatError>(!__builtin_mul_overflow(reach, size, &length) && begin <= bytes_ && length <= bytes_ - begin,
                     where, "the data at byte ", begin, " reaches beyond the file's ", bytes_, " bytes");
  Shape flat{int64_t(reach)};
  char* data = data_ + begin;
  Tensor t;
  if (reinterpret_cast<uintptr_t>(data) % size != 0) {
    t = Tensor::empty(flat, dtype);
    std::memcpy(t.raw(), data, length);
  } else {
    t = Tensor::from_storage(std::make_shared<Storage>(data, length, Device::cpu, shared_from_this()), flat, dtype);
  }
  return plain ? t.view(shape, shape.contiguous_strides(), 0) : t.view(shape, strides, 0);
}

// ---- writing

TemporaryFile::TemporaryFile(const std::string& path) : path_(path) {
  check_path(path);
  size_t slash = path.rfind('/');
  folder_ = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  static std::atomic<unsigned> counter{0};
  do {
    name_ = str(folder_, "/.deem-", ::getpid(), '-', counter++, ".tmp");
    fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) fail_io("create a file in", folder_);
  struct stat old;
  if (::stat(path.c_str(), &old) == 0 && S_ISREG(old.st_mode))
    (void)!::fchmod(fd_, old.st_mode & 07777);  // keep who may read it
}

TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!name_.empty()) ::unlink(name_.c_str());
}

void TemporaryFile::write(const char* data, size_t bytes) {
  constexpr size_t kChunk = size_t(16) << 20;  // between two looks at the cancel flag
  while (bytes > 0) {
    poll_cancel();
    ssize_t n = ::write(fd_, data, std::min(bytes, kChunk));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_io("write", path_, n == 0 ? ENOSPC : errno);
    data += n;
    bytes -= size_t(n);
  }
}

void TemporaryFile::move_into_place() {
  if (::fsync(fd_) != 0) fail_io("sync", path_);
  int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0) fail_io("close", path_);
  if (::rename(name_.c_str(), path_.c_str()) != 0) fail_io("replace", path_);
  name_.clear();
  Descriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot sync a folder and say EINVAL; a folder may be writable but not readable.
  if (folder.fd >= 0 && ::fsync(folder.fd) != 0 && errno != EINVAL) fail_io("sync", folder_);
}

}  // namespace deem
