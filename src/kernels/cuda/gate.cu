// SwiGLU (Shazeer, arXiv 2002.05202): y = silu(gate) * up, with silu(x) = x / (1 + exp(-x)).
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int GATE_THREADS = 256;

// both [rows, 2 * width]: the gate of a row, then its up; y [rows, width].
//
// Grid: rows, any number of blocks that share a row. Block: GATE_THREADS.
template <typename T>
__device__ void silu_mul(const float* both, T* y, const int* rows, int width) {
    if (blockIdx.x >= unsigned(*rows)) return;
    const float* gates = both + size_t(blockIdx.x) * 2 * width;
    for (int i = blockIdx.y * GATE_THREADS + threadIdx.x; i < width; i += gridDim.y * GATE_THREADS) {
        const float gate = gates[i], up = gates[width + i];
        y[size_t(blockIdx.x) * width + i] = narrow<T>(gate / (1.0f + expf(-gate)) * up);
    }
}

#define SILU_MUL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(GATE_THREADS)                                                  \
        name(const float* both, T* y, const int* rows, int width) {                                             \
        silu_mul<T>(both, y, rows, width);                                                                      \
    }
SILU_MUL(silu_mul_f16, __half)
SILU_MUL(silu_mul_bf16, __nv_bfloat16)
