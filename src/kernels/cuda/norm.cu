// The residual stream, and its RMSNorm (Zhang and Sennrich, arXiv 1910.07467): n = x / sqrt(mean(x^2) + eps) * gain.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int NORM_THREADS = 256;

// x, the residual stream, and y, what the last product adds to it, [rows, hidden]: x += y, or where y is null x stays. Then
// n [blocks, hidden] is the norm of x. Block i takes row from[i], or row i where `from` is null (of a step's last norm few rows
// are wanted). No two blocks take the same row.
//
// gain [hidden] is the base's. Where `gains` is not null, an adapter may have its own: gains[slot * norms], or null. A row's
// slot is slots[row * parts]: norms are no part of a mix. Negative is no adapter. `slots` may be null where `gains` is.
//
// Grid: rows. Block: NORM_THREADS. A thread sums every 256th square, a warp its threads, and all threads the warps' sums in
// their order.
template <typename T>
__device__ void rms_norm(float* x, const float* y, const float* gain, const float* const* gains, int norms, const int* slots,
                         int parts, const int* from, T* n, const int* rows, int hidden, float eps) {
    __shared__ float squares_of_warps[NORM_THREADS / WARP];
    if (blockIdx.x >= unsigned(*rows)) return;
    const size_t row = from == nullptr ? int(blockIdx.x) : from[blockIdx.x];
    float* own = x + row * hidden;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < hidden; i += NORM_THREADS) {
        float value = own[i];
        if (y != nullptr) {
            value += y[row * hidden + i];
            own[i] = value;
        }
        squares = fmaf(value, value, squares);
    }
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0) squares_of_warps[threadIdx.x / WARP] = squares;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < NORM_THREADS / WARP; ++warp) sum += squares_of_warps[warp];
    // Not rsqrtf, whose last places are not those of the CPU.
    const float scale = 1.0f / sqrtf(sum / float(hidden) + eps);
    if (gains != nullptr) {
        const int slot = slots[row * parts];
        const float* adapters = slot < 0 ? nullptr : gains[size_t(slot) * norms];
        if (adapters != nullptr) gain = adapters;
    }
    for (int i = threadIdx.x; i < hidden; i += NORM_THREADS) {
        n[size_t(blockIdx.x) * hidden + i] = narrow<T>(own[i] * scale * gain[i]);
    }
}

#define RMS_NORM(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS)                                                  \
        name(float* x, const float* y, const float* gain, const float* const* gains, int norms,                 \
             const int* slots, int parts, const int* from, T* n, const int* rows, int hidden, float eps) {      \
        rms_norm<T>(x, y, gain, gains, norms, slots, parts, from, n, rows, hidden, eps);                        \
    }
RMS_NORM(rms_norm_f16, __half)
RMS_NORM(rms_norm_bf16, __nv_bfloat16)
// For pooling.
RMS_NORM(rms_norm_f32, float)
