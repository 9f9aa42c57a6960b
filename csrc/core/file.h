// Files: mapped for reading, replaced as a whole for writing.
#pragma once
#include <memory>
#include <string>

#include "core/tensor.h"

namespace deem {

// A file in memory, read when it is touched.
class MappedFile : public std::enable_shared_from_this<MappedFile> {
 public:
  // IoError for what the system refuses and for what is no regular file. An empty file maps to no bytes.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;

  const char* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // The tensor whose first element stands at byte `begin`; strides in elements, contiguous if empty. Shares the mapped pages
  // (copied on write, the file never changes); copies only misaligned data. FormatError, beginning with `where`, if it reaches
  // beyond the file.
  Tensor tensor(uint64_t begin, DType dtype, const Shape& shape, const Shape& strides, const std::string& where);

 private:
  MappedFile(char* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  char* data_;
  uint64_t bytes_;
};

// A new file beside `path` that is removed again unless it was moved into place. IoError for what the system refuses.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;

  void write(const char* data, size_t bytes);  // polls for cancellation
  void move_into_place();                      // after syncing; a failure leaves the old file

 private:
  std::string path_, folder_, name_;
  int fd_ = -1;
};

// Elements of a shape; FormatError, beginning with `where`, where there are more than any tensor may have.
uint64_t checked_numel(const Shape& shape, const std::string& where);

}  // namespace deem
