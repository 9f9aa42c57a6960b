// The functions of cuda/ptx.cuh on the host.
#pragma once
#include "cuda/emu/emu.h"

namespace deem::emu {

// Inputs of one lane: registers of a, b and d.
struct MmaIn {
  uint32_t a[4], b[2], d[4];
};
void mma_bf16_op(const Lanes& lanes, uint32_t mask);
void mma_f16_op(const Lanes& lanes, uint32_t mask);

struct Row {
  uint32_t words[4];
};
template <bool TRANS>
void ldmatrix_op(const Lanes& lanes, uint32_t mask);
extern template void ldmatrix_op<false>(const Lanes&, uint32_t);
extern template void ldmatrix_op<true>(const Lanes&, uint32_t);

// A copy in flight of this thread. Its bytes are read when it is issued, by the caller, and written when it is waited for.
struct Copy {
  void* to;
  int bytes;
  alignas(16) unsigned char data[16];
};
void begin_copy(void* to, const void* data, int bytes);
void commit_copies();
bool next_arrived(int left, Copy& copy);  // false: none beyond the latest `left` groups
void check_shared(const void* p, int bytes, const char* what);
int lane_id();

template <int BYTES>
struct alignas(BYTES) Chunk {
  unsigned char bytes[BYTES];
};

}  // namespace deem::emu

namespace deem::cuda {

inline void mma(emu::WarpOp op, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::MmaIn in;
  for (int i = 0; i < 4; i++) in.a[i] = a[i], in.d[i] = std::bit_cast<uint32_t>(d[i]);
  for (int i = 0; i < 2; i++) in.b[i] = b[i];
  emu::collective(~0u, op, &in, &d, false, emu::Where());
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma(emu::mma_bf16_op, d, a, b); }
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma(emu::mma_f16_op, d, a, b); }

// Each lane reads its own row, so that a sanitizer sees who reads what; then the rows are exchanged.
template <bool TRANS>
void ldmatrix(uint32_t (&r)[4], const void* shared_row) {
  emu::check_shared(shared_row, 16, "ldmatrix");
  const auto* words = static_cast<const uint32_t*>(shared_row);
  emu::Row row;
  for (int i = 0; i < 4; i++) row.words[i] = words[i];
  emu::collective(~0u, emu::ldmatrix_op<TRANS>, &row, &r, false, emu::Where());
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) { ldmatrix<false>(r, shared_row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) { ldmatrix<true>(r, shared_row); }

template <int BYTES>
void cp_async(void* shared, const void* global, bool valid) {
  emu::check_shared(shared, BYTES, "cp.async");
  if (reinterpret_cast<uintptr_t>(global) % BYTES) emu::fault("cp.async from an address not aligned to its size");
  using Chunk = emu::Chunk<BYTES>;
  Chunk data{}, none;
  if (valid) data = *static_cast<const Chunk*>(global);
  for (auto& byte : none.bytes) byte = 0xff;
  *static_cast<Chunk*>(shared) = none;  // until the copy is waited for, whoever reads gets NaN
  emu::begin_copy(shared, &data, BYTES);
}
inline void cp_async_16(void* shared, const void* global, bool valid) { cp_async<16>(shared, global, valid); }
inline void cp_async_8(void* shared, const void* global, bool valid) { cp_async<8>(shared, global, valid); }
inline void cp_async_4(void* shared, const void* global, bool valid) { cp_async<4>(shared, global, valid); }
inline void cp_async_commit() { emu::commit_copies(); }
template <int BYTES>
void land(const emu::Copy& copy) {
  emu::Chunk<BYTES> data;
  for (int i = 0; i < BYTES; i++) data.bytes[i] = copy.data[i];
  *static_cast<emu::Chunk<BYTES>*>(copy.to) = data;
}
template <int N>
void cp_async_wait() {
  for (emu::Copy copy; emu::next_arrived(N, copy);) {
    if (copy.bytes == 16) land<16>(copy);
    if (copy.bytes == 8) land<8>(copy);
    if (copy.bytes == 4) land<4>(copy);
  }
}

inline float exp2_approx(float v) { return std::exp2(v); }

}  // namespace deem::cuda
