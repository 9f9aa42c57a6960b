// Device memory and pinned host memory of the emulated GPU.
#pragma once
#include <cstddef>

namespace deem::emu {

enum class Kind { pageable, pinned, device };

// Filled with 0xFF (NaN); null where the device has not that much.
void* device_allocate(size_t bytes);
bool device_free(void* p);  // false: never was, or already freed
void* pinned_allocate(size_t bytes);
bool pinned_free(void* p);
bool pin(void* p, size_t bytes);  // memory of somebody else
bool unpin(void* p);

struct Place {
  Kind kind;
  void* start;  // of the allocation; null for pageable memory
  size_t bytes;
  size_t left;  // bytes from the address to the allocation's end
};
Place place_of(const void* p);
size_t device_bytes_total();
size_t device_bytes_used();

// With DEEM_EMU_GUARD=1 device memory can be touched only in the life of an Access.
class Access {
 public:
  Access();
  ~Access();
};

}  // namespace deem::emu
