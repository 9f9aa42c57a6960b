// Products of bf16 where one instruction multiplies two of them by two others. Rows of one operand are read where they lie, so that large
// weights are neither copied nor turned over; the other one becomes panels of columns. Which is which, and with it whether c or its
// transpose comes out, is what costs least.
#include "core/memory.h"
#include "cpu/kernels/pair_plan.h"
#include "cpu/row.h"

#if DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

// ---- packing ----------------------------------------------------------------------------------------------------------

// An operand's lines from number `begin` on.
DEEM_INLINE PackSource part_of(const Operand& o, int64_t begin) {
  PackSource s = o.source;
  s.data = (const bf16*)s.data + begin * (o.across ? s.stride : 1);
  return s;
}

// Register `vec` of columns, of a panel that begins at `to`: numbers begin..begin + k.
static void pack_vec(const Product& p, int64_t vec, int64_t begin, int64_t k, float* to) {
  const int64_t panel = panel_of(p, vec), of_panel = first_vec(p, panel), first = vec * kLanes;
  pack_lines_of_pairs(part_of(p.cols, begin), first, min(kLanes, p.cols.count - first), k,
                      to + (vec - of_panel) * kLanes, (first_vec(p, panel + 1) - of_panel) * kLanes);
}
static void pack_panel(const Product& p, int64_t i, int64_t begin, int64_t k, float* to) {
  const int64_t vec = first_vec(p, i), end = first_vec(p, i + 1), first = vec * kLanes;
  if (p.cols.across)
    return pack_pairs_across(part_of(p.cols, begin), first, min((end - vec) * kLanes, p.cols.count - first), k,
                             end - vec, to);
  for (int64_t v = vec; v < end; v++) pack_vec(p, v, begin, k, to);
}

// All panels: by registers, so that threads have equal shares, or by panels, whose rows fill cache lines.
DEEM_INLINE int64_t column_packs(const Product& p) { return p.cols.across ? p.panels : vecs_of(p); }
static void pack_columns(const Product& p, int64_t i, float* panels) {
  const int64_t panel = p.cols.across ? i : panel_of(p, i);
  float* to = panels + first_vec(p, panel) * kLanes * p.pairs;
  if (p.cols.across) pack_panel(p, panel, 0, p.k, to);
  else pack_vec(p, i, 0, p.k, to);
}

static void copy_across(const Product& p, int64_t first, float* to) {
  pack_pairs_across(p.rows.source, first, min(kCopied, p.rows.count - first), p.k, kCopied / kLanes, to);
}
DEEM_INLINE int64_t row_packs(const Product& p) {
  if (p.rows.across) return p.alone ? ceil_div(p.rows.count, kCopied) : 0;
  return p.rows.count % kPairRows ? 1 : 0;
}
static void pack_rows(const Product& p, int64_t i, float* to) {
  if (p.rows.across) return copy_across(p, i * kCopied, to + i * kCopied * p.pairs);
  const int64_t first = p.rows.count / kPairRows * kPairRows;
  copy_lines_of_pairs(p.rows.source, first, p.rows.count - first, p.k, to, whole_lanes(p.pairs));
}

// ---- what comes next ------------------------------------------------------------------------------------------------

// What tiles ask for of what is read after them, the same pairs of panel or block `next`: the first of some groups its part, the following ones what
// lies `step` bytes further on each, as far as they are `tiles`.
struct Following {
  Next first;
  int64_t step = 0, tiles = 0;
  DEEM_INLINE Next of(int64_t tile) const {
    if (tile >= tiles) return {};
    Next next = first;
    next.at += tile * step;
    return next;
  }
};

static Following following_panel(const Product& p, int64_t next, int64_t tiles, int64_t pair) {
  if (next >= p.panels) return {};
  const int64_t first = first_vec(p, next) * kLanes, columns = first_vec(p, next + 1) * kLanes - first;
  if (p.kept) {
    const int64_t count = ceil_div(columns, tiles);  // cache lines, of which kLanes pairs have as many as columns
    return {
        {(const char*)(p.kept + first * p.pairs + pair * columns), count, 64, kLanes * columns * 4}, count * 64, tiles};
  }
  const PackSource& s = p.cols.source;
  const int64_t stride = s.stride * kSize, count = ceil_div(p.cols.across ? 2 * kLanes : columns, tiles);
  const char* at = (const char*)s.data;
  if (p.cols.across)
    return {{at + 2 * pair * stride + first * kSize, count, stride, 2 * kLanes * stride}, count * stride, tiles};
  return {{at + first * stride + 2 * pair * kSize, count, stride, 2 * kLanes * kSize}, count * stride, tiles};
}

static Following following_block(const Product& p, int64_t next, int64_t tiles, int64_t panel, int64_t pair) {
  if (next >= p.blocks) return {};
  const Groups rows = block_of(p, next);
  const int64_t stride = p.rows.source.stride * kSize, first = rows.begin * kPairRows;
  const char* at = (const char*)p.rows.source.data;
  if (p.rows.across) {
    const int64_t done = panel * tiles,
                  bytes = (rows.end - rows.begin) * kPairRows * kSize;  // rows of memory, two a pair
    return {{at + (2 * pair + done) * stride + first * kSize, ceil_div(bytes, 64), 64, 2 * kLanes * stride},
            stride,
            2 * kLanes - done};
  }
  const int64_t count = ceil_div(kPairRows, p.panels), done = panel * count;
  if (done >= kPairRows) return {};
  return {
      {at + (first + done) * stride + 2 * pair * kSize, count, stride, 2 * kLanes * kSize}, kPairRows * stride, tiles};
}

// ---- multiplying ------------------------------------------------------------------------------------------------------

// Where the rows of a tile lie; `copied` begins with group `first`.
DEEM_INLINE void find_rows(const Product& p, int64_t group, const float* copied, int64_t first, int64_t pair,
                           PairTile& t) {
  const int64_t row = group * kPairRows, of_copied = row - first * kPairRows;
  bool whole = false;
  if (p.rows.across)
    t.rows = (const bf16*)(copied + of_copied / kCopied * kCopied * p.pairs + of_copied % kCopied), t.row_stride = 2,
    t.step = 2 * kCopied;
  else if (row + kPairRows > p.rows.count)
    t.rows = (const bf16*)copied, t.row_stride = 2 * whole_lanes(p.pairs), t.step = 2;
  else
    t.rows = (const bf16*)p.rows.source.data + row * p.rows.source.stride, t.row_stride = p.rows.source.stride,
    t.step = 2, whole = true;
  t.rows += pair * t.step;
  t.odd = t.last && whole && p.k % 2 != 0;
  t.pairs = min(p.run, p.pairs - pair) - t.odd;
  t.valid = min<int64_t>(kPairRows, p.rows.count - row);
}

static void run_tile(int64_t vecs, const PairTile& t) {
  switch (vecs) {
    case 1: return pair_tile<1>(t);
    case 2: return pair_tile<2>(t);
    default: return pair_tile<3>(t);
  }
}

// Numbers of c, at most kWords or a row of them: times scale, and then added to the residual.
template <class Part>
DEEM_INLINE void add_words(const bf16* from, const bf16* scale, const bf16* residual, bf16* to, Part part) {
  __m512i words = get_words(from, part);
  const __m512i r = get_words(residual, part);
  if (scale) {
    const __m512i s = get_words(scale, part);
    words = round_to_words(even_of(words) * even_of(s), odd_of(words) * odd_of(s));
  }
  put_words(to, round_to_words(even_of(r) + even_of(words), odd_of(r) + odd_of(words)), part);
}

// Rows begin..end of c, `count` numbers each from column col on, which tiles have left there.
static void add_rows(const Product& p, int64_t begin, int64_t end, int64_t col, int64_t count) {
  for (int64_t row = begin; row < min(end, p.rows.count); row++) {
    const int64_t at = row * p.c_row_stride + col;
    bf16* c = (bf16*)p.c + at;
    for_words(count, [&](int64_t i, int, auto part) DEEM_ALWAYS {
      add_words(c + i, p.scale ? p.scale + col + i : nullptr, p.residual + at + i, c + i, part);
    });
  }
}

// Lines of c that tiles have left in scratch memory, kLineRows numbers of each of some columns. They are moved a few at a time while later
// tiles are multiplied: at once, they would wait for memory.
struct Lines {
  bf16 *from, *to;
  int64_t stride, rows, left;  // of columns in c; numbers that c has; columns
  bool second;                 // half of the scratch memory
  const bf16 *scale, *residual;
  DEEM_INLINE void move(int64_t count) {
    count = min(count, left), left -= count;
    if (rows < kLineRows) move_numbers(count, Part{rows});
    else move_numbers(count, Whole{});
  }
  template <class Part>
  DEEM_INLINE void move_numbers(int64_t count, Part part) {
    for (; count > 0; count--, from += kLineRows, to += stride) {
      if (!residual) {
        put_words(to, get_words(from, part), part);
        continue;
      }
      add_words(from, scale, residual, to, part);
      residual += stride;
    }
  }
};

namespace {  // whose functions no other object shares

// What one thread multiplies.
struct Worker {
  const Product& p;
  Room room;
  Lines waiting{};

  // Groups of rows by one panel; `next` is the panel, alone, or the block that comes next. `copied` as in find_rows.
  void multiply(const Groups& groups, int64_t panel, int64_t next, const float* copied, int64_t first) {
    const int64_t vec = first_vec(p, panel), vecs = first_vec(p, panel + 1) - vec, col = vec * kLanes;
    const float* all = p.kept ? p.kept : room.panels;
    PairTile t{};
    t.cols = min(vecs * kLanes, p.cols.count - col);
    t.c_row_stride = p.turned ? kLineRows : p.c_row_stride, t.c_size = p.c_size;
    t.turned = p.turned;
    for (int64_t at = 0; at < p.pairs; at += p.run) {
      t.first = at == 0, t.last = at + p.run >= p.pairs;
      t.panel = all + col * p.pairs + at * vecs * kLanes;
      if (p.alone && !p.kept) {
        pack_panel(p, panel, 2 * at, min(2 * p.run, p.k - 2 * at), room.own.panel);
        t.panel = room.own.panel;
      }
      const int64_t tiles = groups.end - groups.begin;
      const Following following =
          p.alone ? following_panel(p, next, tiles, at) : following_block(p, next, tiles, panel, at);
      for (int64_t g = groups.begin; g < groups.end; g++) {
        const int64_t row = g * kPairRows, mine = g - groups.begin;
        find_rows(p, g, copied, first, at, t);
        t.sums = room.own.sums + mine * kPairSums;
        t.bias = p.bias ? p.bias + (p.turned ? row : col) : nullptr;
        t.next = following.of(mine);
        if (p.turned && t.last) {
          turned_tile(t, vecs, g, g + 1 == groups.end, col);
          continue;
        }
        t.c = p.c + (row * p.c_row_stride + col) * p.c_size;
        run_tile(vecs, t);
      }
    }
  }

  void multiply_alone(int64_t block, int64_t panel) {
    const Groups groups = block_of(p, block);
    multiply(groups, panel, panel + 1, room.rows, 0);
    if (!p.residual || p.turned) return;
    const int64_t col = first_vec(p, panel) * kLanes, end = first_vec(p, panel + 1) * kLanes;
    add_rows(p, groups.begin * kPairRows, groups.end * kPairRows, col, min(end, p.cols.count) - col);
  }

  void turned_tile(PairTile& t, int64_t vecs, int64_t group, bool last, int64_t col) {
    bf16* lines = (bf16*)(room.own.lines + (waiting.second ? 0 : kOwnLines));
    t.c = lines + group % kLineGroups * kPairRows;
    waiting.move(kPanelMost / kLineGroups);
    run_tile(vecs, t);
    if (!last && group % kLineGroups + 1 < kLineGroups) return;
    waiting.move(kPanelMost);
    const int64_t row = group / kLineGroups * kLineRows;
    waiting = {.from = lines,
               .to = (bf16*)p.c + col * p.c_row_stride + row,
               .stride = p.c_row_stride,
               .rows = min(kLineRows, p.rows.count - row),
               .left = t.cols,
               .second = !waiting.second,
               .scale = p.scale ? p.scale + row : nullptr,
               .residual = p.residual ? p.residual + col * p.c_row_stride + row : nullptr};
  }

  void multiply_block(int64_t i) {
    const Groups block = block_of(p, i);
    const float* copied = room.rows;
    if (p.rows.across) {
      copied = room.own.rows;
      for (int64_t g = block.begin; g < block.end; g += kLineGroups)
        copy_across(p, g * kPairRows, room.own.rows + (g - block.begin) * kPairRows * p.pairs);
    }
    if (p.pairs < kShallow && !p.turned) return multiply_rows(block, copied);
    for (int64_t panel = 0; panel < p.panels; panel++) multiply(block, panel, i + 1, copied, block.begin);
    if (p.residual && !p.turned) add_rows(p, block.begin * kPairRows, block.end * kPairRows, 0, p.cols.count);
  }

  // Where there is little depth, rows of c are written one after the other.
  void multiply_rows(const Groups& block, const float* copied) {
    const float* all = p.kept ? p.kept : room.panels;
    PairTile t{};
    t.first = t.last = true;
    t.c_row_stride = p.c_row_stride, t.c_size = p.c_size;
    for (int64_t g = block.begin; g < block.end; g++) {
      find_rows(p, g, copied, block.begin, 0, t);
      char* row = p.c + g * kPairRows * p.c_row_stride * p.c_size;
      for (int64_t panel = 0, vec = 0, end; panel < p.panels; panel++, vec = end) {
        end = first_vec(p, panel + 1);
        const int64_t col = vec * kLanes;
        t.cols = min((end - vec) * kLanes, p.cols.count - col);
        t.panel = all + col * p.pairs;
        t.bias = p.bias ? p.bias + col : nullptr;
        t.c = row + col * p.c_size;
        run_tile(end - vec, t);
      }
      if (p.residual) add_rows(p, g * kPairRows, (g + 1) * kPairRows, 0, p.cols.count);
    }
  }
};

}  // namespace

static void multiply(const Product& p, float* all, int64_t threads) {
  const int64_t copies = row_packs(p), packs = p.alone || p.kept ? 0 : column_packs(p);
  parallel_phases(
      threads, copies + packs,
      [&](int64_t i, int64_t) {
        const Room room = room_of(p, all, 0);
        if (i < copies) pack_rows(p, i, room.rows);
        else pack_columns(p, i - copies, room.panels);
      },
      p.alone ? p.panels * p.blocks : p.blocks,
      [&](int64_t i, int64_t thread) {
        Worker worker{p, room_of(p, all, thread)};
        if (p.alone) worker.multiply_alone(i % p.blocks, i / p.blocks);
        else worker.multiply_block(i);
        worker.waiting.move(kPanelMost);
      });
}

static void pair_gemm(const PackedGemmArgs& g) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return;
  const bool small = g.m * g.n * max<int64_t>(g.k, 1) * g.batch < 1 << 17;
  const int64_t threads = small ? 1 : num_threads(), teams = min(threads, g.batch), of_team = teams > 1 ? 1 : threads;
  Product p = plan(g, of_team);
  const int64_t bias = g.bias ? whole_lanes(g.n) + kPanelMost : 0;
  const int64_t need = row_numbers(p) + whole_lanes(panel_numbers(p)) + of_team * own_numbers(p);
  const size_t bytes = scratch_size(size_t(bias + teams * need) * sizeof(float));
  float* room = (float*)allocate_scratch(bytes);
  if (g.bias) {
    convert_row((const bf16*)g.bias, g.n, room);
    for (int64_t i = g.n; i < bias; i++) room[i] = 0.0f;
    p.bias = room;
  }
  parallel_items(teams, g.batch, [&](int64_t i, int64_t team) {
    Product item = p;
    const char *a = (const char*)g.a.data + i * g.a.step * kSize, *b = (const char*)g.b.data + i * g.b.step * kSize;
    item.rows.source.data = p.turned ? b : a, item.cols.source.data = p.turned ? a : b;
    item.c = (char*)g.c + i * g.c_step * p.c_size;
    multiply(item, room + bias + team * need, of_team);
  });
  release(room, bytes);
  if (p.residual) g.after->done = true;
}

static void pair_panels(const PairPanelsArgs& a) {
  Product p{};
  set_columns(p, {{a.lines, a.k, 0, nullptr}, false, a.n}, a.k);
  parallel_for(column_packs(p), kLanes * a.k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) pack_columns(p, i, (float*)a.to);
  });
}

static const Register r1{pair_gemm_kernel, Device::cpu, pair_gemm};
static const Register r2{pair_panels_kernel, Device::cpu, pair_panels};

}  // namespace deem::DEEM_ISA
#endif
