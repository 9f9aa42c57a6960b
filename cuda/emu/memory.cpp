// Plain builds take device memory from one reserved range, so that it can be locked; sanitizers get a heap block for each
// allocation, so that they see its ends and its death.
#include "cuda/emu/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda/emu/sanitizer.h"

namespace deem::emu {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(DEEM_EMU_TSAN)
constexpr bool kHeap = true;
#else
constexpr bool kHeap = false;
#endif
constexpr size_t kRange = size_t(256) << 30, kPage = 4096, kAlign = 256;

struct Block {
  size_t bytes;
  Kind kind;
  bool own;
};

struct Memory {
  std::recursive_mutex mutex;
  std::map<char*, Block> blocks;            // live ones by address
  std::multimap<size_t, char*> free_pages;  // by size
  char* range = nullptr;
  size_t range_used = 0, used = 0;
  int accesses = 0;
  bool guard = !kHeap && std::getenv("DEEM_EMU_GUARD") && std::getenv("DEEM_EMU_GUARD")[0] == '1';
  size_t total = [] {
    const char* text = std::getenv("DEEM_EMU_MEMORY");  // bytes
    return text ? size_t(std::strtoull(text, nullptr, 0)) : size_t(4) << 30;
  }();

  void lock(const std::pair<char* const, Block>& b, bool locked) {
    if (b.second.kind == Kind::device)
      mprotect(b.first, pages(b.second.bytes), locked ? PROT_NONE : PROT_READ | PROT_WRITE);
  }
  static size_t pages(size_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }
};

Memory& memory() {
  static auto* m = new Memory;
  return *m;
}

char* take_pages(Memory& m, size_t bytes) {
  const size_t need = Memory::pages(bytes);
  if (auto found = m.free_pages.find(need); found != m.free_pages.end()) {
    char* p = found->second;
    m.free_pages.erase(found);
    return p;
  }
  if (!m.range) {
    void* p = mmap(nullptr, kRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    m.range = static_cast<char*>(p);
  }
  if (m.range_used + need + kPage > kRange) return nullptr;
  char* p = m.range + m.range_used;
  m.range_used += need + kPage;  // a page that nobody may touch lies between
  if (mprotect(p, need, PROT_READ | PROT_WRITE)) return nullptr;
  return p;
}

}  // namespace

void* device_allocate(size_t bytes) {
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  if (!bytes || bytes > m.total - m.used) return nullptr;
  void* p = nullptr;
  if constexpr (kHeap) {
    if (posix_memalign(&p, kAlign, bytes)) return nullptr;
  } else {
    p = take_pages(m, bytes);
    if (!p) return nullptr;
  }
  std::memset(p, 0xff, bytes);
  m.used += bytes;
  auto at = m.blocks.emplace(static_cast<char*>(p), Block{bytes, Kind::device, true}).first;
  if (m.guard && !m.accesses) m.lock(*at, true);
  return p;
}

bool device_free(void* p) {
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  auto found = m.blocks.find(static_cast<char*>(p));
  if (found == m.blocks.end() || found->second.kind != Kind::device) return false;
  const size_t bytes = found->second.bytes;
  m.used -= bytes;
  if constexpr (kHeap) {
    std::free(p);
  } else if (m.guard) {  // never used again: who still has the address is caught
    mmap(p, Memory::pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  } else {
    std::memset(p, 0xff, bytes);
    m.free_pages.emplace(Memory::pages(bytes), static_cast<char*>(p));
  }
  m.blocks.erase(found);
  return true;
}

void* pinned_allocate(size_t bytes) {
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  void* p = nullptr;
  if (!bytes || posix_memalign(&p, kPage, bytes)) return nullptr;
  std::memset(p, 0xff, bytes);
  m.blocks.emplace(static_cast<char*>(p), Block{bytes, Kind::pinned, true});
  return p;
}

bool pin(void* p, size_t bytes) {
  if (!p || !bytes || place_of(p).kind != Kind::pageable) return false;
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  return m.blocks.emplace(static_cast<char*>(p), Block{bytes, Kind::pinned, false}).second;
}

static bool forget_pinned(void* p, bool own) {
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  auto found = m.blocks.find(static_cast<char*>(p));
  if (found == m.blocks.end() || found->second.kind != Kind::pinned || found->second.own != own) return false;
  m.blocks.erase(found);
  if (own) std::free(p);
  return true;
}
bool pinned_free(void* p) { return forget_pinned(p, true); }
bool unpin(void* p) { return forget_pinned(p, false); }

Place place_of(const void* p) {
  Memory& m = memory();
  std::lock_guard lock(m.mutex);
  auto* at = const_cast<char*>(static_cast<const char*>(p));
  auto after = m.blocks.upper_bound(at);
  if (after == m.blocks.begin()) return {Kind::pageable, nullptr, 0, 0};
  auto& [start, block] = *--after;
  if (at >= start + block.bytes) return {Kind::pageable, nullptr, 0, 0};
  return {block.kind, start, block.bytes, size_t(start + block.bytes - at)};
}

size_t device_bytes_total() { return memory().total; }
size_t device_bytes_used() { return memory().used; }

Access::Access() {
  Memory& m = memory();
  if (!m.guard) return;
  std::lock_guard lock(m.mutex);
  if (m.accesses++ == 0)
    for (auto& b : m.blocks) m.lock(b, false);
}
Access::~Access() {
  Memory& m = memory();
  if (!m.guard) return;
  std::lock_guard lock(m.mutex);
  if (--m.accesses == 0)
    for (auto& b : m.blocks) m.lock(b, true);
}

}  // namespace deem::emu
