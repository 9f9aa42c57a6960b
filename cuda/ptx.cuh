// Every instruction that CUDA C++ has no name for, one function each; no other file holds asm. The emulator has the same
// functions (cuda/emu/ptx.h). All lanes of a warp must call the matrix instructions together.
//
// Fragments of lane l, with g = l / 4 and t = l % 4 (PTX ISA, "Matrix Fragments for mma"):
//   16-bit m16n8k16: a0 = (row g, columns 2t, 2t+1)  a1 = row g+8  a2, a3 = columns + 8;  b0 = (rows 2t, 2t+1, column g)
//   b1 = rows + 8;  d0, d1 = (row g, columns 2t, 2t+1)  d2, d3 = row g+8. The element with the lower index is in the low half.
#pragma once
#include "cuda/device.cuh"

#ifndef __CUDACC__
#include "cuda/emu/ptx.h"
#else
namespace deem::cuda {

// d += a * b
DEEM_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEEM_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEEM_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 8x8 matrices of 16-bit elements: lane 8i + j gives the address of row j of matrix i (16 bytes, aligned to 16), and gets of
// matrix i the elements (l / 4, 2 (l % 4)) and the next one, in r[i]; of the transposed matrix with _trans.
DEEM_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
DEEM_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
// Copies to shared memory that run until cp_async_wait; both addresses aligned to the size. Where !valid zeros are written and
// `global` is not read. Other threads see the bytes after a barrier that follows the wait.
DEEM_DEVICE void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
DEEM_DEVICE void cp_async_8(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 8 : 0)
               : "memory");
}
DEEM_DEVICE void cp_async_4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}
DEEM_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's latest committed groups still run.
template <int N>
DEEM_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^v with a relative error of about 2^-22; subnormals count as zero.
DEEM_DEVICE float exp2_approx(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

}  // namespace deem::cuda
#endif
