// What all kernels share: 16-bit numbers in registers, tensor-core products, programmatic dependent
// launches, reductions, and the launch itself.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

#include "interface.h"

namespace lantern {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Two 16-bit numbers in a register, as two floats and back.
template <class T>
struct Pair;

template <>
struct Pair<__half> {
    static __device__ float2 unpack(uint32_t bits) {
        return __half22float2(*reinterpret_cast<__half2 *>(&bits));
    }
    static __device__ uint32_t pack(float x, float y) {
        __half2 pair = __floats2half2_rn(x, y);
        return *reinterpret_cast<uint32_t *>(&pair);
    }
};

template <>
struct Pair<__nv_bfloat16> {
    static __device__ float2 unpack(uint32_t bits) {
        return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
    }
    static __device__ uint32_t pack(float x, float y) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        return *reinterpret_cast<uint32_t *>(&pair);
    }
};

template <class T>
__device__ inline float to_float(T value) {
    return static_cast<float>(value);
}

template <class T>
__device__ inline T from_float(float value) {
    return static_cast<T>(value);
}

// Eight 16-bit numbers as floats.
template <class T>
__device__ inline void unpack8(const uint4 &bits, float (&out)[8]) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 pair = Pair<T>::unpack(words[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

template <class T>
__device__ inline uint4 pack8(const float (&in)[8]) {
    return make_uint4(Pair<T>::pack(in[0], in[1]), Pair<T>::pack(in[2], in[3]),
                      Pair<T>::pack(in[4], in[5]), Pair<T>::pack(in[6], in[7]));
}

// 16 bytes that are read once: weights and cached keys should not push out what is read again.
__device__ inline uint4 load_once(const void *from) {
    uint4 out;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(from));
    return out;
}

__device__ inline uint4 load16(const void *from) { return *reinterpret_cast<const uint4 *>(from); }

__device__ inline uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes to shared memory, in the background; zeros if not `valid`.
__device__ inline void copy16(uint32_t to, const void *from, bool valid = true) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}

__device__ inline void close_copies() { asm volatile("cp.async.commit_group;"); }

// Until at most PENDING groups of copies are still under way.
template <int PENDING>
__device__ inline void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// c (16 x 8) += a (16 x 16) . b (16 x 8), f32 sums.
__device__ inline void mma(__half, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void mma(__nv_bfloat16, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                           uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit numbers, a row of one at each lane's address.
__device__ inline void load_matrices(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

__device__ inline void load_matrices_transposed(uint32_t (&out)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
}

// Lets the next kernel of the stream start: it reads nothing that kernels write before it has waited.
__device__ inline void start_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until every kernel before this one is done and what it wrote can be read.
__device__ inline void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <int LANES = WARP>
__device__ inline float sum_lanes(float value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, step);
    }
    return value;
}

inline int ceil_div(int x, int y) { return (x + y - 1) / y; }

// Compute capability, major part, of the current device.
inline int device_major() {
    static thread_local int cached_device = -1, cached_major = 0;
    int device = 0;
    cudaGetDevice(&device);
    if (device != cached_device) {
        cudaDeviceGetAttribute(&cached_major, cudaDevAttrComputeCapabilityMajor, device);
        cached_device = device;
    }
    return cached_major;
}

// Launches a kernel that may start while the one before it still runs (see `wait_for_predecessors`), `cluster` blocks
// together.
template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), dim3 grid, int cluster, int threads, size_t shared_bytes,
                            cudaStream_t stream, Arguments... arguments) {
    // Beyond 48 KB, with what kernels declare, must be asked for.
    constexpr size_t MOST_DECLARED = 16 * 1024;
    if (shared_bytes > 48 * 1024 - MOST_DECLARED) {
        const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != cudaSuccess) {
            return error;
        }
    }
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = device_major() < 9 ? 0 : cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The same of single blocks.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
    return launch_clusters(kernel, grid, 1, threads, shared_bytes, stream, arguments...);
}

// Calls `run` with a null pointer of the type that `type` names.
template <class Run>
cudaError_t with_type(int type, Run run) {
    switch (type) {
        case LANTERN_F16:
            return run(static_cast<__half *>(nullptr));
        case LANTERN_BF16:
            return run(static_cast<__nv_bfloat16 *>(nullptr));
        default:
            return run(static_cast<float *>(nullptr));
    }
}

template <class Pointer>
using Pointee = typename std::remove_pointer<Pointer>::type;

}  // namespace lantern
