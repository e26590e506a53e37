// The base's biases. What an adapter changes comes before a bias, so rows with one get theirs where its deltas are added (lora.cu).
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int BIAS_THREADS = 256;

// Whether a row goes through no adapter: all its parts are negative.
__device__ inline bool is_base(const int* slots, int parts) {
    for (int part = 0; part < parts; ++part) {
        if (slots[part] >= 0) return false;
    }
    return true;
}

// y [rows, width] += bias [width], in rows without any adapter; slots [rows, parts], or null where no row has one.
//
// Grid: rows, any number of blocks that share a row. Block: BIAS_THREADS.
extern "C" __global__ void __launch_bounds__(BIAS_THREADS)
    add_bias(float* y, const float* bias, const int* slots, int parts, const int* rows, int width) {
    if (blockIdx.x >= unsigned(*rows)) return;
    const size_t row = blockIdx.x;
    if (slots != nullptr && !is_base(slots + row * parts, parts)) return;
    for (int i = blockIdx.y * BIAS_THREADS + threadIdx.x; i < width; i += gridDim.y * BIAS_THREADS) {
        y[row * width + i] += bias[i];
    }
}
