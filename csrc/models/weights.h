// Moving parameters between a model and safetensors files, by published name and in the published layout.
#pragma once
#include "models/module.h"

namespace deem {

struct LoadReport {
  std::vector<std::string> missing;     // parameters of the model that the file lacks
  std::vector<std::string> unexpected;  // tensors of the file that the model has no place for
};

// Reads the tensors whose name starts with `prefix` (cut off before matching). strict: any missing or unexpected name throws
// WeightsError that lists them; misshapen tensors always throw. Nothing is changed if it throws.
LoadReport load_weights(ParameterStore& params, const std::string& path, const std::string& prefix, bool strict);

// All parameters and buffers; aliased names are stored once, under their target. Atomic.
void save_weights(ParameterStore& params, const std::string& path, DType dtype);

}  // namespace deem
