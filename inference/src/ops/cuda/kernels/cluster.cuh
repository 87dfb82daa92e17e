// Blocks of a cluster writing to each other's shared memory, each write counted by a barrier where it lands. (A barrier
// of the whole cluster would do, but its release waits for memory of the whole device.)
#pragma once

#include "common.cuh"

namespace lantern {

// So many blocks may form a cluster on every GPU that has clusters.
constexpr int CLUSTER = 8;

__device__ inline uint32_t cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// What is at `address` in this block's shared memory, in that of another.
__device__ inline uint32_t address_in(uint32_t rank, uint32_t address) {
    uint32_t there = address;
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
#endif
    return there;
}

// A barrier in shared memory that is passed once, when `bytes` have been written here by `send`.
__device__ inline void expect_bytes(uint32_t barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}

// After a thread's `expect_bytes`, by all threads; others may send once they have passed `await_cluster`.
__device__ inline void announce_barriers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ inline void await_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// To the block `rank`: what is at the address `to` here, counted by the barrier that is `barrier` here.
__device__ inline void send(uint32_t rank, uint32_t to, float value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     address_in(rank, to)),
                 "r"(__float_as_uint(value)), "r"(address_in(rank, barrier))
                 : "memory");
#endif
}

__device__ inline void send(uint32_t rank, uint32_t to, float2 value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                     address_in(rank, to)),
                 "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(address_in(rank, barrier))
                 : "memory");
#endif
}

__device__ inline void send(uint32_t rank, uint32_t to, float4 value, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     address_in(rank, to)),
                 "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(__float_as_uint(value.z)),
                 "r"(__float_as_uint(value.w)), "r"(address_in(rank, barrier))
                 : "memory");
#endif
}

__device__ inline void await_bytes(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    uint32_t passed = 0;
    while (!passed) {
        asm volatile(
            "{\n.reg .pred passed;\nmbarrier.try_wait.parity.shared::cta.b64 passed, [%1], 0;\n"
            "selp.u32 %0, 1, 0, passed;\n}"
            : "=r"(passed)
            : "r"(barrier)
            : "memory");
    }
#endif
}

}  // namespace lantern
