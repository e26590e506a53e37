// What adapters do to the results of a product: low-rank deltas of many adapters in one launch, y += scale * (x A^T) B^T (Hu et al.,
// arXiv 2106.09685), each row with the adapter in its slot (BGMV, Chen et al., Punica, arXiv 2310.18547; S-LoRA, Sheng et al.,
// arXiv 2311.03285), then the gain of DoRA (Liu et al., arXiv 2402.09353), then biases.
//
// Sites that share an input (q, k, v; gate, up) share one stacked A, whose products are made at once. Ranks are what each adapter
// has, never padded to another's. A row without an adapter costs the start of a block.
//
// Rows come sorted by adapter. A run is what neighbouring rows of one tile have the same slots: the block of its first row reads A
// and B once for all of them, and the blocks of the others end at once. Which rows share a block changes nothing in how each is
// summed, so a row has the same bits alone and in any tile.
//
// A and B have the bytes that they have on the host, in one of four types: see `Numbers` and `LowRank` there.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

// Rows that share a block, at most.
constexpr int LORA_ROWS = 8;
constexpr int SHRINK_THREADS = 128;
// Ranks that a block sums side by side: its rows are read once for them.
constexpr int SHRINK_RANKS = 4;
constexpr int EXPAND_THREADS = 128;
// Outputs of a block: two for each thread.
constexpr int EXPAND_OUTPUTS = 2 * EXPAND_THREADS;
// The greatest rank of a site.
constexpr int MAX_RANK = 512;
// Sites of a stack, at most: q, k, v.
constexpr int MAX_SITES = 3;
// Numbers that share a scale, where they are codes.
constexpr int LORA_GROUP = 32;
// Outputs of a panel of B.
constexpr int LORA_PANEL = 32;
static_assert(LORA_PANEL == LORA_GROUP, "a rank of a panel has one scale");

// The type of numbers, in the order of the host's `NumberType`.
constexpr int LORA_F32 = 0;
constexpr int LORA_F16 = 1;
constexpr int LORA_BF16 = 2;
constexpr int LORA_CODES = 3;

// Numbers of any type. Mirrored by the host.
struct LoraNumbers {
    const void* numbers;  // at a multiple of sixteen bytes
    const void* scales;   // bf16, of each group; null but for codes
};

// What an adapter does at a site, and where its A is in the stack. Mirrored by the host.
struct LoraSite {
    LoraNumbers b;        // B^T [panels of 32 outputs, rank, 32]; not read where rank is 0
    const float* b_bias;  // [outputs], times the scale; or null
    const float* gain;    // [outputs], multiplies base and delta; or null
    const float* bias;    // [outputs], the adapter's own or the base's; or null
    int first;            // its first row in the stacked A
    int rank;             // its rows there; 0 is a site without a delta
    int outputs;          // how many there are; not read of a site that the adapter leaves alone
    int place;            // where they begin in a row of y; as above
    float scale;          // alpha / r, or alpha / sqrt(r) with rank stabilisation
    int kind;             // of B
};

// What the adapter of a slot does at the sites that share an input. Mirrored by the host.
struct LoraStack {
    LoraNumbers a;  // [rank, inputs padded to 32], the A of each site below the other; not read where rank is 0
    int rank;       // rows of a
    int kind;       // of A
    LoraSite sites[MAX_SITES];
};
static_assert(sizeof(LoraNumbers) == 16 && sizeof(LoraSite) == 64 && sizeof(LoraStack) == 216, "as the host has them");

// Some numbers of type N, from number `at` on; all are of one group.
template <typename N, int COUNT>
__device__ inline void load_numbers(LoraNumbers from, size_t at, float (&to)[COUNT]) {
    load(static_cast<const N*>(from.numbers) + at, to);
    if constexpr (sizeof(N) == 1) {
        // A code times its scale has fifteen bits: the product is exact.
        const float scale = widen(static_cast<const __nv_bfloat16*>(from.scales)[at / LORA_GROUP]);
        for (int i = 0; i < COUNT; ++i) to[i] *= scale;
    }
}

// How many rows, from `row` on, are for its block: the run that begins with it, or none where another row's block has it.
__device__ inline int rows_of_run(const int* slots, int parts, int row, int rows) {
    // Whether a row goes where the one before it goes.
    const auto goes_on = [=](int next) {
        for (int part = 0; part < parts; ++part) {
            if (slots[size_t(next) * parts + part] != slots[size_t(next - 1) * parts + part]) return false;
        }
        return true;
    };
    if (row % LORA_ROWS != 0 && goes_on(row)) return 0;
    int end = row + 1;
    while (end < rows && end % LORA_ROWS != 0 && goes_on(end)) ++end;
    return end - row;
}

// The sums over the lanes of a warp of COUNT values each, at most a value for each lane: each by the very sums of warp_sum, but lanes
// share out the values among them, so that all take little more than two exchanges a value. Lane i is left with that of value
// i / (WARP / COUNT).
template <int COUNT, int APART = WARP / 2>
__device__ inline float warp_sums(float* x) {
    if constexpr (APART == 0) {
        static_assert(COUNT == 1, "a lane for each value");
        return x[0];
    } else {
        constexpr int KEPT = COUNT > 1 ? COUNT / 2 : 1;
        const bool upper = COUNT > 1 && (threadIdx.x & APART) != 0;
        for (int i = 0; i < KEPT; ++i) {
            const float own = x[i], other = x[COUNT - KEPT + i];
            x[i] = (upper ? other : own) + __shfl_xor_sync(ALL_LANES, upper ? own : other, APART);
        }
        return warp_sums<KEPT, APART / 2>(x);
    }
}

// The sums of a warp for ranks `first` on, side by side for each of ROWS rows. A thread sums every 128th group of eight inputs, and a
// warp its threads.
//
// Where there are fewer ranks or rows, the last is repeated, and nobody keeps what comes of it.
template <typename T, typename N, int ROWS>
__device__ void shrink(const T* x, int count, LoraNumbers a, int first, int rank, int inputs, float* of_warp) {
    const size_t padded = size_t(inputs + LORA_GROUP - 1) / LORA_GROUP * LORA_GROUP;
    float sums[ROWS * SHRINK_RANKS] = {};
    for (int i = 8 * threadIdx.x; i < inputs; i += 8 * SHRINK_THREADS) {
        float numbers[SHRINK_RANKS][8];
        for (int r = 0; r < SHRINK_RANKS; ++r) {
            load_numbers<N>(a, (first + r < rank ? first + r : rank - 1) * padded + i, numbers[r]);
        }
        for (int row = 0; row < ROWS; ++row) {
            float own[8];
            load_eight(x + size_t(row < count ? row : count - 1) * inputs + i, own);
            for (int r = 0; r < SHRINK_RANKS; ++r) {
                float& sum = sums[row * SHRINK_RANKS + r];
                for (int j = 0; j < 8; ++j) sum = fmaf(own[j], numbers[r][j], sum);
            }
        }
    }
    constexpr int LANES_OF_SUM = WARP / (ROWS * SHRINK_RANKS);
    const float sum = warp_sums<ROWS * SHRINK_RANKS>(sums);
    const int lane = threadIdx.x % WARP;
    if (lane % LANES_OF_SUM == 0) of_warp[lane / LANES_OF_SUM] = sum;
}

template <typename T, typename N>
__device__ void shrink_rows(const T* x, int count, LoraNumbers a, int first, int rank, int inputs, float* of_warp) {
    if (count == 1) {
        shrink<T, N, 1>(x, count, a, first, rank, inputs, of_warp);
    } else {
        shrink<T, N, LORA_ROWS>(x, count, a, first, rank, inputs, of_warp);
    }
}

// shrunk[row, part, r] = x[row] . A[r] with the stack of the adapter that the row goes through in that part.
//
// x [rows, inputs] with inputs a multiple of 8; stacks: this group's entry of slot 0 in a table [slots, groups]; slots [rows,
// parts], negative where there is no adapter; shrunk [rows, parts, room], of which the first `rank` numbers of a part are written.
//
// Grid: rows, any number of blocks that share the ranks, parts. Block: SHRINK_THREADS. The sums of warps are added in their order.
template <typename T>
__device__ void lora_shrink(const T* x, const LoraStack* stacks, int groups, const int* slots, int parts, const int* rows,
                            int inputs, int room, float* shrunk) {
    __shared__ float of_warps[SHRINK_THREADS / WARP][LORA_ROWS * SHRINK_RANKS];
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, slot = slots[size_t(row) * parts + blockIdx.z];
    if (slot < 0) return;
    const LoraStack& stack = stacks[size_t(slot) * groups];
    const int rank = stack.rank, kind = stack.kind;
    const LoraNumbers a = stack.a;
    if (int(blockIdx.y) * SHRINK_RANKS >= rank) return;
    const int count = rows_of_run(slots, parts, row, *rows);
    if (count == 0) return;
    const T* own = x + size_t(row) * inputs;
    float* of_warp = of_warps[threadIdx.x / WARP];
    for (int first = blockIdx.y * SHRINK_RANKS; first < rank; first += gridDim.y * SHRINK_RANKS) {
        if (kind == LORA_F32) shrink_rows<T, float>(own, count, a, first, rank, inputs, of_warp);
        if (kind == LORA_F16) shrink_rows<T, __half>(own, count, a, first, rank, inputs, of_warp);
        if (kind == LORA_BF16) shrink_rows<T, __nv_bfloat16>(own, count, a, first, rank, inputs, of_warp);
        if (kind == LORA_CODES) shrink_rows<T, signed char>(own, count, a, first, rank, inputs, of_warp);
        __syncthreads();
        const int of_run = threadIdx.x / SHRINK_RANKS, r = threadIdx.x % SHRINK_RANKS;
        if (of_run < count && first + r < rank) {
            float sum = 0.0f;
            for (int warp = 0; warp < SHRINK_THREADS / WARP; ++warp) sum += of_warps[warp][threadIdx.x];
            shrunk[(size_t(row + of_run) * parts + blockIdx.z) * room + first + r] = sum;
        }
        __syncthreads();
    }
}

// What a block of lora_expand works on: its parameters, seen from the first row of a run.
struct Run {
    const float* shrunk;   // [rows, parts, room]
    const float* weights;  // [rows, parts]
    float* y;              // [rows, width], where the site's outputs begin
    int count;             // of rows
    int parts;
    int room;
    int width;
    int outputs;
    const float* bias;
};

// Whether an adapter changes a site, its bias aside.
__device__ inline bool changes(const LoraSite& site) {
    return site.rank > 0 || site.b_bias != nullptr || site.gain != nullptr;
}

// The sums over ranks, in their order, of two neighbouring outputs.
template <typename N, int ROWS>
__device__ void expand(const float (*shrunk)[LORA_ROWS], const LoraSite& site, int output, float (&sums)[ROWS][2]) {
    size_t at = size_t(output / LORA_PANEL) * site.rank * LORA_PANEL + output % LORA_PANEL;
    for (int r = 0; r < site.rank; ++r, at += LORA_PANEL) {
        float two[2];
        load_numbers<N>(site.b, at, two);
        for (int row = 0; row < ROWS; ++row) {
            for (int i = 0; i < 2; ++i) sums[row][i] = fmaf(shrunk[r][row], two[i], sums[row][i]);
        }
    }
}

// Puts what lora_shrink left of a part of a run where all threads find it. The last row is repeated, as above.
__device__ inline void load_shrunk(const Run& run, int part, const LoraSite& site, float (*shrunk)[LORA_ROWS]) {
    __syncthreads();
    for (int i = threadIdx.x; i < site.rank * LORA_ROWS; i += EXPAND_THREADS) {
        const int r = i / LORA_ROWS, row = i % LORA_ROWS;
        const size_t from = size_t(row < run.count ? row : run.count - 1) * run.parts + part;
        shrunk[r][row] = run.shrunk[from * run.room + site.first + r];
    }
    __syncthreads();
}

// Does to two neighbouring outputs what a part has to do.
template <int ROWS>
__device__ void change(const Run& run, int part, const LoraSite& site, int output, const float (*shrunk)[LORA_ROWS],
                       float (&values)[ROWS][2]) {
    float sums[ROWS][2] = {};
    if (site.kind == LORA_F32) expand<float>(shrunk, site, output, sums);
    if (site.kind == LORA_F16) expand<__half>(shrunk, site, output, sums);
    if (site.kind == LORA_BF16) expand<__nv_bfloat16>(shrunk, site, output, sums);
    if (site.kind == LORA_CODES) expand<signed char>(shrunk, site, output, sums);
    for (int row = 0; row < ROWS; ++row) {
        const float weight = run.weights[size_t(row < run.count ? row : run.count - 1) * run.parts + part];
        for (int i = 0; i < 2 && output + i < run.outputs; ++i) {
            float& value = values[row][i];
            if (site.rank > 0) value = fmaf(sums[row][i], site.scale * weight, value);
            if (site.b_bias != nullptr) value = fmaf(weight, site.b_bias[output + i], value);
            // Never fused with the bias that may follow: for one row and for many a compiler might choose differently.
            if (site.gain != nullptr) value = __fmul_rn(value, site.gain[output + i]);
        }
    }
}

// The outputs of a run that are this block's. `slots` are the run's, `stacks` and `groups` those of lora_expand.
template <int ROWS>
__device__ void expand_run(const Run& run, const LoraStack* stacks, int groups, const int* slots,
                           float (*shrunk)[LORA_ROWS]) {
    for (int tile = blockIdx.y * EXPAND_OUTPUTS; tile < run.outputs; tile += gridDim.y * EXPAND_OUTPUTS) {
        const int output = tile + 2 * threadIdx.x;
        float values[ROWS][2] = {};
        for (int row = 0; row < ROWS && row < run.count; ++row) {
            for (int i = 0; i < 2 && output + i < run.outputs; ++i) {
                values[row][i] = run.y[size_t(row) * run.width + output + i];
            }
        }
        for (int part = 0; part < run.parts; ++part) {
            if (slots[part] < 0) continue;
            const LoraSite& site = stacks[size_t(slots[part]) * groups].sites[blockIdx.z];
            if (site.rank > 0) load_shrunk(run, part, site, shrunk);
            if (changes(site) && output < run.outputs) change(run, part, site, output, shrunk, values);
        }
        for (int row = 0; row < ROWS && row < run.count; ++row) {
            for (int i = 0; i < 2 && output + i < run.outputs; ++i) {
                const float value = values[row][i];
                run.y[size_t(row) * run.width + output + i] = run.bias == nullptr ? value : value + run.bias[output + i];
            }
        }
    }
}

// y[row, outputs of each site], for each part in turn: y += scale * weight * (shrunk[row, part, ranks of the site] . B^T), then y +=
// weight * b_bias, then y *= gain. At the end y += bias of the first part that has an adapter: neither gains nor biases are part of
// a mix.
//
// shrunk [rows, parts, room] as lora_shrink leaves it; stacks, groups, slots as there; weights [rows, parts], 1 where there is no
// mix; y [rows, width].
//
// Grid: rows, any number of blocks that share the outputs, sites. Block: EXPAND_THREADS.
extern "C" __global__ void __launch_bounds__(EXPAND_THREADS)
    lora_expand(const float* shrunk, const LoraStack* stacks, int groups, const int* slots, const float* weights, int parts,
                const int* rows, int room, int width, float* y) {
    alignas(16) __shared__ float of_ranks[MAX_RANK][LORA_ROWS];
    if (blockIdx.x >= unsigned(*rows)) return;
    const size_t row = blockIdx.x, at = row * parts;
    Run run = {shrunk + at * room, weights + at, y + row * width, 0, parts, room, width, 0, nullptr};
    bool first = true;
    for (int part = 0; part < parts; ++part) {
        const int slot = slots[at + part];
        if (slot < 0) continue;
        const LoraSite& site = stacks[size_t(slot) * groups].sites[blockIdx.z];
        if (first) run.bias = site.bias;
        if (run.outputs == 0 && (changes(site) || run.bias != nullptr)) {
            run.outputs = site.outputs;
            run.y += site.place;
        }
        first = false;
    }
    // What is left alone has no outputs here.
    if (int(blockIdx.y) * EXPAND_OUTPUTS >= run.outputs) return;
    run.count = rows_of_run(slots, parts, int(row), *rows);
    if (run.count == 1) expand_run<1>(run, stacks, groups, slots + at, of_ranks);
    if (run.count > 1) expand_run<LORA_ROWS>(run, stacks, groups, slots + at, of_ranks);
}

#define LORA_SHRINK(type, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(SHRINK_THREADS) lora_shrink_##type(                            \
        const T* x, const LoraStack* stacks, int groups, const int* slots, int parts, const int* rows,          \
        int inputs, int room, float* shrunk) {                                                                  \
        lora_shrink<T>(x, stacks, groups, slots, parts, rows, inputs, room, shrunk);                            \
    }
LORA_SHRINK(f16, __half)
LORA_SHRINK(bf16, __nv_bfloat16)
