#include "models/interleave.h"

#include <algorithm>

#include "ops.h"

namespace deem {

static void check_ids(const Tensor& ids) {
  check<ShapeError>(ids.ndim() == 2, "[deem] text_ids must be [rows, length] but has shape ", ids.shape());
  check<DTypeError>(ids.dtype() == DType::i64, "[deem] text_ids must be i64 but is ", ids.dtype());
}

static Tensor checked_vector(const char* name, const Tensor& t, int64_t n) {
  check<ShapeError>(t.shape() == Shape{n}, "[deem] ", name, " must be [", n, "] but has shape ", t.shape());
  check<DTypeError>(t.dtype() == DType::i64, "[deem] ", name, " must be i64 but is ", t.dtype());
  return contiguous(t);
}

Tensor checked_keep(const Tensor& keep, const Tensor& ids) {
  check<ShapeError>(keep.shape() == ids.shape(), "[deem] attention_mask must be ", ids.shape(), " but has shape ",
                    keep.shape());
  check<DTypeError>(keep.dtype() == DType::i64, "[deem] attention_mask must be i64 but is ", keep.dtype());
  return contiguous(keep);
}

ImageStarts find_images(const Tensor& ids_in, const Tensor& counts_in, const MaybeTensor& nearest_bos,
                        const SpecialTokens& tokens) {
  check_ids(ids_in);
  ImageStarts s{ids_in.size(0), ids_in.size(1), {}, {}, {}, {}};
  Tensor ids = contiguous(ids_in), counts = checked_vector("num_image_per_seq", counts_in, s.rows);
  auto id = ids.values<int64_t>();
  auto given = counts.values<int64_t>();
  for (int64_t b = 0; b < s.rows; b++) {
    int64_t before = s.images();
    const int64_t* row = id.data() + b * s.length;
    for (int64_t i = 0; i < s.length; i++) {
      check<ValueError>(row[i] != tokens.image, "[deem] row ", b, " has an image slot at column ", i,
                        " that follows no start-of-image token");
      if (row[i] != tokens.soi) continue;
      s.row.push_back(b), s.column.push_back(i);
      int64_t first = i + 1;
      while (i + 1 < s.length && row[i + 1] == tokens.image) i++;
      check<ValueError>(i + 1 - first == tokens.slots, "[deem] the start-of-image token at column ", first - 1,
                        " of row ", b, " must be followed by ", tokens.slots, " image slots but ", i + 1 - first,
                        " follow");
    }
    s.counts.push_back(s.images() - before);
    check<ValueError>(s.counts.back() == given[b], "[deem] row ", b, " has ", s.counts.back(),
                      " start-of-image tokens but num_image_per_seq says ", given[b]);
    s.most = std::max(s.most, s.counts.back());
  }
  s.bos.assign(s.row.size(), 0);
  if (nearest_bos) {
    Tensor columns = checked_vector("nearest_bos_idxs", *nearest_bos, s.images());
    auto bos = columns.values<int64_t>();
    for (int64_t i = 0; i < s.images(); i++) {
      check<IndexError>(bos[i] >= 0 && bos[i] <= s.column[i], "[deem] nearest_bos_idxs[", i, "] is ", bos[i],
                        " but the image starts at column ", s.column[i]);
      s.bos[i] = bos[i];
    }
  }
  return s;
}

Tensor image_visibility(const Tensor& ids_in, const ImageStarts& s, const SpecialTokens& tokens) {
  Tensor mask = Tensor::zeros({s.rows, s.length, s.most}), ids = contiguous(ids_in);
  auto id = ids.values<int64_t>();
  float* m = mask.data<float>();
  size_t first = 0;
  for (int64_t b = 0; b < s.rows; b++) {
    int64_t bos = -1;
    for (int64_t i = 0; i < s.length; i++) {
      if (id[b * s.length + i] == tokens.bos) bos = i;
      for (int64_t n = 0; n < s.counts[b]; n++) {
        int64_t start = s.column[first + n] + 1;
        if (start > bos && i >= start) m[(b * s.length + i) * s.most + n] = 1;
      }
    }
    first += s.counts[b];
  }
  return mask;
}

Tensor images_of_rows(const ImageStarts& s) {
  Tensor index = Tensor::full({s.rows, s.most}, -1, DType::i64);
  int64_t* p = index.data<int64_t>();
  int64_t image = 0;
  for (int64_t b = 0; b < s.rows; b++)
    for (int64_t n = 0; n < s.counts[b]; n++) p[b * s.most + n] = image++;
  return index;
}

Contexts image_contexts(const ImageStarts& s) {
  int64_t longest = 0;
  for (int64_t i = 0; i < s.images(); i++) longest = std::max(longest, s.column[i] - s.bos[i] + 1);
  Contexts c{Tensor::full({s.images(), longest}, -1, DType::i64), Tensor::zeros({s.images(), longest}, DType::i64)};
  for (int64_t i = 0; i < s.images(); i++)
    for (int64_t t = 0; t <= s.column[i] - s.bos[i]; t++) {
      c.index.data<int64_t>()[i * longest + t] = s.row[i] * s.length + s.column[i] - t;
      c.keep.data<int64_t>()[i * longest + t] = 1;
    }
  return c;
}

History image_history(const ImageStarts& s, bool all) {
  // Earlier images of the same document, nearest last.
  std::vector<std::vector<int64_t>> seen(s.row.size());
  int64_t most = 1;
  for (int64_t i = 1; i < s.images(); i++) {
    int64_t start = s.row[i] * s.length + s.bos[i];
    for (int64_t j = i - 1; j >= 0 && (all || j == i - 1); j--) {
      if (start > s.row[j] * s.length + s.column[j]) break;
      seen[i].insert(seen[i].begin(), j);
    }
    most = std::max(most, int64_t(seen[i].size()));
  }
  History h{Tensor::full({s.images(), most}, -1, DType::i64), Tensor::zeros({s.images(), most}, DType::i64)};
  for (int64_t i = 0; i < s.images(); i++)
    for (size_t k = 0; k < seen[i].size(); k++) {
      h.index.data<int64_t>()[i * most + int64_t(k)] = seen[i][k];
      h.mask.data<int64_t>()[i * most + int64_t(k)] = 1;
    }
  return h;
}

Tensor next_token_labels(const Tensor& ids_in, const Tensor& keep_in, const MaybeTensor& prompt_offset,
                         bool noimage_cond, const SpecialTokens& tokens) {
  check_ids(ids_in);
  Tensor ids = contiguous(ids_in), keep = checked_keep(keep_in, ids), offsets;
  int64_t rows = ids.size(0), length = ids.size(1);
  check<ShapeError>(length >= 1, "[deem] rows need at least one id");
  if (prompt_offset) offsets = checked_vector("prompt_offset", *prompt_offset, rows);
  Tensor labels = Tensor::full({rows, length - 1}, -100, DType::i64);
  for (int64_t b = 0; b < rows; b++) {
    const int64_t *id = ids.data<int64_t>() + b * length, *kept = keep.data<int64_t>() + b * length;
    int64_t* out = labels.data<int64_t>() + b * (length - 1);
    int64_t offset = offsets ? offsets.data<int64_t>()[b] : 0;
    check<ValueError>(offset >= 0, "[deem] prompt_offset[", b, "] must not be negative but is ", offset);
    int64_t bos = 0, soi = -1;  // latest seen up to the target
    for (int64_t i = 0; i < length; i++) {
      if (id[i] == tokens.bos) bos = i;
      if (id[i] == tokens.soi) soi = i;
      if (i == 0 || i < offset) continue;
      bool drop = id[i] == tokens.pad || id[i] == tokens.image || id[i] == tokens.bos || kept[i] == 0 ||
                  (id[i - 1] == tokens.bos && id[i] == tokens.soi) || (noimage_cond && (soi == -1 || soi < bos));
      if (!drop) out[i - 1] = id[i];
    }
  }
  return labels;
}

}  // namespace deem
