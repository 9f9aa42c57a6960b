// Bookkeeping of interleaved rows: where images start, who may see them, what is predicted. Plain integers, no gradients.
// B rows of L ids, I images in reading order, N the most images of a row.
#pragma once
#include <vector>

#include "core/tensor.h"

namespace deem {

struct SpecialTokens {
  int64_t bos, eos, pad, soi, image;
  int64_t slots;  // image tokens after each soi
};

// Every start-of-image token in reading order, checked against the counts and the documents' starts.
struct ImageStarts {
  int64_t rows, length;
  std::vector<int64_t> row, column;  // of the soi token, per image
  std::vector<int64_t> bos;          // column of its document's first token, per image
  std::vector<int64_t> counts;       // images per row
  int64_t most = 0;                  // N

  int64_t images() const { return int64_t(row.size()); }
};

// ids [B, L] i64; counts [B] i64 must match the soi tokens found, each followed by its slots; nearest_bos [I] i64, or none:
// contexts start at column 0 (inference). Throws ShapeError, ValueError or IndexError.
ImageStarts find_images(const Tensor& ids, const Tensor& counts, const MaybeTensor& nearest_bos,
                        const SpecialTokens& tokens);

// attention_mask must be i64 of the shape of the ids. Gives it contiguous.
Tensor checked_keep(const Tensor& keep, const Tensor& ids);

// [B, L, N] f32: 1 where a position may look at an image of its row: the image starts (one after its soi) at or before the
// position and after the nearest bos at or before it.
Tensor image_visibility(const Tensor& ids, const ImageStarts& starts, const SpecialTokens& tokens);

// [B, N] i64: which image is the n-th of a row; -1 where the row has fewer.
Tensor images_of_rows(const ImageStarts& starts);

// What the image decoder reads for each image: the states from its document's start to its soi, newest first.
struct Contexts {
  Tensor index;  // [I, T] i64: rows of the [B * L, C] states; -1 where the context is shorter than the longest
  Tensor keep;   // [I, T] i64: 1 on kept positions
};
Contexts image_contexts(const ImageStarts& starts);

// Which earlier images the image decoder sees. index [I, K] i64 into the images, -1 for none; mask [I, K] i64.
struct History {
  Tensor index, mask;
};
// official: only the image just before, if it lies in the same document (K = 1). all: every earlier one of the document.
History image_history(const ImageStarts& starts, bool all);

// Next-token labels [B, L - 1] i64 with -100 where no loss falls: padding, image slots, targets that are bos, a soi right
// after bos, the first prompt_offset[row] ids, and, with noimage_cond, text before its document's first image.
Tensor next_token_labels(const Tensor& ids, const Tensor& keep, const MaybeTensor& prompt_offset, bool noimage_cond,
                         const SpecialTokens& tokens);

}  // namespace deem
