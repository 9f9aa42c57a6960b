#include "models/weights.h"

#include "core/engine.h"
#include "core/safetensors.h"

namespace deem {

static std::string listing(const char* title, const std::vector<std::string>& names) {
  std::string out;
  if (names.empty()) return out;
  out += str("; ", names.size(), " ", title, ": ");
  for (size_t i = 0; i < names.size() && i < 20; i++) out += (i ? ", " : "") + names[i];
  if (names.size() > 20) out += ", ...";
  return out;
}

LoadReport load_weights(ParameterStore& params, const std::string& path, const std::string& prefix, bool strict) {
  SafetensorsFile file = SafetensorsFile::open(path);
  LoadReport report;
  std::vector<std::pair<std::string, Tensor>> pairs;
  std::map<Parameter*, std::string> seen;
  for (const std::string& name : file.names()) {
    if (!name.starts_with(prefix)) continue;
    std::string own = name.substr(prefix.size());
    Parameter* p = params.find(own);
    bool floats = !p && (p = params.find_quantized(own));  // to be brought to few bits
    if (!p) {
      report.unexpected.push_back(name);
      continue;
    }
    if (!seen.emplace(p, name).second) continue;  // the second name of a shared tensor
    Tensor t = file.tensor(name);
    Shape want = floats ? p->quantized.shape() : p->value.shape();
    if (p->conv) want = {want[0], want[3], want[1], want[2]};
    check<WeightsError>(t.shape() == want, "'", path, "': '", name, "' has shape ", t.shape(), " but the model needs ",
                        want);
    bool codes = p->quantized && !floats;
    check<WeightsError>(codes ? t.dtype() == DType::u8 : is_float(t.dtype()), "'", path, "': '", name, "' is ",
                        t.dtype(), codes ? " but codes are u8" : " but weights are floating");
    pairs.push_back({own, t});
  }
  for (Parameter& p : params.list())
    if (!seen.contains(&p)) report.missing.push_back(p.name);
  check<WeightsError>(!strict || (report.missing.empty() && report.unexpected.empty()), "'", path,
                      "' does not fit the model", listing("missing", report.missing),
                      listing("unexpected", report.unexpected));
  int64_t done = 0;
  for (auto& [name, t] : pairs) {
    params.assign(name, t);
    report_progress(++done, int64_t(pairs.size()));
    poll_cancel();
  }
  return report;
}

void save_weights(ParameterStore& params, const std::string& path, DType dtype) {
  std::vector<NamedTensor> tensors;
  for (Parameter& p : params.list()) tensors.push_back({p.name, ParameterStore::stored(p, dtype)});
  write_safetensors(path, tensors, {}, dtype);
}

}  // namespace deem
