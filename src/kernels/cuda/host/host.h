// Stands in for a device: what the kernels use of CUDA C++, so that a C++17 compiler takes their source unchanged.
//
// The threads of a block are fibers of one thread of the host, run one after the other between the points at which they wait for
// each other; see launch.cpp. What a launch computes is so the same each time, and the order in which threads are run is chosen: a
// result that depends on it lacks a barrier.
#ifndef CHORUS_HOST
#define CHORUS_HOST

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

using std::size_t;

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __grid_constant__
// One block runs at a time on a thread of the host.
#define __shared__ static thread_local

struct Place {
    unsigned x, y, z;
};
// Of the thread that runs.
inline thread_local Place threadIdx, blockIdx, blockDim, gridDim;

struct float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace host {

// Waits until every thread of the block has come to the barrier of this line.
void wait_for_block(int line);
// Waits until every lane of the warp has come to the barrier of this line.
void wait_for_warp(int line);
// Waits until every thread of the warp has come to the exchange of this line, and gives the bits that another lane brought.
uint32_t exchange(uint32_t bits, unsigned lanes, int apart, int line);

template <typename T>
T shuffle(unsigned lanes, T value, int apart, int line) {
    static_assert(sizeof(T) == 4, "a register");
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(bits, lanes, apart, line);
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace host

#define __syncthreads() host::wait_for_block(__LINE__)
#define __syncwarp() host::wait_for_warp(__LINE__)
#define __shfl_xor_sync(lanes, value, apart) host::shuffle(lanes, value, apart, __LINE__)

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// A product that no compiler fuses with a sum; here none is.
inline float __fmul_rn(float x, float y) { return x * y; }

inline float __int_as_float(int bits) { return float_of(uint32_t(bits)); }

// Four bytes of eight, y's above x's, by the four lowest halves of `which`.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
    const uint64_t both = uint64_t(y) << 32 | x;
    unsigned bytes = 0;
    for (unsigned i = 0; i < 4; ++i) bytes |= unsigned(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return bytes;
}

// 1 sign, 5 exponent and 10 fraction bits; the exponent is biased by 15, and by 127 in a float.
inline float __half2float(__half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, size = uint32_t(x.bits & 0x7fff) << 13;
    if ((x.bits & 0x7c00) == 0x7c00) return float_of(sign | 0x7f800000u | size);
    // Exact; makes subnormal numbers normal.
    return float_of(sign | bits_of(float_of(size) * 0x1p112f));
}

// To the nearest, ties to even.
inline __half __float2half_rn(float x) {
    const uint32_t sign = bits_of(x) >> 16 & 0x8000, size = bits_of(x) & 0x7fffffff;
    if (std::isnan(x)) return {0x7fff};
    // Halfway between the greatest number and what would be the next.
    if (size >= bits_of(65520.0f)) return {uint16_t(sign | 0x7c00)};
    // Subnormal: in units of the last place, which is that of a half; rounded by the sum.
    if (size < bits_of(0x1p-14f)) return {uint16_t(sign | (bits_of(float_of(size) + 0.5f) - bits_of(0.5f)))};
    // A fraction that is rounded up beyond its bits carries into the exponent.
    return {uint16_t(sign | ((size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13))};
}

// The upper half of a float.
inline float __bfloat162float(__nv_bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t bits = bits_of(x);
    if (std::isnan(x)) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

#endif
