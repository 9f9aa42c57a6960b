#include "core/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "core/engine.h"
#include "core/file.h"
#include "ops.h"

namespace deem {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little endian and is mapped as it is");

constexpr uint64_t kMaxHeader = 100'000'000;  // bytes, the limit of the format
constexpr size_t kMaxTensors = 100'000;       // bounds what a hostile header can make us allocate
constexpr const char* kMetadata = "__metadata__";

struct FileType {
  const char* name;
  DType dtype;
};
constexpr FileType kTypes[] = {{"F32", DType::f32}, {"BF16", DType::bf16}, {"F16", DType::f16}, {"I64", DType::i64},
                               {"I32", DType::i32}, {"U8", DType::u8},     {"BOOL", DType::u8}};

const char* file_type(DType t) {
  for (const FileType& f : kTypes)
    if (f.dtype == t) return f.name;
  return "";
}

// A name for a message: quoted, and cut where a hostile file made it long.
std::string quoted(std::string name) {
  constexpr size_t kLongest = 120;
  if (name.size() > kLongest) {
    size_t end = kLongest;
    while (end > 0 && (uint8_t(name[end]) & 0xc0) == 0x80) end--;  // not inside a UTF-8 character
    name = name.substr(0, end) + "...";
  }
  return "'" + name + "'";
}

struct Entry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes from the start of the data
};

// Streaming reader of the header: takes exactly the nesting the format has, so depth and size of a bad header cost
// nothing.
class HeaderReader {
 public:
  explicit HeaderReader(std::string where) : where_(std::move(where)) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool null() { return value("null"); }
  bool boolean(bool) { return value("a boolean"); }
  bool number_integer(int64_t v) { return value(str("the number ", v)); }
  bool number_float(double, const std::string& text) { return value("the number " + quoted(text)); }
  bool number_unsigned(uint64_t v) {
    if (at_ == At::shape) {
      check<FormatError>(entry_.shape.size() < kMaxDims, tensor(), "more than ", kMaxDims, " dimensions");
      check<FormatError>(v <= uint64_t(INT64_MAX), tensor(), "size ", v, " is too large");
      entry_.shape.push_back(int64_t(v));
    } else if (at_ == At::offsets) {
      check<FormatError>(offsets_ < 2, tensor(), "data_offsets must be two numbers but has more");
      (offsets_++ == 0 ? entry_.begin : entry_.end) = v;
    } else {
      return value(str("the number ", v));
    }
    return true;
  }
  bool string(std::string& v) {
    if (at_ == At::metadata) {
      check<FormatError>(metadata.emplace(key_, std::move(v)).second, where_, "duplicate metadata key ", quoted(key_));
    } else if (at_ == At::entry && key_ == "dtype") {
      auto known = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const FileType& f) { return v == f.name; });
      check<FormatError>(known != std::end(kTypes), tensor(), "dtype ", quoted(v),
                         " is not supported, known are F32, BF16, F16, I64, I32, U8, BOOL");
      entry_.dtype = known->dtype;
    } else {
      return value("a string");
    }
    return true;
  }
  bool binary(std::vector<uint8_t>&) { return value("binary data"); }

  bool start_object(size_t) {
    switch (at_) {
      case At::start: at_ = At::top; return true;
      case At::top:
        at_ = key_ == kMetadata ? At::metadata : At::entry;
        if (at_ == At::metadata) {
          check<FormatError>(!has_metadata_, where_, kMetadata, " appears twice");
          has_metadata_ = true;
        } else {
          check<FormatError>(entries.size() < kMaxTensors, where_, "more than ", kMaxTensors, " tensors");
          entry_ = {};
          entry_.name = key_;
          seen_.fill(false);
          offsets_ = 0;
        }
        return true;
      default: return value("an object");
    }
  }
  bool key(std::string& name) {
    key_ = std::move(name);
    if (at_ != At::entry) return true;
    for (size_t i = 0; i < kKeys.size(); i++)
      if (key_ == kKeys[i]) {
        check<FormatError>(!seen_[i], tensor(), key_, " appears twice");
        return seen_[i] = true;
      }
    throw FormatError(tensor() + "unknown key " + quoted(key_));
  }
  bool end_object() {
    if (at_ == At::entry) {
      for (size_t i = 0; i < kKeys.size(); i++) check<FormatError>(seen_[i], tensor(), kKeys[i], " is missing");
      entries.push_back(std::move(entry_));
    }
    at_ = at_ == At::top ? At::start : At::top;
    return true;
  }
  bool start_array(size_t) {
    if (at_ == At::entry && key_ == "shape") at_ = At::shape;
    else if (at_ == At::entry && key_ == "data_offsets") at_ = At::offsets;
    else return value("an array");
    return true;
  }
  bool end_array() {
    check<FormatError>(at_ != At::offsets || offsets_ == 2, tensor(), "data_offsets must be two numbers but has ",
                       offsets_);
    at_ = At::entry;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    throw FormatError(str(where_, "the header is not valid JSON at byte ", position));
  }

 private:
  enum class At { start, top, metadata, entry, shape, offsets };
  static constexpr std::array<const char*, 3> kKeys{"dtype", "shape", "data_offsets"};

  std::string tensor() const { return where_ + "tensor " + quoted(entry_.name) + ": "; }

  // Something stands where the format has something else.
  bool value(const std::string& what) const {
    switch (at_) {
      case At::start: throw FormatError(where_ + "the header must be an object but is " + what);
      case At::top: throw FormatError(where_ + quoted(key_) + " must be an object but is " + what);
      case At::metadata: throw FormatError(where_ + "metadata " + quoted(key_) + " must be a string but is " + what);
      case At::entry: throw FormatError(tensor() + key_ + " must not be " + what);
      case At::shape: throw FormatError(tensor() + "shape must be a list of sizes but holds " + what);
      case At::offsets: throw FormatError(tensor() + "data_offsets must be two byte positions but holds " + what);
    }
    return false;
  }

  std::string where_, key_;
  At at_ = At::start;
  Entry entry_;
  std::array<bool, 3> seen_{};
  int offsets_ = 0;
  bool has_metadata_ = false;
};

uint64_t bytes_of(const Entry& e, const std::string& where) {
  return checked_numel(e.shape, where + "tensor " + quoted(e.name) + ": ") * size_of(e.dtype);
}

// Sorted by position; the tensors must fill the data exactly: no hole, no overlap, nothing left over.
void check_layout(std::vector<Entry>& entries, uint64_t data_bytes, const std::string& where) {
  for (const Entry& e : entries) {
    auto tensor = [&] { return where + "tensor " + quoted(e.name) + ": "; };
    check<FormatError>(e.begin <= e.end, where, "tensor ", quoted(e.name), ": data ends at byte ", e.end,
                       " before it begins at ", e.begin);
    if (e.end > data_bytes)
      throw FormatError(
          str(tensor(), "data ends at byte ", e.end, " but the file holds ", data_bytes, " bytes of data"));
    if (uint64_t want = bytes_of(e, where); e.end - e.begin != want)
      throw FormatError(str(tensor(), "shape ", e.shape, " of ", e.dtype, " needs ", want,
                            " bytes but data_offsets give ", e.end - e.begin));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at)
      throw FormatError(str(where, "tensor ", quoted(e.name), ": data begins at byte ", e.begin,
                            " but the tensor before it ends at ", at, e.begin < at ? " (overlap)" : " (hole)"));
    at = e.end;
  }
  check<FormatError>(at == data_bytes, where, "the tensors end at byte ", at, " but the file holds ", data_bytes,
                     " bytes of data");
}

}  // namespace

struct SafetensorsFile::Impl {
  std::string path;
  std::shared_ptr<MappedFile> map;
  size_t data_at = 0;  // bytes from the start of the file
  std::vector<Entry> entries;
  std::vector<std::string> names;
  std::unordered_map<std::string, size_t> index;
  std::map<std::string, std::string> metadata;
};

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  auto p = std::make_shared<Impl>();
  p->path = path;
  p->map = MappedFile::open(path);
  std::string where = quoted(path) + ": ";
  check<FormatError>(p->map->bytes() >= 8, where, p->map->bytes(), " bytes are too few for a safetensors file");
  uint64_t header;
  std::memcpy(&header, p->map->data(), 8);
  check<FormatError>(header <= kMaxHeader, where, "a header of ", header, " bytes is over the limit of ", kMaxHeader);
  check<FormatError>(header <= p->map->bytes() - 8, where, "the header needs ", header, " bytes but the file has ",
                     p->map->bytes() - 8, " after its length");
  const char* text = p->map->data() + 8;
  check<FormatError>(header > 0 && *text == '{', where, "the header must begin with '{'");

  // The JSON reader takes a zero byte for the end of its input.
  check<FormatError>(!std::memchr(text, 0, header), where, "the header holds a zero byte");
  HeaderReader reader(where);
  if (!nlohmann::json::sax_parse(text, text + header, &reader))
    throw FormatError(where + "the header is not valid JSON");
  p->entries = std::move(reader.entries);
  p->metadata = std::move(reader.metadata);
  p->data_at = size_t(8 + header);
  check_layout(p->entries, p->map->bytes() - p->data_at, where);
  p->names.reserve(p->entries.size());
  for (size_t i = 0; i < p->entries.size(); i++) {
    const std::string& name = p->entries[i].name;
    check<FormatError>(p->index.emplace(name, i).second, where, "tensor ", quoted(name), " appears twice");
    p->names.push_back(name);
  }
  SafetensorsFile file;
  file.p_ = std::move(p);
  return file;
}

const std::vector<std::string>& SafetensorsFile::names() const { return p_->names; }
bool SafetensorsFile::contains(const std::string& name) const { return p_->index.contains(name); }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return p_->metadata; }

Tensor SafetensorsFile::tensor(const std::string& name) const {
  auto it = p_->index.find(name);
  check<WeightsError>(it != p_->index.end(), quoted(p_->path), ": no tensor ", quoted(name));
  const Entry& e = p_->entries[it->second];
  return p_->map->tensor(p_->data_at + e.begin, e.dtype, e.shape, {}, quoted(p_->path) + ": ");
}

// ---- other dtypes ------------------------------------------------------------------------------------------------------

namespace {

bool any_infinite(const Tensor& t) {
  uint16_t infinity = t.dtype() == DType::f16 ? 0x7c00 : 0x7f80;
  const auto* bits = static_cast<const uint16_t*>(t.raw());
  bool found = false;
  for (int64_t i = 0; i < t.numel(); i++) found |= (bits[i] & 0x7fff) == infinity;
  return found;
}

}  // namespace

Tensor cast_weights(const Tensor& t, DType to, const std::string& what) {
  Tensor from = t.detach().to(Device::cpu);
  Tensor out = cast(from, to);
  if (from.dtype() == to || (to != DType::f16 && to != DType::bf16) || !any_infinite(out)) return out;
  Tensor wide = contiguous(cast(from, DType::f32)), back = cast(out, DType::f32);
  for (int64_t i = 0; i < wide.numel(); i++)
    check<ValueError>(std::isinf(wide.data<float>()[i]) || !std::isinf(back.data<float>()[i]), what, ": ",
                      wide.data<float>()[i], " is beyond the range of ", to);
  return out;
}

// ---- writing -----------------------------------------------------------------------------------------------------------

namespace {

std::string json_string(const std::string& s, const char* what) {
  try {
    return nlohmann::json(s).dump();
  } catch (const nlohmann::json::exception&) {
    throw ValueError(str("[write_safetensors] a ", what, " is not valid UTF-8"));
  }
}

DType stored_as(const Tensor& t, std::optional<DType> dtype) {
  return dtype && is_float(t.dtype()) ? *dtype : t.dtype();
}

// Length prefix and header, padded with spaces so that the data begins at a multiple of 64 bytes.
std::string make_header(const std::vector<const NamedTensor*>& tensors,
                        const std::map<std::string, std::string>& metadata, std::optional<DType> dtype) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += str('"', kMetadata, "\":{");
    for (bool first = true; auto& [key, value] : metadata) {
      if (!first) json += ',';
      first = false;
      json += json_string(key, "metadata key") + ':' + json_string(value, "metadata value");
    }
    json += '}';
  }
  uint64_t at = 0;
  for (const NamedTensor* t : tensors) {
    if (json.size() > 1) json += ',';
    DType type = stored_as(t->tensor, dtype);
    json += json_string(t->name, "tensor name") + str(":{\"dtype\":\"", file_type(type), "\",\"shape\":[");
    for (int i = 0; i < t->tensor.ndim(); i++) json += (i ? "," : "") + std::to_string(t->tensor.size(i));
    uint64_t bytes = uint64_t(t->tensor.numel()) * size_of(type);
    json += str("],\"data_offsets\":[", at, ',', at + bytes, "]}");
    at += bytes;
  }
  json += '}';
  json.append((64 - (8 + json.size()) % 64) % 64, ' ');
  check<ValueError>(json.size() <= kMaxHeader, "[write_safetensors] a header of ", json.size(),
                    " bytes is over the limit of ", kMaxHeader);
  uint64_t n = json.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + json;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, std::optional<DType> dtype) {
  check<DTypeError>(!dtype || is_float(*dtype), "[write_safetensors] tensors are cast to floating dtypes only but got ",
                    dtype.value_or(DType::f32));
  std::set<std::string> names;
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : tensors) {
    check<ValueError>(t.name != kMetadata, "[write_safetensors] no tensor can be called ", kMetadata);
    check<ValueError>(names.insert(t.name).second, "[write_safetensors] two tensors are called ", quoted(t.name));
    check<ValueError>(t.tensor.defined(), "[write_safetensors] tensor ", quoted(t.name), " is undefined");
    order.push_back(&t);
  }
  // Wide elements first: the format has no padding between tensors, and this keeps each one aligned for mapping.
  std::stable_sort(order.begin(), order.end(), [=](const NamedTensor* a, const NamedTensor* b) {
    return size_of(stored_as(a->tensor, dtype)) > size_of(stored_as(b->tensor, dtype));
  });
  std::string header = make_header(order, metadata, dtype);
  TemporaryFile file(path);
  file.write(header.data(), header.size());
  int64_t done = 0;
  for (const NamedTensor* t : order) {
    Tensor flat = cast_weights(t->tensor, stored_as(t->tensor, dtype), "[write_safetensors] tensor " + quoted(t->name));
    if (!flat.is_contiguous()) flat = flat.clone();
    file.write(static_cast<const char*>(flat.raw()), flat.nbytes());
    report_progress(++done, int64_t(order.size()));
  }
  file.move_into_place();
}

}  // namespace deem
