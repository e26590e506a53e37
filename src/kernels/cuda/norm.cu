// RMSNorm (Zhang and Sennrich, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * gain.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int NORM_THREADS = 256;

// x, y [rows, hidden], gain [hidden]; y may be x.
//
// Grid: rows. Block: NORM_THREADS. A thread sums every 256th square, a warp its threads, and all threads the warps' sums in
// their order.
template <typename T>
__device__ void rms_norm(const T* x, const T* gain, T* y, const int* rows, int hidden, float eps) {
    __shared__ float squares_of_warps[NORM_THREADS / WARP];
    if (blockIdx.x >= unsigned(*rows)) return;
    const size_t row = size_t(blockIdx.x) * hidden;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < hidden; i += NORM_THREADS) {
        const float value = widen(x[row + i]);
        squares = fmaf(value, value, squares);
    }
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0) squares_of_warps[threadIdx.x / WARP] = squares;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < NORM_THREADS / WARP; ++warp) sum += squares_of_warps[warp];
    // Not rsqrtf, whose last places are not those of the CPU.
    const float scale = 1.0f / sqrtf(sum / float(hidden) + eps);
    for (int i = threadIdx.x; i < hidden; i += NORM_THREADS) {
        y[row + i] = narrow<T>(widen(x[row + i]) * scale * widen(gain[i]));
    }
}

#define RMS_NORM(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                  \
        name(const T* x, const T* gain, T* y, const int* rows, int hidden, float eps) {                         \
        rms_norm<T>(x, gain, y, rows, hidden, eps);                                                             \
    }
RMS_NORM(rms_norm_f16, __half)
RMS_NORM(rms_norm_bf16, __nv_bfloat16)
