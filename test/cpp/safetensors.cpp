#include "core/safetensors.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/engine.h"
#include "core/rng.h"
#include "test.h"

namespace deem::test {
namespace fs = std::filesystem;

namespace {

// A folder that goes away with the test.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "deem-test-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
  size_t files() const { return size_t(std::distance(fs::directory_iterator(path), fs::directory_iterator())); }
};

std::string file_of(const std::string& header, size_t data_bytes) {
  uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + header + std::string(data_bytes, '\1');
}

void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return str('"', name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":", offsets, '}');
}

std::string repeat(const std::string& s, size_t n) {
  std::string out;
  for (size_t i = 0; i < n; i++) out += s;
  return out;
}

Tensor counting(const Shape& shape, DType dtype) {
  Tensor t = Tensor::empty(shape, dtype);
  for (size_t i = 0; i < t.nbytes(); i++) static_cast<uint8_t*>(t.raw())[i] = uint8_t(i * 7 + 3);
  return t;
}

bool same(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.raw(), b.raw(), a.nbytes()) == 0;
}

}  // namespace

TEST("safetensors: every dtype, empty, scalar and strided tensors come back") {
  Folder dir;
  std::vector<NamedTensor> tensors;
  for (DType t : {DType::u8, DType::f16, DType::bf16, DType::i32, DType::f32, DType::i64})
    tensors.push_back({str("a.", t), counting({3, 5}, t)});
  tensors.push_back({"empty", Tensor::empty({0, 4})});
  tensors.push_back({"scalar", Tensor::scalar(2.5)});
  tensors.push_back({"name with \"quotes\", \\ and \xc3\xa9", counting({1}, DType::u8)});
  Tensor wide = counting({4, 6}, DType::f32);
  tensors.push_back({"transposed", wide.view({6, 4}, {1, 6}, 0)});
  write_safetensors(dir / "x.safetensors", tensors, {{"format", "pt"}, {"step", "12\n\"3\""}});
  EXPECT_EQ(dir.files(), 1u);

  SafetensorsFile file = SafetensorsFile::open(dir / "x.safetensors");
  EXPECT_EQ(file.names().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("format"), std::string("pt"));
  EXPECT_EQ(file.metadata().at("step"), std::string("12\n\"3\""));
  for (const NamedTensor& t : tensors) {
    EXPECT(file.contains(t.name));
    Tensor got = file.tensor(t.name);
    EXPECT(same(got, t.tensor.clone()));
    EXPECT(got.impl()->storage->owner != nullptr);  // mapped, not copied
  }
  expect_error<WeightsError>([&] { file.tensor("b"); }, "no tensor 'b'");
}

TEST("safetensors: an empty file of no tensors") {
  Folder dir;
  write_safetensors(dir / "x", {});
  EXPECT(SafetensorsFile::open(dir / "x").names().empty());
}

TEST("safetensors: tensors outlive the file handle, the name in the folder, and writes to them") {
  Folder dir;
  Tensor a = counting({1000}, DType::f32), b = counting({1000}, DType::f32);
  write_safetensors(dir / "x", {{"a", a}});
  std::string before = read_file(dir / "x");
  Tensor mapped = SafetensorsFile::open(dir / "x").tensor("a");
  mapped.data<float>()[0] = 42;  // a private page
  EXPECT(read_file(dir / "x") == before);
  EXPECT(same(SafetensorsFile::open(dir / "x").tensor("a"), a));
  write_safetensors(dir / "x", {{"a", Tensor::zeros({1000})}});  // a new file under the old name
  EXPECT_EQ(mapped.data<float>()[0], 42.f);
  mapped.data<float>()[0] = a.data<float>()[0];
  EXPECT(same(mapped, b));
}

TEST("safetensors: writing keeps the file's permissions") {
  Folder dir;
  write_safetensors(dir / "x", {});
  fs::permissions(dir / "x", fs::perms(0640));
  write_safetensors(dir / "x", {});
  EXPECT(fs::status(dir / "x").permissions() == fs::perms(0640));
}

TEST("safetensors: misaligned data is copied") {
  Folder dir;
  std::string header = "{" + entry("b", "U8", "[1]", "[0,1]") + "," + entry("f", "F32", "[2]", "[1,9]") + "," +
                       entry("h", "BF16", "[1]", "[9,11]") + "}";
  std::string content = file_of(header, 11);
  float values[2] = {1.5f, -2.f};
  std::memcpy(content.data() + 8 + header.size() + 1, values, 8);
  for (int pad = 0; pad < 8; pad++) {  // JSON may end in spaces: every alignment of the data
    std::string shifted = content;
    shifted.insert(8 + header.size(), size_t(pad), ' ');
    shifted[0] = char(uint8_t(shifted[0]) + pad);
    write_file(dir / "x", shifted);
    Tensor f = SafetensorsFile::open(dir / "x").tensor("f");
    EXPECT(reinterpret_cast<uintptr_t>(f.raw()) % 4 == 0);
    EXPECT(f.data<float>()[0] == 1.5f && f.data<float>()[1] == -2.f);
    EXPECT_EQ(SafetensorsFile::open(dir / "x").tensor("h").data<bf16>()->bits, uint16_t(0x0101));
  }
}

TEST("safetensors: BOOL is read as u8, the order is that of the data, and equal positions of empty tensors are fine") {
  Folder dir;
  write_file(dir / "x",
             file_of("{" + entry("late", "BOOL", "[2]", "[4,6]") + "," + entry("early", "I32", "[1]", "[0,4]") + "," +
                         entry("none", "F32", "[0]", "[4,4]") + "}  ",
                     6));
  SafetensorsFile file = SafetensorsFile::open(dir / "x");
  EXPECT(file.names() == (std::vector<std::string>{"early", "none", "late"}));
  EXPECT(file.tensor("late").dtype() == DType::u8);
  EXPECT_EQ(file.tensor("none").numel(), 0);
}

// Header, bytes of data, what the message must say.
struct Broken {
  std::string header;
  size_t data;
  std::string says;
};

TEST("safetensors: broken headers are refused by name") {
  const std::string f4 = "[0,4]", dims = "[1]", deep = repeat("[", 200000), objects = repeat("{\"a\":", 200000);
  const std::vector<Broken> table = {
      {"", 0, "must begin with '{'"},
      {" {}", 0, "must begin with '{'"},
      {"\xef\xbb\xbf{}", 0, "must begin with '{'"},
      {"[]", 0, "must begin with '{'"},
      {"{", 0, "not valid JSON"},
      {"{}}", 0, "not valid JSON"},
      {"{} x", 0, "not valid JSON"},
      {std::string("{}\0", 3), 0, "zero byte"},
      {"{\"a\"}", 0, "not valid JSON"},
      {"{\"a\":1}", 0, "'a' must be an object but is the number 1"},
      {"{\"a\":null}", 0, "'a' must be an object but is null"},
      {"{\"a\":[]}", 0, "'a' must be an object but is an array"},
      {"{\"\xff\":{}}", 0, "not valid JSON"},
      {"{\"a\":{}}", 0, "dtype is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "data_offsets is missing"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"x\":1}}", 4, "unknown key 'x'"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype appears twice"},
      {"{\"a\":{\"dtype\":3,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype must not be the number 3"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,4]}}", 4, "shape must not be the number 4"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":\"[1]\",\"data_offsets\":[0,4]}}", 4, "shape must not be a string"},
      {"{" + entry("a", "F64", "[1]", "[0,8]") + "}", 8, "dtype 'F64' is not supported"},
      {"{" + entry("a", "F8_E4M3", dims, "[0,1]") + "}", 1, "dtype 'F8_E4M3'"},
      {"{" + entry("a", "I16", dims, "[0,2]") + "}", 2, "dtype 'I16'"},
      {"{" + entry("a", "f32", dims, f4) + "}", 4, "dtype 'f32'"},
      {"{" + entry("a", "F32", "[-1]", f4) + "}", 4, "holds the number -1"},
      {"{" + entry("a", "F32", "[1.0]", f4) + "}", 4, "holds the number '1.0'"},
      {"{" + entry("a", "F32", "[1e99]", f4) + "}", 4, "holds the number '1e99'"},
      {"{" + entry("a", "F32", "[[1]]", f4) + "}", 4, "holds an array"},
      {"{" + entry("a", "F32", "[{}]", f4) + "}", 4, "holds an object"},
      {"{" + entry("a", "F32", "[null]", f4) + "}", 4, "holds null"},
      {"{" + entry("a", "F32", "[true]", f4) + "}", 4, "holds a boolean"},
      {"{" + entry("a", "F32", "[1,1,1,1,1,1,1,1,1]", f4) + "}", 4, "more than 8 dimensions"},
      {"{" + entry("a", "F32", "[" + repeat("1,", 300000) + "1]", f4) + "}", 4, "more than 8 dimensions"},
      {"{" + entry("a", "F32", "[9223372036854775808]", f4) + "}", 4, "is too large"},
      {"{" + entry("a", "F32", "[99999999999999999999]", f4) + "}", 4, "holds the number"},
      {"{" + entry("a", "F32", "[4294967296,4294967296]", "[0,0]") + "}", 0, "too many elements"},
      {"{" + entry("a", "F32", "[4294967296,4294967297]", f4) + "}", 4, "too many elements"},
      {"{" + entry("a", "F32", "[0,9223372036854775807]", "[0,0]") + "}", 0, "too many elements"},
      {"{" + entry("a", "F32", dims, "[0]") + "}", 4, "must be two numbers but has 1"},
      {"{" + entry("a", "F32", dims, "[]") + "}", 4, "must be two numbers but has 0"},
      {"{" + entry("a", "F32", dims, "[0,4,8]") + "}", 4, "must be two numbers but has more"},
      {"{" + entry("a", "F32", dims, "[-4,0]") + "}", 4, "holds the number -4"},
      {"{" + entry("a", "F32", dims, "[4,0]") + "}", 4, "before it begins"},
      {"{" + entry("a", "F32", dims, "[0,8]") + "}", 4, "holds 4 bytes of data"},
      {"{" + entry("a", "F32", dims, "[0,18446744073709551615]") + "}", 4, "holds 4 bytes of data"},
      {"{" + entry("a", "F32", dims, "[18446744073709551612,18446744073709551615]") + "}", 4, "holds 4 bytes of data"},
      {"{" + entry("a", "F32", "[2]", f4) + "}", 4, "needs 8 bytes but data_offsets give 4"},
      {"{" + entry("a", "F32", "[]", "[0,8]") + "}", 8, "needs 4 bytes but data_offsets give 8"},
      {"{" + entry("a", "F32", dims, "[4,8]") + "}", 8, "(hole)"},
      {"{" + entry("a", "F32", dims, f4) + "," + entry("b", "F32", dims, "[8,12]") + "}", 12, "(hole)"},
      {"{" + entry("a", "F32", dims, f4) + "," + entry("b", "F32", dims, "[2,6]") + "}", 6, "(overlap)"},
      {"{" + entry("a", "F32", dims, f4) + "," + entry("b", "F32", dims, f4) + "}", 4, "(overlap)"},
      {"{" + entry("a", "F32", dims, f4) + "," + entry("a", "F32", dims, "[4,8]") + "}", 8, "tensor 'a' appears twice"},
      {"{" + entry("a", "F32", dims, f4) + "}", 5, "the tensors end at byte 4 but the file holds 5"},
      {"{}", 1, "the tensors end at byte 0 but the file holds 1"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "metadata 'a' must be a string but is the number 1"},
      {"{\"__metadata__\":{\"a\":{}}}", 0, "metadata 'a' must be a string but is an object"},
      {"{\"__metadata__\":\"a\"}", 0, "must be an object but is a string"},
      {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "duplicate metadata key 'a'"},
      {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "appears twice"},
      {"{\"a\":" + deep, 0, "'a' must be an object but is an array"},
      {objects, 0, "unknown key 'a'"},
      {"{\"" + repeat("n", 5000) + "\":1}", 0, "nnn...' must be an object"},
  };
  Folder dir;
  for (const Broken& b : table) {
    write_file(dir / "x", file_of(b.header, b.data));
    try {
      expect_error<FormatError>([&] { SafetensorsFile::open(dir / "x"); }, b.says);
      expect_error<FormatError>([&] { SafetensorsFile::open(dir / "x"); }, dir / "x");
    } catch (const Failure& f) {
      throw Failure{b.header.substr(0, 100) + ": " + f.message};
    }
  }
}

TEST("safetensors: a header of too many entries is refused") {
  Folder dir;
  std::string header = "{";
  for (int i = 0; i <= 100000; i++) header += (i ? "," : "") + entry(std::to_string(i), "U8", "[0]", "[0,0]");
  write_file(dir / "x", file_of(header + "}", 0));
  expect_error<FormatError>([&] { SafetensorsFile::open(dir / "x"); }, "more than 100000 tensors");
}

TEST("safetensors: lengths and truncations") {
  Folder dir;
  auto opening = [&](const std::string& content) {
    write_file(dir / "x", content);
    return [&] { SafetensorsFile::open(dir / "x"); };
  };
  expect_error<FormatError>(opening(""), "0 bytes are too few");
  expect_error<FormatError>(opening("1234567"), "7 bytes are too few");
  expect_error<FormatError>(opening(std::string(8, '\0')), "must begin with '{'");
  expect_error<FormatError>(opening(std::string(8, '\xff')), "over the limit");
  expect_error<FormatError>(opening(std::string("\0\0\0\x7f\0\0\0\0{}", 10)), "over the limit");
  expect_error<FormatError>(opening(std::string("\3\0\0\0\0\0\0\0{}", 10)), "needs 3 bytes but the file has 2");
  write_safetensors(dir / "whole", {{"a", counting({9}, DType::f32)}, {"b", counting({3}, DType::u8)}}, {{"k", "v"}});
  std::string whole = read_file(dir / "whole");
  for (size_t n = 0; n < whole.size(); n++) expect_error<FormatError>(opening(whole.substr(0, n)), "");
  opening(whole)();
}

// Random damage must end in a typed error or in a file that is consistent, never in a crash.
TEST("safetensors: damaged headers") {
  Folder dir;
  write_safetensors(
      dir / "whole",
      {{"a", counting({2, 3}, DType::f32)}, {"b", counting({3}, DType::u8)}, {"c", counting({0}, DType::i64)}},
      {{"k", "v"}});
  const std::string whole = read_file(dir / "whole");
  uint64_t header;
  std::memcpy(&header, whole.data(), 8);
  for (uint64_t round = 0; round < 3000; round++) {
    std::string damaged = whole;
    auto r = philox(1, 2, round);
    for (uint32_t i = 0; i <= r[0] % 3; i++) {
      auto [where, what, how, rest] = philox(2, round, i);
      size_t at = where % (8 + header);
      if (how % 3 == 0) damaged.erase(at, 1);
      else if (how % 3 == 1) damaged[at] = char(what);
      else damaged[at] = "[]{}\",:0123456789-e"[what % 19];
    }
    write_file(dir / "x", damaged);
    try {
      SafetensorsFile file = SafetensorsFile::open(dir / "x");
      for (const std::string& name : file.names()) {
        Tensor t = file.tensor(name).clone();
        EXPECT(t.numel() >= 0);
      }
    } catch (const FormatError&) {}
  }
}

TEST("safetensors: what the system refuses") {
  Folder dir;
  expect_error<IoError>([&] { SafetensorsFile::open(dir / "absent"); }, "No such file");
  expect_error<IoError>([&] { SafetensorsFile::open(dir.path.string()); }, "not a regular file");
  expect_error<IoError>([&] { SafetensorsFile::open(""); }, "empty");
  expect_error<IoError>([&] { SafetensorsFile::open(std::string("a\0b", 3)); }, "zero byte");
  EXPECT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  expect_error<IoError>([&] { SafetensorsFile::open(dir / "pipe"); }, "not a regular file");
  expect_error<IoError>([&] { write_safetensors(dir / "absent/x", {}); }, "No such file");
  fs::create_directory(dir / "folder");
  size_t files = dir.files();
  expect_error<IoError>([&] { write_safetensors(dir / "folder", {}); }, "Is a directory");
  EXPECT_EQ(dir.files(), files);
}

TEST("safetensors: what cannot be written") {
  Folder dir;
  Tensor t = Tensor::zeros({2});
  auto writing = [&](std::vector<NamedTensor> tensors, std::map<std::string, std::string> metadata = {}) {
    return [=, &dir] { write_safetensors(dir / "x", tensors, metadata); };
  };
  expect_error<ValueError>(writing({{"a", t}, {"a", t}}), "two tensors are called 'a'");
  expect_error<ValueError>(writing({{"__metadata__", t}}), "__metadata__");
  expect_error<ValueError>(writing({{"a", Tensor()}}), "undefined");
  expect_error<ValueError>(writing({{"\xff", t}}), "UTF-8");
  expect_error<ValueError>(writing({}, {{"k", "\xc3"}}), "UTF-8");
  EXPECT_EQ(dir.files(), 0u);
}

// A file-size limit stands in for a full disk: both make write() fail halfway.
TEST("safetensors: a failed or aborted write leaves the old file and no temporary") {
  Folder dir;
  write_safetensors(dir / "x", {{"a", counting({100}, DType::u8)}});
  std::string before = read_file(dir / "x");
  Tensor big = Tensor::zeros({1 << 20});

  auto old_action = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  rlimit small{1 << 20, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  std::string said;
  try {
    write_safetensors(dir / "x", {{"a", big}});
  } catch (const IoError& e) {
    said = e.what();
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_action);
  EXPECT(said.find("cannot write") != std::string::npos && said.find("File too large") != std::string::npos);
  EXPECT_EQ(dir.files(), 1u);
  EXPECT(read_file(dir / "x") == before);

  auto flag = std::make_shared<CancelFlag>();
  flag->raised = true;
  std::atomic<bool> done{false}, aborted{false};
  Engine::get().post(
      [&] {
        try {
          write_safetensors(dir / "x", {{"a", big}});
        } catch (const Aborted&) {
          aborted = true;
        }
        done = true;
        done.notify_one();
      },
      flag);
  done.wait(false);
  EXPECT(aborted);
  EXPECT_EQ(dir.files(), 1u);
  EXPECT(read_file(dir / "x") == before);
}

}  // namespace deem::test
