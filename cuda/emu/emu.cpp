// Fibers, blocks, barriers and warp collectives.
#include "cuda/emu/emu.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/emu/block.h"
#include "cuda/emu/ptx.h"
#include "cuda/emu/sanitizer.h"

// Saves the callee's registers and the stack pointer, and goes on where `to` was saved.
asm(R"(
  .text
  .type deem_emu_switch,@function
deem_emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size deem_emu_switch, .-deem_emu_switch
)");
extern "C" void deem_emu_switch(void** save, void* to);

namespace deem::emu {

Indices now;

namespace {

constexpr int kMaxThreads = 1024, kPage = 4096;
constexpr size_t kStack = 256 << 10;  // bytes of address space; pages come as they are touched
constexpr size_t kArena = kRaces ? size_t(1) << 30 : size_t(1) << 20;
constexpr size_t kGap = 64;  // bytes between shared arrays that nobody may touch
constexpr unsigned char kGapByte = 0xfb;

struct Fiber {
  void* sp;
  char* stack;
  size_t colour;  // bytes: tops of stacks at one offset of their pages would all want the same lines of the cache
  void* fake = nullptr;  // AddressSanitizer's
  void* race = nullptr;  // ThreadSanitizer's
};

struct Thread {
  uint3 id;
  Fiber* fiber;
  Where where;  // it waits
  uint8_t lane;
  uint16_t warp;
  int group = 0;       // of copies, now open
  int first_copy = 0;  // in flight
  std::vector<std::pair<int, Copy>> copies;
  Fiber* own[2] = {};  // ThreadSanitizer's identities, of even and odd blocks
};

struct Group {
  uint32_t mask, arrived;
  WarpOp op;
  Where where;
  Lanes lanes;
};
struct Warp {
  uint32_t live;
  int groups, fences;
  Group group[kWarp];
  char token[2];
};

struct Array {
  const void* site;
  char* data;
  size_t bytes;
  const char* name;
};

// State of the block that runs.
const Grid* grid;
Thread threads[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
Thread* self;
int count, alive, waiting, phase, votes[2];
Where waiting_at;
char start_token, end_token, barrier_token[2], fence_token;
Array arrays[64];
int array_count;
size_t arena_used, static_bytes;
char* arena;
bool failed;

// Who may run: lanes of each warp, and warps that have such lanes.
uint32_t ready[kMaxThreads / kWarp], ready_warps;
bool shuffled;
int turn;       // the warp whose lanes run
uint32_t stay;  // of 8 chances, to go on with that warp while it can; 8 lets one run far ahead of the others
uint32_t random_state;

std::vector<Fiber*> spare;
Fiber main_fiber{};
#ifdef __SANITIZE_ADDRESS__
const void* main_bottom;  // the stack that run_grid was called on
size_t main_bytes;
bool from_main;
#endif
unsigned block_number;

std::string fault_text;
uint32_t seed_ = [] {
  const char* text = std::getenv("EMU_SEED");
  return text ? uint32_t(std::strtoul(text, nullptr, 0)) : 0u;
}();

uint32_t random_below(uint32_t n) {
  random_state ^= random_state << 13, random_state ^= random_state >> 17, random_state ^= random_state << 5;
  return uint32_t(uint64_t(random_state) * n >> 32);
}

void make_ready(int warp, uint32_t lanes) {
  ready[warp] |= lanes;
  ready_warps |= 1u << warp;
}

// The first bit set from a random one on.
int random_bit(uint32_t bits) {
  const unsigned from = random_below(32);
  return int((unsigned(std::countr_zero(std::rotr(bits, int(from)))) + from) % 32);
}

// Without a seed lanes run in order, and a warp until all its lanes wait.
Thread* next_ready() {
  if (!ready_warps) return nullptr;
  if (!(ready_warps >> turn & 1) || (shuffled && stay < 8 && random_below(8) >= stay))
    turn = shuffled ? random_bit(ready_warps)
                    : int((unsigned(std::countr_zero(std::rotr(ready_warps, turn))) + unsigned(turn)) % 32);
  uint32_t& lanes = ready[turn];
  const int lane = shuffled ? random_bit(lanes) : std::countr_zero(lanes);
  lanes &= ~(1u << lane);
  if (!lanes) ready_warps &= ~(1u << turn);
  return &threads[turn * kWarp + lane];
}

void jump(Fiber* from, Fiber* to, [[maybe_unused]] bool dying = false) {
#ifdef __SANITIZE_ADDRESS__
  from_main = from == &main_fiber;
  const bool to_main = to == &main_fiber;
  __sanitizer_start_switch_fiber(dying ? nullptr : &from->fake, to_main ? main_bottom : to->stack,
                                 to_main ? main_bytes : kStack);
#endif
#ifdef DEEM_EMU_TSAN
  __tsan_switch_to_fiber(to->race, 1);  // 1: the switch itself orders nothing
#endif
  deem_emu_switch(&from->sp, to->sp);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}

void enter(Thread& t) {
  self = &t;
  now.thread = t.id;
}

[[noreturn]] void fiber_main();

Fiber* make_fiber() {
  auto* f = new Fiber{};
  void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  mprotect(p, kPage, PROT_NONE);
  f->stack = static_cast<char*>(p);
  static size_t made = 0;
  f->colour = made++ * 5 % 64 * 64;
#ifdef DEEM_EMU_TSAN
  f->race = __tsan_create_fiber(0);
#endif
  return f;
}

Fiber* fiber_for(Thread& t) {
  Fiber* f;
  if constexpr (kRaces) {
    f = t.own[block_number % 2];
  } else if (spare.empty()) {
    f = make_fiber();
  } else {
    f = spare.back();
    spare.pop_back();
  }
  auto** sp = reinterpret_cast<void**>(f->stack + kStack - 16 - f->colour);
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  f->sp = sp;
  f->fake = nullptr;
  return f;
}

std::string block_text() {
  return str(grid->name, ", block (", now.block.x, ", ", now.block.y, ", ", now.block.z, ")");
}
std::string text_of(const Where& w) {
  if (!w.line()) return "a matrix instruction";
  const char* name = std::strrchr(w.file_name(), '/');
  return str(name ? name + 1 : w.file_name(), ":", w.line());
}
bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
}

[[noreturn]] void stuck() {
  std::string text = "threads wait for ever:";
  int listed = 0;
  for (int w = 0; w * kWarp < count; w++)
    for (int g = 0; g < warps[w].groups && listed < 8; g++, listed++)
      text += str(" warp ", w, " at ", text_of(warps[w].group[g].where), " with mask 0x", std::hex,
                  warps[w].group[g].mask, ", of which 0x", warps[w].group[g].arrived, " came;");
  if (waiting) text += str(" ", waiting, " threads at ", text_of(waiting_at), ";");
  fault(text);
}

// Another thread's turn; returns when this one is made ready again.
void wait_turn() {
  Thread& me = *self;
  Thread* next = next_ready();
  if (!next) stuck();
  Thread& t = *next;
  enter(t);
  if (&t == &me) return;
  if (!t.fiber) t.fiber = fiber_for(t);
  jump(me.fiber, t.fiber);
}

void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (from_main) main_bottom = bottom, main_bytes = bytes;
#endif
  for (;;) {
    acquire(&start_token);
    grid->body();
    Thread& t = *self;
    if (t.first_copy != int(t.copies.size())) fault("a thread ends with cp.async in flight");
    release(&end_token);
    alive--;
    warps[t.warp].live &= ~(1u << t.lane);
    if (waiting) fault(str("a thread ends while others wait at ", text_of(waiting_at)));
    for (int g = 0; g < warps[t.warp].groups; g++)
      if (warps[t.warp].group[g].mask >> t.lane & 1)
        fault(
            str("lane ", int(t.lane), " ends while its warp waits for it at ", text_of(warps[t.warp].group[g].where)));
    Fiber* mine = t.fiber;
    t.fiber = nullptr;
    if (!alive) {
      if (!kRaces) spare.push_back(mine);
      jump(mine, &main_fiber, true);
    }
    Thread* next = next_ready();
    if (!next) stuck();
    Thread& other = *next;
    enter(other);
    if (!other.fiber && !kRaces) {  // goes on here: a thread that never waits costs no switch
      other.fiber = mine;
      continue;
    }
    if (!other.fiber) other.fiber = fiber_for(other);
    if (!kRaces) spare.push_back(mine);
    jump(mine, other.fiber, true);
  }
}

// [bytes] of the arena behind a gap.
char* arena_take(size_t bytes) {
  arena_used = (arena_used + kGap + 127) & ~size_t(127);
  char* p = arena + arena_used;
  arena_used += bytes;
  if (arena_used + kGap > kArena) fault("too much shared memory");
  show(p, bytes);
  fill_ff(p, bytes);
#ifndef __SANITIZE_ADDRESS__
  if (!kRaces) {
    std::memset(p - kGap, kGapByte, kGap);
    std::memset(p + bytes, kGapByte, kGap);
  }
#endif
  return p;
}

void give_up(const std::string& text) {
  if (!failed) {
    fault_text = str(text, " (", block_text(), ", seed ", seed_, ")");
    std::fprintf(stderr, "emulator: %s\n", fault_text.c_str());
  }
  failed = true;
}

// Writes beside shared arrays, where no sanitizer looks.
void check_gaps() {
#ifndef __SANITIZE_ADDRESS__
  if (kRaces) return;
  for (int i = 0; i < array_count; i++) {
    const Array& a = arrays[i];
    for (size_t k = 0; k < kGap; k++)
      if (static_cast<unsigned char>(a.data[a.bytes + k]) != kGapByte ||
          static_cast<unsigned char>(a.data[-1 - ptrdiff_t(k)]) != kGapByte)
        return give_up(str("a write out of bounds of shared array ", a.name));
  }
#endif
}

void begin_block(bool first) {
  waiting = phase = votes[0] = votes[1] = 0;
  alive = count;
  array_count = 0;
  static_bytes = 0;
  if (!kRaces || first) {
    hide(arena, kRaces ? 0 : kArena);
    arena_used = 0;
  }
  random_state = (seed_ * 2654435761u ^ (now.block.x * 40503u + now.block.y * 9973u + now.block.z * 613u)) | 1;
  for (int i = 0; i < 4; i++) random_below(2);
  shuffled = seed_ != 0;
  stay = shuffled ? std::array{0u, 7u, 8u}[random_below(3)] : 8;
  turn = 0;
  ready_warps = 0;
  for (int w = 0; w * kWarp < count; w++) {
    warps[w].groups = warps[w].fences = 0;
    warps[w].live = count - w * kWarp >= kWarp ? ~0u : (1u << (count - w * kWarp)) - 1;
    ready[w] = 0;
    make_ready(w, warps[w].live);
  }
  if (grid->smem) {
    char* p = arena_take(grid->smem);
    arrays[array_count++] = {nullptr, p, grid->smem, "(dynamic)"};
  }
}

void forget_threads() {  // after a fault: whoever waits is dropped where it is
  for (int i = 0; i < count; i++) {
    Thread& t = threads[i];
    t.copies.clear();
    t.first_copy = 0;
    if (!t.fiber) continue;
    show(t.fiber->stack + kPage, kStack - kPage);
    if (!kRaces) spare.push_back(t.fiber);
    t.fiber = nullptr;
  }
}

void run_block(bool first) {
  begin_block(first);
  release(&start_token);
  Thread& t = *next_ready();
  enter(t);
  t.fiber = fiber_for(t);
  jump(&main_fiber, t.fiber);
  self = nullptr;
  if (failed) return forget_threads();
  check_gaps();
  block_number++;
}

// Once a block size: indices of the threads.
void shape_threads(dim3 size) {
  static dim3 shaped(0, 0, 0);
  count = int(size.x * size.y * size.z);
  if (size.x == shaped.x && size.y == shaped.y && size.z == shaped.z) return;
  shaped = size;
  for (int i = 0; i < count; i++) {
    Thread& t = threads[i];
    const unsigned n = unsigned(i);
    t.id = uint3{n % size.x, n / size.x % size.y, n / (size.x * size.y)};
    t.warp = uint16_t(i / kWarp);
    t.lane = uint8_t(i % kWarp);
    if constexpr (kRaces)
      for (Fiber*& f : t.own)
        if (!f) f = make_fiber();
  }
}

}  // namespace

void fault(std::string given) {
  // Kept here, since nothing on the fiber's stack is destroyed.
  static std::string text;
  text = std::move(given);
  std::string().swap(given);
  if (!self) {  // of the launch itself
    give_up(text);
    throw DeviceError(text);
  }
  text = str("thread (", now.thread.x, ", ", now.thread.y, ", ", now.thread.z, "): ", text);
  give_up(text);
  jump(self->fiber, &main_fiber);
  std::abort();  // nobody comes back here
}

int barrier(const Where& where, int value) {
  Thread& me = *self;
  me.where = where;
  if (waiting && !same(waiting_at, where))
    fault(str("__syncthreads in a divergent branch: some threads wait at ", text_of(waiting_at), ", this one at ",
              text_of(where)));
  if (alive != count) fault(str("__syncthreads at ", text_of(where), " after a thread ended"));
  const int parity = phase & 1;
  release(&barrier_token[parity]);
  votes[parity] += value;
  if (waiting + 1 == alive) {
    phase++;
    votes[phase & 1] = 0;
    waiting = 0;
    for (int w = 0; w * kWarp < count; w++) make_ready(w, warps[w].live);
    const uint32_t mine = 1u << me.lane;
    if (shuffled) wait_turn();
    else if (!(ready[me.warp] &= ~mine)) ready_warps &= ~(1u << me.warp);
  } else {
    waiting++;
    waiting_at = where;
    wait_turn();
  }
  acquire(&barrier_token[parity]);
  return votes[parity];
}

void collective(uint32_t mask, WarpOp op, const void* in, void* out, bool fence, const Where& where) {
  Thread& me = *self;
  Warp& warp = warps[me.warp];
  const uint32_t bit = 1u << me.lane;
  if (!(mask & bit))
    fault(str("warp operation at ", text_of(where), ": lane ", int(me.lane), " is not in its own mask 0x", std::hex,
              mask));
  if (mask & ~warp.live)
    fault(str("warp operation at ", text_of(where), ": mask 0x", std::hex, mask,
              " names lanes that have ended or never were (0x", mask & ~warp.live, ")"));
  int g = 0;
  while (g < warp.groups && !(warp.group[g].mask & mask)) g++;
  Group& group = warp.group[g];
  if (g == warp.groups) {
    warp.groups++;
    group.mask = mask, group.arrived = 0, group.op = op, group.where = where;
  } else if (group.mask != mask || group.op != op || !same(group.where, where)) {
    fault(str("lanes of a warp disagree: 0x", std::hex, group.arrived, " wait at ", text_of(group.where),
              " with mask 0x", group.mask, ", lane ", std::dec, int(me.lane), " comes to ", text_of(where), " with 0x",
              std::hex, mask));
  }
  char* token = &warp.token[warp.fences & 1];
  if (fence) release(token);
  me.where = where;
  group.arrived |= bit;
  group.lanes.in[me.lane] = in;
  group.lanes.out[me.lane] = out;
  if (group.arrived == mask) {
    if (op) op(group.lanes, mask);
    if (fence) warp.fences++;
    if (g != --warp.groups) warp.group[g] = warp.group[warp.groups];
    if (shuffled) make_ready(me.warp, mask), wait_turn();
    else if (mask != bit) make_ready(me.warp, mask & ~bit);
  } else {
    wait_turn();
  }
  if (fence) acquire(token);
}

uint32_t live_lanes() { return warps[self->warp].live; }
int lane_id() { return self->lane; }

void fence() {
  release(&fence_token);
  acquire(&fence_token);
}

void* shared_array(const void* site, size_t bytes, const char* name) {
  for (int i = 0; i < array_count; i++)
    if (arrays[i].site == site) return arrays[i].data;
  static_bytes += bytes;
  if (static_bytes > kStaticShared) fault(str("more than 48 KB of static shared memory, with array ", name));
  if (static_bytes + grid->smem > grid->smem_limit)
    fault(str(static_bytes, " bytes of static and ", grid->smem, " of dynamic shared memory are more than the ",
              grid->smem_limit, " of a block"));
  if (array_count == int(std::size(arrays))) fault("more shared arrays than the emulator counts");
  char* p = arena_take(bytes);
  arrays[array_count++] = {site, p, bytes, name};
  return p;
}

void* shared_dynamic() {
  if (!grid->smem) fault("dynamic shared memory of a kernel that was launched without");
  return arrays[0].data;
}

void check_shared(const void* p, int bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % unsigned(bytes))
    fault(str(what, " needs an address aligned to ", bytes, " bytes"));
  const auto* c = static_cast<const char*>(p);
  for (int i = 0; i < array_count; i++)
    if (c >= arrays[i].data && c + bytes <= arrays[i].data + arrays[i].bytes) return;
  fault(str(what, " of memory that is no shared array of the block"));
}

void begin_copy(void* to, const void* data, int bytes) {
  Thread& t = *self;
  Copy copy{to, bytes, {}};
  for (int i = 0; i < bytes; i++) copy.data[i] = static_cast<const volatile unsigned char*>(data)[i];
  t.copies.emplace_back(t.group, copy);
}
void commit_copies() { self->group++; }
bool next_arrived(int left, Copy& copy) {
  Thread& t = *self;
  if (t.first_copy == int(t.copies.size())) {
    t.copies.clear();
    t.first_copy = 0;
    return false;
  }
  auto& [group, pending] = t.copies[size_t(t.first_copy)];
  if (group >= t.group - left) return false;
  copy.to = pending.to, copy.bytes = pending.bytes;
  for (int i = 0; i < 16; i++) static_cast<volatile unsigned char*>(copy.data)[i] = pending.data[i];
  t.first_copy++;
  return true;
}

bool run_grid(const Grid& g) {
  if (!arena) {
    void* p = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw DeviceError("the emulator got no memory");
    arena = static_cast<char*>(p);
  }
#ifdef DEEM_EMU_TSAN
  main_fiber.race = __tsan_get_current_fiber();
#endif
  grid = &g;
  failed = false;
  now.block_size = g.block;
  now.grid_size = g.grid;
  shape_threads(g.block);
  const uint64_t blocks = uint64_t(g.grid.x) * g.grid.y * g.grid.z;
  // Block order: every step-th, where step and the number of blocks share no factor.
  uint64_t step = 1, at = 0;
  if (seed_ && blocks > 1) {
    random_state = (seed_ * 2654435761u) | 1;
    for (int i = 0; i < 4; i++) random_below(2);
    at = random_below(uint32_t(blocks));
    do step = 1 + random_below(uint32_t(blocks - 1));
    while (std::gcd(step, blocks) != 1);
  }
  bool first = true;
  for (uint64_t i = 0; i < blocks && !failed; i++, at = (at + step) % blocks) {
    now.block = uint3{unsigned(at % g.grid.x), unsigned(at / g.grid.x % g.grid.y),
                      unsigned(at / (uint64_t(g.grid.x) * g.grid.y))};
    // Blocks before are ordered before the next ones only where the arena must begin anew.
    if (kRaces && arena_used > kArena / 2) acquire(&end_token), first = true;
    run_block(first);
    first = false;
  }
  acquire(&end_token);
  grid = nullptr;
  return !failed;
}

void set_seed(uint32_t s) { seed_ = s; }
uint32_t seed() { return seed_; }
std::string last_fault() { return fault_text; }
void clear_fault() {
  fault_text.clear();
  forget_errors();
}

}  // namespace deem::emu
