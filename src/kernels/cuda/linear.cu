// Products with the base's weights, x W^T, on tensor cores.
//
// Weights are read as the panels of the CPU (src/kernels/panels), byte for byte: a base of 4-bit codes takes 4 bits of the device's
// memory and of its bandwidth. A panel has 32 outputs, its columns, side by side, and its inputs in groups of 32. The warps of a
// block share one panel's groups in turn: a warp widens a group to T in shared memory, as scale * code + offset in `float` and then
// rounded, multiplies a tile of rows by it, and last of all the warps' sums are added in the warps' order.
//
// The order of an output's sum is so that of its shape: the same in tiles of 16 and of 64 rows, in any place of a tile and
// beside any neighbours. That takes tensor cores which treat all rows of a product alike, and they do.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif
#include <mma.h>

constexpr int LINEAR_THREADS = 256;
constexpr int LINEAR_WARPS = LINEAR_THREADS / WARP;
// Outputs of a panel.
constexpr int COLUMNS = 32;
// Inputs that a warp widens at a time.
constexpr int GROUP = 32;
// Groups of a super-block.
constexpr int SUPER = 8;
// Rows, columns and inputs of one product of a tensor core.
constexpr int FRAGMENT = 16;
// From one line of shared memory to the next, in T or in float: eight more than there are, so that what lanes store and load
// side by side is in banks of its own.
constexpr int APART = 40;
// Maps that share an input, at most: q, k, v.
constexpr int MAX_MAPS = 3;

// Maps of one encoding that share an input. Mirrored by the host.
struct LinearMaps {
    const unsigned char* panels[MAX_MAPS];  // W [outputs, inputs], panel after panel; at a multiple of 64 bytes
    int outputs[MAX_MAPS];                  // how many there are; 0 is no map
    int places[MAX_MAPS];                   // where they begin in a row of y
    int panel_bytes;                        // of one panel, a multiple of 64
};
static_assert(sizeof(LinearMaps) == 56, "as the host has them");

// Weights are `scale * code + offset`, in one rounding: exactly the file's arithmetic.
struct Line {
    float scale, offset;
};

// A half-precision number of a column.
__device__ inline __half half_of(const unsigned char* halves, int column) {
    return reinterpret_cast<const __half*>(halves)[column];
}

// A half-precision scale; offset = -scale * zero. (Q4_0, Q5_0, Q8_0)
struct Symmetric {
    static constexpr int GROUPS = 1, HEAD = 0, BYTES = 2 * COLUMNS;
    __half scale;
    __device__ void read(const unsigned char*, const unsigned char* scales, int column) {
        scale = half_of(scales, column);
    }
    __device__ Line line(int, float zero) const { return {widen(scale), widen(scale) * -zero}; }
};

// A half-precision scale and minimum. (Q4_1, Q5_1)
struct Affine {
    static constexpr int GROUPS = 1, HEAD = 0, BYTES = 4 * COLUMNS;
    __half scale, minimum;
    __device__ void read(const unsigned char*, const unsigned char* scales, int column) {
        scale = half_of(scales, column);
        minimum = half_of(scales + 2 * COLUMNS, column);
    }
    __device__ Line line(int, float) const { return {widen(scale), widen(minimum)}; }
};

// Byte scale and minimum of each group, times halves of the super-block. (Q4_K, Q5_K)
struct Super {
    static constexpr int GROUPS = SUPER, HEAD = 4 * COLUMNS, BYTES = 2 * COLUMNS;
    __half scale, minimum;
    unsigned char scales, minima;
    __device__ void read(const unsigned char* head, const unsigned char* own, int column) {
        scale = half_of(head, column);
        minimum = half_of(head + 2 * COLUMNS, column);
        scales = own[column];
        minima = own[COLUMNS + column];
    }
    __device__ Line line(int, float) const {
        return {widen(scale) * float(scales), -(widen(minimum) * float(minima))};
    }
};

// Signed byte scale of each 16 inputs, times a half of the super-block. (Q6_K)
struct Super16 {
    static constexpr int GROUPS = SUPER, HEAD = 2 * COLUMNS, BYTES = 2 * COLUMNS;
    __half scale;
    signed char scales[2];
    __device__ void read(const unsigned char* head, const unsigned char* own, int column) {
        scale = half_of(head, column);
        for (int run = 0; run < 2; ++run) scales[run] = static_cast<signed char>(own[run * COLUMNS + column]);
    }
    __device__ Line line(int run, float zero) const {
        const float both = widen(scale) * float(scales[run]);
        return {both, both * -zero};
    }
};

// Codes of a column are read as words. Inputs 4 * quad to 4 * quad + 3 come in bytes 0, 2, 1 and 3 of one.
//
// A plane of nibbles, eight in a word, and so many planes of single bits, all 32 in one.
template <int PLANES>
struct Nibbles {
    static constexpr int WORDS = 4 + PLANES;
    static constexpr float ZERO = 8 << PLANES;  // the code that means 0 where the scale is symmetric
    unsigned words[WORDS];
    __device__ unsigned quad(int quad) const {
        unsigned codes = words[quad / 2] >> (quad % 2 * 4) & 0x0f0f0f0fu;
        for (int plane = 0; plane < PLANES; ++plane) {
            codes |= (words[4 + plane] >> quad & 0x01010101u) << (4 + plane);
        }
        return codes;
    }
};

// Whole bytes.
struct Bytes {
    static constexpr int WORDS = 8;
    static constexpr float ZERO = 128.0f;
    unsigned words[WORDS];
    __device__ unsigned quad(int quad) const { return words[quad]; }
};

// Code `i` of a quad. Put below the exponent of 2^23 it is that much more than 2^23: cheaper than a conversion, and as exact.
__device__ inline float code_of(unsigned quad, int i) {
    const int byte = i % 2 * 2 + i / 2;
    return __int_as_float(int(__byte_perm(quad, 0x4b000000u, 0x7440u + byte))) - 8388608.0f;
}

// A group of codes, as one lane has it: a column.
template <typename Scales, typename Codes>
struct Coded {
    // How it lies in shared memory.
    using Order = nvcuda::wmma::col_major;
    static constexpr int BYTES = Scales::BYTES + Codes::WORDS * COLUMNS * 4;
    Scales scales;
    Codes codes;

    __device__ void read(const unsigned char* panel, int group, int lane) {
        const unsigned char* head = panel + size_t(group / Scales::GROUPS) * (Scales::HEAD + Scales::GROUPS * BYTES);
        const unsigned char* own = head + Scales::HEAD + group % Scales::GROUPS * BYTES;
        scales.read(head, own, lane);
        for (int i = 0; i < Codes::WORDS; ++i) {
            codes.words[i] = reinterpret_cast<const unsigned*>(own + Scales::BYTES)[i * COLUMNS + lane];
        }
    }

    template <typename T>
    __device__ void widen_to(T (&lines)[GROUP][APART], int lane) const {
        for (int octet = 0; octet < GROUP / 8; ++octet) {
            const Line line = scales.line(octet / 2, Codes::ZERO);
            alignas(16) T eight[8];
            for (int i = 0; i < 8; ++i) {
                const float code = code_of(codes.quad(octet * 2 + i / 4), i % 4);
                eight[i] = narrow<T>(fmaf(line.scale, code, line.offset));
            }
            *reinterpret_cast<uint4*>(&lines[lane][octet * 8]) = *reinterpret_cast<const uint4*>(eight);
        }
    }
};

// A number as a T; one that is a T stays as it is.
template <typename T>
struct As {
    template <typename D>
    static __device__ T of(D x) {
        return narrow<T>(widen(x));
    }
    static __device__ T of(T x) { return x; }
};

// A group of numbers: 32 inputs of 32 columns, of which a lane has every 32nd piece of sixteen bytes.
template <typename D>
struct Dense {
    using Order = nvcuda::wmma::row_major;
    static constexpr int IN_PIECE = 16 / sizeof(D), PIECES = 2 * sizeof(D);
    uint4 pieces[PIECES];

    __device__ void read(const unsigned char* panel, int group, int lane) {
        const uint4* own = reinterpret_cast<const uint4*>(panel + size_t(group) * GROUP * COLUMNS * sizeof(D));
        for (int i = 0; i < PIECES; ++i) pieces[i] = own[i * WARP + lane];
    }

    template <typename T>
    __device__ void widen_to(T (&lines)[GROUP][APART], int lane) const {
        for (int i = 0; i < PIECES; ++i) {
            alignas(16) D from[IN_PIECE];
            alignas(16) T to[IN_PIECE];
            *reinterpret_cast<uint4*>(from) = pieces[i];
            for (int j = 0; j < IN_PIECE; ++j) to[j] = As<T>::of(from[j]);
            const int first = (i * WARP + lane) * IN_PIECE;
            T* line = &lines[first / COLUMNS][first % COLUMNS];
            for (int j = 0; j < IN_PIECE; j += 4) {
                *reinterpret_cast<uint2*>(line + j) = *reinterpret_cast<const uint2*>(to + j);
            }
        }
    }
};

template <typename T>
using Inputs = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, FRAGMENT, FRAGMENT, FRAGMENT, T, nvcuda::wmma::row_major>;
template <typename T, typename Order>
using Widened = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, FRAGMENT, FRAGMENT, FRAGMENT, T, Order>;
using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, FRAGMENT, FRAGMENT, FRAGMENT, float>;

// Inputs `k` to `k + 15` and columns `column` to `column + 15` of a group.
template <typename T>
__device__ inline void load_widened(Widened<T, nvcuda::wmma::col_major>& to, const T (&lines)[GROUP][APART], int k, int column) {
    nvcuda::wmma::load_matrix_sync(to, &lines[column][k], APART);
}
template <typename T>
__device__ inline void load_widened(Widened<T, nvcuda::wmma::row_major>& to, const T (&lines)[GROUP][APART], int k, int column) {
    nvcuda::wmma::load_matrix_sync(to, &lines[k][column], APART);
}

// The shared memory of a block: first each warp's widened weights, then its sums.
template <typename T>
union alignas(32) LinearRoom {
    T weights[LINEAR_WARPS][GROUP][APART];
    float sums[LINEAR_WARPS][FRAGMENT][APART];
};

// y[row, place + output] = x[row] . W[output] for each map.
//
// x [rows, inputs] at a multiple of 32 bytes, with room up to the next multiple of 16 rows: what is there is read, and used for
// nothing. inputs is a multiple of GROUP, of SUPER * GROUP where weights have super-blocks. y [rows, width].
//
// Grid: panels of the widest map, tiles of 16 * TILES rows, maps. Block: LINEAR_THREADS. Warp w takes groups w, w + 8 and so on,
// and reads AHEAD of them before it needs them.
template <typename T, typename Weights, int TILES, int AHEAD>
__device__ void linear(const T* x, const LinearMaps& maps, float* y, const int* rows, int inputs, int width) {
    __shared__ LinearRoom<T> room;
    const int first = blockIdx.y * TILES * FRAGMENT, left = *rows - first;
    const int output = blockIdx.x * COLUMNS, outputs = maps.outputs[blockIdx.z];
    if (left <= 0 || output >= outputs) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, groups = inputs / GROUP;
    const unsigned char* panel = maps.panels[blockIdx.z] + size_t(blockIdx.x) * maps.panel_bytes;
    const T* own = x + size_t(first) * inputs;

    Sums sums[TILES][2];
    for (int tile = 0; tile < TILES; ++tile) {
        for (int side = 0; side < 2; ++side) nvcuda::wmma::fill_fragment(sums[tile][side], 0.0f);
    }
    // Unrolled, so that they are registers.
    Weights ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
        const int group = warp + i * LINEAR_WARPS;
        if (group < groups) ahead[i].read(panel, group, lane);
    }
    for (int begin = warp; begin < groups; begin += AHEAD * LINEAR_WARPS) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const int group = begin + i * LINEAR_WARPS, next = group + AHEAD * LINEAR_WARPS;
            if (group >= groups) break;
            // Those of the first rows are on their way while weights are widened.
            Inputs<T> inputs_of_first[2];
            for (int k = 0; k < 2; ++k) {
                nvcuda::wmma::load_matrix_sync(inputs_of_first[k], own + group * GROUP + k * FRAGMENT, inputs);
            }
            ahead[i].widen_to(room.weights[warp], lane);
            if (next < groups) ahead[i].read(panel, next, lane);
            __syncwarp();
            for (int k = 0; k < 2; ++k) {
                Widened<T, typename Weights::Order> widened[2];
                load_widened(widened[0], room.weights[warp], k * FRAGMENT, 0);
                load_widened(widened[1], room.weights[warp], k * FRAGMENT, FRAGMENT);
                for (int side = 0; side < 2; ++side) {
                    nvcuda::wmma::mma_sync(sums[0][side], inputs_of_first[k], widened[side], sums[0][side]);
                }
                for (int tile = 1; tile < TILES; ++tile) {
                    if (tile * FRAGMENT >= left) break;
                    Inputs<T> inputs_of_tile;
                    const T* from = own + size_t(tile) * FRAGMENT * inputs + group * GROUP + k * FRAGMENT;
                    nvcuda::wmma::load_matrix_sync(inputs_of_tile, from, inputs);
                    for (int side = 0; side < 2; ++side) {
                        nvcuda::wmma::mma_sync(sums[tile][side], inputs_of_tile, widened[side], sums[tile][side]);
                    }
                }
            }
            // The next weights are widened to where these are.
            __syncwarp();
        }
    }

    for (int tile = 0; tile < TILES; ++tile) {
        if (tile * FRAGMENT >= left) break;
        // Nobody needs what was there any more.
        __syncthreads();
        for (int side = 0; side < 2; ++side) {
            nvcuda::wmma::store_matrix_sync(&room.sums[warp][0][side * FRAGMENT], sums[tile][side], APART,
                                            nvcuda::wmma::mem_row_major);
        }
        __syncthreads();
        for (int i = threadIdx.x; i < FRAGMENT * COLUMNS; i += LINEAR_THREADS) {
            const int row = i / COLUMNS, column = i % COLUMNS;
            float sum = 0.0f;
            for (int of = 0; of < LINEAR_WARPS; ++of) sum += room.sums[of][row][column];
            if (tile * FRAGMENT + row < left && output + column < outputs) {
                const size_t place = size_t(first + tile * FRAGMENT + row) * width + maps.places[blockIdx.z];
                y[place + output + column] = sum;
            }
        }
    }
}

#define LINEAR(name, type, T, rows_of_tile, Weights, ahead)                                                     \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS)                                                \
        linear_##name##_##type##_##rows_of_tile(const T* x, const __grid_constant__ LinearMaps maps, float* y,  \
                                                const int* rows, int inputs, int width) {                       \
        linear<T, Weights, rows_of_tile / FRAGMENT, ahead>(x, maps, y, rows, inputs, width);                    \
    }
// Few rows wait for weights, so that more of them are read ahead; many have sums in registers instead.
#define LINEAR_ALL(name, Weights, ahead)                                                                        \
    LINEAR(name, f16, __half, 16, Weights, ahead)                                                               \
    LINEAR(name, f16, __half, 64, Weights, 1)                                                                   \
    LINEAR(name, bf16, __nv_bfloat16, 16, Weights, ahead)                                                       \
    LINEAR(name, bf16, __nv_bfloat16, 64, Weights, 1)
using WeightsF32 = Dense<float>;
using WeightsF16 = Dense<__half>;
using WeightsBF16 = Dense<__nv_bfloat16>;
using WeightsQ4_0 = Coded<Symmetric, Nibbles<0>>;
using WeightsQ4_1 = Coded<Affine, Nibbles<0>>;
using WeightsQ5_0 = Coded<Symmetric, Nibbles<1>>;
using WeightsQ5_1 = Coded<Affine, Nibbles<1>>;
using WeightsQ8_0 = Coded<Symmetric, Bytes>;
using WeightsQ4_K = Coded<Super, Nibbles<0>>;
using WeightsQ5_K = Coded<Super, Nibbles<1>>;
using WeightsQ6_K = Coded<Super16, Nibbles<2>>;
LINEAR_ALL(f32, WeightsF32, 1)
LINEAR_ALL(f16, WeightsF16, 2)
LINEAR_ALL(bf16, WeightsBF16, 2)
LINEAR_ALL(q4_0, WeightsQ4_0, 4)
LINEAR_ALL(q4_1, WeightsQ4_1, 4)
LINEAR_ALL(q5_0, WeightsQ5_0, 4)
LINEAR_ALL(q5_1, WeightsQ5_1, 4)
LINEAR_ALL(q8_0, WeightsQ8_0, 2)
LINEAR_ALL(q4_k, WeightsQ4_K, 4)
LINEAR_ALL(q5_k, WeightsQ5_K, 4)
LINEAR_ALL(q6_k, WeightsQ6_K, 4)
