// What all kernels share: element types, loads of sixteen bytes, sums over a warp.
//
// A row is one token of a step. A kernel's grid has room for as many rows as its captured graph serves; how many there are
// is read from device memory (`rows`, one int), and blocks beyond them end at once. Nothing is allocated, and no sum is made by
// atomics: for each output the order of its sum depends on shapes and the adapter alone, never on how many rows there are or on
// which row of the step it is. Where the order of rounding matters, products and sums are spelled as `fmaf`, so that no
// compiler chooses which of them to fuse.
//
// What products take, keys and values are 16 bits wide in memory, `__half` or `__nv_bfloat16`; the residual stream and what products
// give are `float`, as all is in registers and sums. All is row-major.
//
// The files are compiled one by one, or together, one after the other: those after this one include it only where it is not
// there yet.
#ifndef CHORUS_NUMBERS
#define CHORUS_NUMBERS

#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Below every score and logit that is a number. (Neither INFINITY nor what it is made of is known to NVRTC.)
__device__ inline float minus_infinity() { return __int_as_float(int(0xff800000u)); }

__device__ inline float widen(signed char x) { return float(x); }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to the nearest, ties to even.
template <typename T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
    return x;
}
template <>
__device__ inline __half narrow<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// What so many bytes are loaded as.
template <int BYTES>
struct Word {
    using Type = uint4;  // the widest load there is
};
template <>
struct Word<8> {
    using Type = unsigned long long;
};
template <>
struct Word<4> {
    using Type = unsigned;
};
template <>
struct Word<2> {
    using Type = unsigned short;
};

// Numbers by as few loads as there can be; `from` is a multiple of their bytes, or of sixteen where they are more.
template <typename T, int COUNT>
__device__ inline void load(const T* from, float (&to)[COUNT]) {
    using Load = typename Word<COUNT * sizeof(T)>::Type;
    constexpr int LOADS = COUNT * sizeof(T) / sizeof(Load);
    static_assert(LOADS * sizeof(Load) == COUNT * sizeof(T), "whole loads");
    alignas(16) T numbers[COUNT];
    for (int i = 0; i < LOADS; ++i) {
        reinterpret_cast<Load*>(numbers)[i] = reinterpret_cast<const Load*>(from)[i];
    }
    for (int i = 0; i < COUNT; ++i) to[i] = widen(numbers[i]);
}

template <typename T>
__device__ inline void load_eight(const T* from, float (&to)[8]) {
    load(from, to);
}

template <typename T>
__device__ inline void load_two(const T* from, float (&to)[2]) {
    load(from, to);
}

// The sum over the lanes of a warp, the same bits in each of them: lanes that add each other's sums add the same two numbers.
__device__ inline float warp_sum(float x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

// The greatest over the lanes of a warp; what is no number is passed over.
__device__ inline float warp_max(float x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

#endif
