// The token of the greatest logit, of equals the lowest. The greatest is the same in any order, so no order is kept here.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int GREEDY_THREADS = 256;
// Logits that a block looks at: a vocabulary of 150,000 is 19 blocks for each row.
constexpr int GREEDY_PART = 8192;

// A token and its logit. Mirrored by the host.
struct Best {
    float logit;
    int token;  // negative where there is no greatest: a logit is no number or infinite, or all are minus infinity
};

__device__ inline Best better(Best one, Best other) {
    if (one.logit != other.logit) return one.logit > other.logit ? one : other;
    return one.token < other.token ? one : other;
}

__device__ inline Best best_of_warp(Best best) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(ALL_LANES, best.logit, apart);
        other.token = __shfl_xor_sync(ALL_LANES, best.token, apart);
        best = better(best, other);
    }
    return best;
}

// Above all tokens, so that any of the same logit is taken before it.
__device__ inline Best no_token_yet() { return {minus_infinity(), 0x7fffffff}; }

// The best of each part of a vocabulary: logits [rows, vocab] to bests [rows, parts].
//
// Grid: sampled rows, parts of GREEDY_PART tokens. Block: GREEDY_THREADS.
template <typename T>
__device__ void greedy_parts(const T* logits, Best* bests, const int* rows, int vocab) {
    __shared__ Best best_of_warps[GREEDY_THREADS / WARP];
    if (blockIdx.x >= unsigned(*rows)) return;
    const int begin = blockIdx.y * GREEDY_PART, end = vocab - begin < GREEDY_PART ? vocab : begin + GREEDY_PART;
    Best best = no_token_yet();
    for (int token = begin + threadIdx.x; token < end; token += GREEDY_THREADS) {
        const float logit = widen(logits[size_t(blockIdx.x) * vocab + token]);
        // What is no number is below nothing, and from here on above all.
        const bool number = logit < -minus_infinity();
        best = better(best, {number ? logit : -minus_infinity(), number ? token : -1});
    }
    best = best_of_warp(best);
    if (threadIdx.x % WARP == 0) best_of_warps[threadIdx.x / WARP] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < GREEDY_THREADS / WARP; ++warp) best = better(best, best_of_warps[warp]);
        bests[size_t(blockIdx.x) * gridDim.y + blockIdx.y] = best;
    }
}

// The best of all parts: tokens [rows].
//
// Grid: sampled rows. Block: one warp.
extern "C" __global__ void __launch_bounds__(WARP)
    greedy_pick(const Best* bests, int* tokens, const int* rows, int parts) {
    if (blockIdx.x >= unsigned(*rows)) return;
    Best best = no_token_yet();
    for (int part = threadIdx.x; part < parts; part += WARP) {
        best = better(best, bests[size_t(blockIdx.x) * parts + part]);
    }
    best = best_of_warp(best);
    if (threadIdx.x == 0) tokens[blockIdx.x] = best.logit == minus_infinity() ? -1 : best.token;
}

#define GREEDY_PARTS(name, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(GREEDY_THREADS)                                                \
        name(const T* logits, Best* bests, const int* rows, int vocab) {                                        \
        greedy_parts<T>(logits, bests, rows, vocab);                                                            \
    }
GREEDY_PARTS(greedy_parts_f32, float)
GREEDY_PARTS(greedy_parts_f16, __half)
GREEDY_PARTS(greedy_parts_bf16, __nv_bfloat16)
