// The scheme of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication"): one operand is packed whole and shared by
// all threads, the other in blocks that stay in a core's second-level cache; tiles of c live in registers while kDepth numbers
// of each line are multiplied. Between such runs, tiles lie one after the other in scratch memory: rows of c are often a power of two
// apart, where a cache could hold only a few of them.
#include "cpu/gemm.h"

#include "core/memory.h"
#include "cpu/kernels/gemm_pack.h"
#include "cpu/kernels/gemm_tile.h"
#include "cpu/row.h"
#include "cpu/stream.h"

namespace deem::DEEM_ISA {

// Numbers of a run, at most. 640 for lines of 640 and 1280 numbers, which are frequent: runs cost a pass over the tiles. Of longer lines, too, with
// AVX2, while shorter runs suit AVX-512 better.
constexpr int64_t kDepth = kLanes == 8 ? 640 : 512, kLongDepth = kLanes == 4 ? kDepth : 640;
DEEM_INLINE int64_t most_depth(int64_t k) { return k <= 2 * kLongDepth ? kLongDepth : kDepth; }
constexpr int64_t kBlockA = 140 / kRows, kBlockB = 128 / kCols;  // panels of a block, at most
constexpr int64_t kLeastA = 56 / kRows, kLeastB = 32 / kCols;    // at least: each panel of the other is fetched for it
constexpr int64_t kPartial = 3 << 15;                            // numbers of the tiles that wait between runs
constexpr int64_t kShared = 1 << 23;  // of the operand that is packed whole, at most, or k is taken in parts

template <class T>
static void round_rows(const float* from, int64_t rows, int64_t cols, int64_t from_stride, void* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++) convert_row(from + r * from_stride, cols, (T*)to + r * stride);
}

// How the numbers of an operand lie, as far as memory can be asked for ahead: in lines, in rows, or as patches do. A number has `size` bytes.
enum class Along { line, rows, neither };
struct Layout {
  Along along;
  int64_t size;
};
template <class Of>
DEEM_INLINE Layout layout_of(Of how, const PackedGemmArgs& g) {
  const int64_t size = int64_t(size_of(g.dtype));
  return how == Of::lines    ? Layout{Along::line, size}
         : how == Of::across ? Layout{Along::rows, size}
                             : Layout{Along::neither, 0};
}

// ---- one product ----------------------------------------------------------------------------------------------------

struct Product {
  int64_t m, n, k, begin;  // numbers begin..begin + k of every line
  bool more;               // are added to what c holds, which is f32
  PackSource a, b;
  Pack pack_a, pack_b;
  int64_t span_a;  // numbers of a panel of a for each of a line
  Tile (*tile)(int64_t rows, int64_t cols);
  const float* bias;  // [panels of b * kCols] or null
  char* c;
  int64_t c_row_stride;
  DType c_dtype;
  Layout layout_a, layout_b;
  bool share_a;
  int64_t height;                                           // rows of a panel of a
  int64_t panels_a, panels_b, depth, block, blocks, chunk;  // depth: of a run; block and chunk in panels, at most
};

// On machines before Zen 5, of which AVX512_BF16 tells most, copies were 17 to 35 % faster.
DEEM_INLINE bool reads_in_place(const PackedGemmArgs& g) {
  return DEEM_ISA_INDEX >= 3 && g.dtype == DType::f32 && in_place(g.rows, g.a);
}

static Product plan(const PackedGemmArgs& g, int64_t k, int64_t threads) {
  Product p{};
  p.m = g.m, p.n = g.n, p.k = k;
  p.a = g.a, p.b = g.b;
  p.c_row_stride = g.c_row_stride;
  p.c_dtype = g.c_dtype;
  p.layout_a = layout_of(g.rows, g), p.layout_b = layout_of(g.columns, g);
  const bool by_line = g.rows != RowsOf::across;
  p.span_a = by_line ? kRows : kRowSpan;
  p.tile = reads_in_place(g) ? tile_of<Rows::in_place> : by_line ? tile_of<Rows::by_line> : tile_of<Rows::by_number>;
  p.panels_a = ceil_div(g.m, kRows), p.panels_b = ceil_div(g.n, kCols);
  p.height = ceil_div(g.m, p.panels_a);
  p.panels_a = ceil_div(g.m, p.height);
  const int64_t runs = max<int64_t>(1, ceil_div(k, most_depth(k)));
  p.depth = min(k, whole_lanes(ceil_div(k, runs)));
  // The smaller operand is shared, unless the other has too few panels for all threads.
  p.share_a =
      g.m <= g.n ? p.panels_b >= threads || p.panels_b >= p.panels_a : p.panels_a < threads && p.panels_b > p.panels_a;
  const int64_t streamed = p.share_a ? p.panels_b : p.panels_a, shared = p.share_a ? p.panels_a : p.panels_b;
  p.blocks = ceil_div(streamed, p.share_a ? kBlockB : kBlockA);
  if (threads > 1) p.blocks = max(p.blocks, min(kPieces * threads, streamed / (p.share_a ? kLeastB : kLeastA)));
  p.blocks = min(streamed, ceil_div(p.blocks, threads) * threads);
  p.block = ceil_div(streamed, p.blocks);
  const int64_t most = max<int64_t>(1, kPartial / (p.block * kTile));
  p.chunk = ceil_div(shared, ceil_div(shared, most));
  return p;
}

DEEM_INLINE int64_t span(const Product& p, bool a) { return a ? p.span_a : kCols; }
// Numbers of scratch memory: the shared operand, and of each thread a block and its tiles. Panels are made of whole blocks of kLanes numbers.
DEEM_INLINE int64_t shared_numbers(const Product& p) {
  return (p.share_a ? p.panels_a : p.panels_b) * span(p, p.share_a) * whole_lanes(p.k);
}
DEEM_INLINE int64_t shared_chunks(const Product& p) { return ceil_div(p.share_a ? p.panels_a : p.panels_b, p.chunk); }
DEEM_INLINE int64_t block_numbers(const Product& p) {
  return p.block * span(p, !p.share_a) * whole_lanes(shared_chunks(p) > 1 ? p.k : p.depth);
}
DEEM_INLINE int64_t own_numbers(const Product& p) { return block_numbers(p) + p.block * p.chunk * kTile; }

// Panels begin..end of the shared operand, in every run: run after run, panel after panel.
static void pack_shared(const Product& p, float* shared, int64_t begin, int64_t end) {
  const int64_t lines = p.share_a ? p.m : p.n, all = p.share_a ? p.panels_a : p.panels_b;
  const int64_t of_panel = p.share_a ? p.height : kCols, width = span(p, p.share_a);
  for (int64_t at = 0; at < p.k; at += p.depth) {
    const int64_t depth = min(p.depth, p.k - at), first = begin * of_panel, panel = whole_lanes(depth) * width;
    (p.share_a ? p.pack_a : p.pack_b)(p.share_a ? p.a : p.b, of_panel, first, min(lines, end * of_panel) - first,
                                      p.begin + at, depth, shared + at * all * width + begin * panel, panel);
  }
}

struct Run {
  int64_t depth;
  const float *a, *b;  // of the first panels
  int64_t row, col;    // panels of c where they belong
  bool first, last;
};

static void one_tile(const Product& p, const Run& r, int64_t i, int64_t j, float* partial) {
  const int64_t row = (r.row + i) * p.height, col = (r.col + j) * kCols;
  const int64_t rows = min(p.height, p.m - row), cols = min<int64_t>(kCols, p.n - col);
  const bool direct = r.last && p.c_dtype == DType::f32 && cols == kCols;
  char* c = p.c + (row * p.c_row_stride + col) * int64_t(size_of(p.c_dtype));
  const float* start = partial;
  int64_t start_stride = kCols;
  if (r.first && p.more) {
    const float* before = (const float*)c;
    for (int64_t y = 0; y < rows; y++)
      for (int64_t x = 0; x < kCols; x++) partial[y * kCols + x] = x < cols ? before[y * p.c_row_stride + x] : 0.0f;
  } else if (r.first) {
    start = p.bias ? p.bias + col : nullptr;
    start_stride = 0;
  }
  const int64_t room = whole_lanes(r.depth);
  p.tile(rows, cols)(r.depth, r.a + i * room * p.span_a, r.b + j * room * kCols, start, start_stride,
                     direct ? (float*)c : partial, direct ? p.c_row_stride : kCols);
  if (!r.last || direct) return;
  switch (p.c_dtype) {
    case DType::bf16: return round_rows<bf16>(partial, rows, cols, kCols, c, p.c_row_stride);
    case DType::f16: return round_rows<f16>(partial, rows, cols, kCols, c, p.c_row_stride);
    default: return round_rows<float>(partial, rows, cols, kCols, c, p.c_row_stride);
  }
}

// Lines of block `index` of the operand that is not shared: the first, and how many.
struct Lines {
  int64_t first, count;
};
DEEM_INLINE Lines lines_of(const Product& p, int64_t index) {
  const int64_t streamed = p.share_a ? p.panels_b : p.panels_a, of_panel = p.share_a ? kCols : p.height;
  const int64_t first = streamed * index / p.blocks * of_panel, end = streamed * (index + 1) / p.blocks * of_panel;
  return {first, min(p.share_a ? p.n : p.m, end) - first};
}

// Rows of memory that are packed next. They are asked for while tiles are multiplied, a few cache lines at a time: where weights come from
// memory, packing would wait for each of them. Machines before AVX512_BF16 win nothing by it, or lose some percent.
class Ahead {
 public:
  Ahead() = default;
  // Run `at` of block `index`.
  Ahead(const Product& p, int64_t index, int64_t at) {
    if constexpr (DEEM_ISA_INDEX < 3) return;
    const Layout& layout = p.share_a ? p.layout_b : p.layout_a;
    if (layout.along == Along::neither) return;
    const PackSource& s = p.share_a ? p.b : p.a;
    const Lines lines = lines_of(p, index);
    const int64_t depth = min(p.depth, p.k - at), from = p.begin + at;
    const bool by_line = layout.along == Along::line;
    rows_ = by_line ? lines.count : depth;
    bytes_ = (by_line ? depth : lines.count) * layout.size;
    stride_ = s.stride * layout.size;
    row_ =
        (const char*)s.data + (by_line ? lines.first : from) * stride_ + (by_line ? from : lines.first) * layout.size;
  }
  int64_t cache_lines() const { return rows_ * ceil_div(bytes_, kCacheLine); }
  DEEM_INLINE void ask(int64_t count) {
    for (; count > 0 && rows_ > 0; count--) {
      __builtin_prefetch(row_ + at_, 0, 2);  // into the second cache
      at_ += kCacheLine;
      if (at_ < bytes_) continue;
      at_ = 0, row_ += stride_, rows_--;
    }
  }

 private:
  const char* row_ = nullptr;
  int64_t rows_ = 0, bytes_ = 0, stride_ = 0, at_ = 0;
};

// Block `index` of the operand that is not shared, with all of the other.
static void multiply_block(const Product& p, const float* shared, int64_t index, float* own) {
  const int64_t all = p.share_a ? p.panels_a : p.panels_b, streamed = p.share_a ? p.panels_b : p.panels_a;
  const int64_t begin = streamed * index / p.blocks, count = streamed * (index + 1) / p.blocks - begin;
  const Lines lines = lines_of(p, index);
  const int64_t of_panel = p.share_a ? kCols : p.height;
  const int64_t width = span(p, !p.share_a), shared_width = span(p, p.share_a);
  const bool again = shared_chunks(p) > 1;
  float* partial = own + block_numbers(p);
  for (int64_t from = 0; from < all; from += p.chunk) {
    const int64_t others = min(p.chunk, all - from);
    int64_t at = 0;
    do {
      const int64_t depth = min(p.depth, p.k - at);
      float* block = own + (again ? at * p.block * width : 0);
      if (from == 0)
        (p.share_a ? p.pack_b : p.pack_a)(p.share_a ? p.b : p.a, of_panel, lines.first, lines.count, p.begin + at,
                                          depth, block, whole_lanes(depth) * width);
      const float* other = shared + (at * all + from * whole_lanes(depth)) * shared_width;
      const Run r{depth,
                  p.share_a ? other : block,
                  p.share_a ? block : other,
                  p.share_a ? from : begin,
                  p.share_a ? begin : from,
                  at == 0,
                  at + p.depth >= p.k};
      // What comes next: another run of this block, or the next one.
      Ahead ahead;
      if (!r.last && from == 0) ahead = Ahead(p, index, at + p.depth);
      else if (r.last && from + others == all && index + 1 < p.blocks) ahead = Ahead(p, index + 1, 0);
      const int64_t of_tile = ceil_div(ahead.cache_lines(), others * count);
      // A panel of the shared operand meets the whole block, which stays in cache.
      for (int64_t i = 0; i < others; i++)
        for (int64_t j = 0; j < count; j++) {
          ahead.ask(of_tile);
          one_tile(p, r, p.share_a ? i : j, p.share_a ? j : i, partial + (i * p.block + j) * kTile);
        }
      at += p.depth;
    } while (at < p.k);
  }
}

static void multiply(const Product& p, float* room, int64_t threads) {
  float *shared = room, *own = room + shared_numbers(p);
  const int64_t panels = p.share_a ? p.panels_a : p.panels_b, packs = min(panels, threads > 1 ? kPieces * threads : 1);
  parallel_phases(
      threads, packs, [&](int64_t i, int64_t) { pack_shared(p, shared, panels * i / packs, panels * (i + 1) / packs); },
      p.blocks, [&](int64_t i, int64_t thread) { multiply_block(p, shared, i, own + thread * own_numbers(p)); });
}

static void packed_gemm(const PackedGemmArgs& g) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return;
  const bool small = g.m * g.n * max<int64_t>(g.k, 1) * g.batch < 1 << 17;
  const int64_t threads = small ? 1 : num_threads(), teams = min(threads, g.batch), of_team = teams > 1 ? 1 : threads;
  Product p = plan(g, g.k, of_team);
  const int64_t parts = max<int64_t>(1, ceil_div(shared_numbers(p), kShared));
  const int64_t part = parts > 1 ? ceil_div(ceil_div(g.k, parts), kDepth) * kDepth : g.k;
  if (parts > 1) p = plan(g, part, of_team);
  dispatch_float(g.dtype, "matmul", [&]<class T>(T) {
    p.pack_a = pack_of<T>(g.rows);
    p.pack_b = pack_of<T>(g.columns);
  });
  if (reads_in_place(g)) p.pack_a = g.rows == RowsOf::lines ? point_at_lines<float> : point_at_patches<float>;
  // Scratch memory: bias, sums of parts that c cannot hold, and of each team its panels.
  const int64_t bias = g.bias ? p.panels_b * kCols : 0, need = shared_numbers(p) + of_team * own_numbers(p);
  const int64_t sums = parts > 1 && g.c_dtype != DType::f32 ? whole_lanes(g.m * g.n) : 0;
  const size_t bytes = scratch_size(size_t(bias + teams * (sums + need)) * sizeof(float));
  float* room = (float*)allocate_scratch(bytes);
  if (g.bias) {
    dispatch_float(g.dtype, "matmul", [&]<class T>(T) { convert_row((const T*)g.bias, g.n, room); });
    for (int64_t i = g.n; i < bias; i++) room[i] = 0.0f;
    p.bias = room;
  }
  const int64_t size = int64_t(size_of(g.dtype)), c_size = int64_t(size_of(g.c_dtype));
  parallel_items(teams, g.batch, [&](int64_t i, int64_t team) {
    float* mine = room + bias + team * (sums + need);
    Product item = p;
    item.a.data = (const char*)g.a.data + i * g.a.step * size;
    item.b.data = (const char*)g.b.data + i * g.b.step * size;
    item.c = (char*)g.c + i * g.c_step * c_size;
    if (parts == 1) return multiply(item, mine + sums, of_team);
    char* c = item.c;
    if (sums) item.c = (char*)mine, item.c_row_stride = g.n, item.c_dtype = DType::f32;
    for (; item.begin < g.k; item.begin += part, item.more = true) {
      item.k = min(part, g.k - item.begin);
      item.depth = min(p.depth, item.k);
      multiply(item, mine + sums, of_team);
    }
    if (!sums) return;
    dispatch_float(g.c_dtype, "matmul", [&]<class T>(T) {
      parallel_for(g.m, of_team > 1 ? g.n : 0, [&](int64_t from, int64_t to) {
        round_rows<T>(mine + from * g.n, to - from, g.n, g.n, c + from * g.c_row_stride * c_size, g.c_row_stride);
      });
    });
  });
  release(room, bytes);
}

static const Register r{packed_gemm_kernel, Device::cpu, packed_gemm};

}  // namespace deem::DEEM_ISA
