// How a product of bf16 is taken apart (cpu/kernels/pair_gemm.cpp): which operand gives rows and which columns, what threads share, and what lies where
// in scratch memory.
#pragma once
#include "cpu/kernels/pair_pack.h"

#if defined(DEEM_ISA) && DEEM_ISA_INDEX >= 3
namespace deem::DEEM_ISA {

constexpr int64_t kBlock = 12;                      // groups of kPairRows rows that share a panel in a core's cache
constexpr int64_t kMostAlone = 128;                 // groups that may be a single block
constexpr int64_t kPanelMost = kMostVecs * kLanes;  // columns of a panel, at most
constexpr int64_t kShallow = 128;                   // pairs, below which rows of c are written one after the other
constexpr int64_t kCopied = 2 * kLanes;             // rows that are copied side by side, where they lie across
// Groups whose rows make a cache line of c where it is turned; blocks have whole lines.
constexpr int64_t kLineGroups = 4, kLineRows = kLineGroups * kPairRows;
constexpr int64_t kSize = sizeof(bf16);

// Lines of an operand, each of k numbers.
struct Operand {
  PackSource source;
  bool across;  // or each line's numbers side by side
  int64_t count;
};

constexpr int64_t kMostShared = int64_t(16) << 20;  // bytes of panels that a cache which threads share may hold

struct Product {
  Operand rows, cols;
  int64_t k, pairs;
  bool turned;        // rows are b's
  const float* kept;  // all panels, or null
  const float* bias;
  const bf16 *scale, *residual;  // as of GemmAfter, or null
  char* c;
  int64_t c_row_stride;
  int64_t c_size;                  // bytes of a number of c
  int64_t groups, panels, blocks;  // of rows, of columns, of groups
  int64_t run;                     // pairs that a tile sums at once, at most
  bool alone;                      // all rows meet a panel before the next one, which who multiplies packs
};

DEEM_INLINE int64_t vecs_of(const Product& p) { return ceil_div(p.cols.count, kLanes); }
// The first register of panel i, of which each has two or three, or a single one all.
DEEM_INLINE int64_t first_vec(const Product& p, int64_t i) { return vecs_of(p) * i / p.panels; }
DEEM_INLINE int64_t panel_of(const Product& p, int64_t vec) { return ((vec + 1) * p.panels - 1) / vecs_of(p); }
static void set_columns(Product& p, const Operand& cols, int64_t k) {
  p.cols = cols, p.k = k, p.pairs = ceil_div(k, 2);
  p.panels = ceil_div(vecs_of(p), kMostVecs);
}

DEEM_INLINE bool is_alone(const Operand& rows, const Operand& cols, int64_t threads) {
  const int64_t groups = ceil_div(rows.count, kPairRows);
  const bool few = groups <= kBlock || (groups <= kMostAlone && rows.count < cols.count);
  return few && (threads == 1 || cols.count >= 2 * threads * kPanelMost);
}

// Cycles, roughly, of `rows` and `cols` in their roles: tiles, also where they hang over the edge, and what packing and turning over take.
static double cost(const Operand& rows, const Operand& cols, int64_t k, bool turned, int64_t threads) {
  const double tiles = double(ceil_div(rows.count, kPairRows) * kPairRows) * double(whole_lanes(cols.count)) / 64;
  const double pack = cols.across ? 0.3 : 0.5, again = is_alone(rows, cols, threads) ? 0.0 : 0.2;
  const double copy = rows.across ? 0.3 : 0.0;
  return (tiles + double(cols.count) * (pack + again) + double(rows.count) * copy) * double(k) +
         (turned ? 0.2 * double(rows.count) * double(cols.count) : 0.0);
}

static Product plan(const PackedGemmArgs& g, int64_t threads) {
  Product p{};
  const Operand a{g.a, g.rows == RowsOf::across, g.m}, b{g.b, g.columns == ColumnsOf::across, g.n};
  p.kept = (const float*)g.packed_b;
  p.turned = !p.kept && g.c_dtype == DType::bf16 && cost(b, a, g.k, true, threads) < cost(a, b, g.k, false, threads);
  p.rows = p.turned ? b : a;
  set_columns(p, p.turned ? a : b, g.k);
  if (g.after && g.c_dtype == DType::bf16)
    p.scale = (const bf16*)g.after->scale, p.residual = (const bf16*)g.after->residual;
  p.c_row_stride = g.c_row_stride, p.c_size = int64_t(size_of(g.c_dtype));
  p.groups = ceil_div(p.rows.count, kPairRows);
  p.alone = is_alone(p.rows, p.cols, threads);
  // Panels that every block reads from memory meet larger blocks, whose rows have room in a core's cache by shorter runs.
  const bool large = !p.alone && vecs_of(p) * kLanes * p.pairs * 4 > kMostShared;
  p.run = large ? 512 : 1024;
  // Blocks are work for threads to share; alone, panels are, and rows are cut only where those are few and nobody packs them.
  const int64_t many = threads > 1 ? kPieces * threads : 1;
  const int64_t blocks = !p.alone ? max(ceil_div(p.groups, large ? 2 * kBlock : kBlock), many)
                         : p.kept ? ceil_div(2 * many, p.panels)
                                  : 1;
  p.blocks = min(ceil_div(p.groups, kLineGroups), p.alone ? blocks : ceil_div(blocks, threads) * threads);
  return p;
}

struct Groups {
  int64_t begin, end;
};
DEEM_INLINE Groups block_of(const Product& p, int64_t i) {
  const int64_t lines = ceil_div(p.groups, kLineGroups);
  return {lines * i / p.blocks * kLineGroups, min(p.groups, lines * (i + 1) / p.blocks * kLineGroups)};
}

// ---- scratch memory, in floats ----------------------------------------------------------------------------------------

DEEM_INLINE int64_t most_groups(const Product& p) {
  return min(p.groups, ceil_div(ceil_div(p.groups, kLineGroups), p.blocks) * kLineGroups);
}
// Rows across as [kCopied, pairs, kCopied]: all of them, alone, else each thread its block's. Of lines the last few, where they are fewer than a
// tile has, as [kPairRows, pairs].
DEEM_INLINE int64_t copied_numbers(const Product& p, int64_t rows) {
  return ceil_div(rows, kCopied) * kCopied * p.pairs;
}
DEEM_INLINE int64_t row_numbers(const Product& p) {
  if (p.rows.across) return p.alone ? copied_numbers(p, p.rows.count) : 0;
  return p.rows.count % kPairRows ? kPairRows * whole_lanes(p.pairs) : 0;
}
DEEM_INLINE int64_t panel_numbers(const Product& p) { return p.alone || p.kept ? 0 : vecs_of(p) * kLanes * p.pairs; }
// Of a thread: lines of c, sums of a block's tiles, a run of a panel, rows.
constexpr int64_t kOwnLines = kPanelMost * kLineRows / 2;
DEEM_INLINE int64_t own_sums(const Product& p) { return p.pairs > p.run ? most_groups(p) * kPairSums : 0; }
DEEM_INLINE int64_t own_panel(const Product& p) { return p.alone && !p.kept ? kPanelMost * min(p.run, p.pairs) : 0; }
DEEM_INLINE int64_t own_rows(const Product& p) {
  return p.rows.across && !p.alone ? copied_numbers(p, most_groups(p) * kPairRows) : 0;
}
DEEM_INLINE int64_t own_numbers(const Product& p) {
  return 2 * kOwnLines + own_sums(p) + whole_lanes(own_panel(p)) + own_rows(p);
}

struct Room {
  float *rows, *panels;
  struct Own {
    float *lines, *sums, *panel, *rows;
  } own;
};
DEEM_INLINE Room room_of(const Product& p, float* all, int64_t thread) {
  float* panels = all + row_numbers(p);
  float* lines = panels + whole_lanes(panel_numbers(p)) + thread * own_numbers(p);
  float *sums = lines + 2 * kOwnLines, *panel = sums + own_sums(p);
  return {all, panels, {lines, sums, panel, panel + whole_lanes(own_panel(p))}};
}

}  // namespace deem::DEEM_ISA
#endif
