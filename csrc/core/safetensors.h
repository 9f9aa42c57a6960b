// safetensors files: reading maps the file, writing is atomic. The format is 8 bytes of header length (little endian),
// a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace deem {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// A mapped file. Everything is checked on open: IoError for what the system refuses, FormatError for what is wrong
// inside.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path);

  const std::vector<std::string>& names() const;  // in the order of the file's data
  bool contains(const std::string& name) const;
  // Shares the mapped pages (copied on write, the file never changes); copies only misaligned data.
  Tensor tensor(const std::string& name) const;  // throws WeightsError for an unknown name
  const std::map<std::string, std::string>& metadata() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> p_;
};

// Weights in another dtype, on the CPU, not recorded. Throws ValueError, naming `what`, where a finite number becomes infinite: f16 ends at 65504.
Tensor cast_weights(const Tensor& t, DType to, const std::string& what);

// Writes to a temporary file in the same folder, syncs it, renames it over `path`. Tensors may be strided and on any device. With a dtype, floating
// tensors are stored as that; at most one tensor at a time is copied, so that a model needs no second one to be written.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {}, std::optional<DType> dtype = {});

}  // namespace deem
