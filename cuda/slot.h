// How a CUDA kernel's host function gets into its slot: the last line of its file.
//   DEEM_CUDA_KERNEL("layer_norm", layer_norm);   // static void layer_norm(const LayerNormArgs&)
#pragma once
#include "core/plugin.h"

namespace deem::cuda {

// All kernels of this library, in no order. cuda/plugin.cpp hands them to the engine.
struct KernelList {
  PluginKernel kernel;
  const KernelList* next;
  static const KernelList*& first() {
    static const KernelList* head = nullptr;
    return head;
  }
  template <class Args>
  KernelList(const char* op, void (*f)(const Args&))
      : kernel{op, sizeof(Args), reinterpret_cast<void (*)(const void*)>(f)}, next(first()) {
    first() = this;
  }
};

#define DEEM_CUDA_JOIN_(a, b) a##b
#define DEEM_CUDA_JOIN(a, b) DEEM_CUDA_JOIN_(a, b)
#define DEEM_CUDA_KERNEL(op, f) \
  static const ::deem::cuda::KernelList DEEM_CUDA_JOIN(kernel_entry_, __LINE__) { op, f }

}  // namespace deem::cuda
