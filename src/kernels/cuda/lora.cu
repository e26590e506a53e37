// Low-rank deltas of many adapters in one launch: y += scale * (x A^T) B^T (Hu et al., arXiv 2106.09685), each row with the adapter
// in its slot (BGMV, Chen et al., Punica, arXiv 2310.18547; S-LoRA, Sheng et al., arXiv 2311.03285).
//
// Sites that share an input (q, k, v; gate, up) share one stacked A, whose products are made at once. Ranks are what each adapter
// has, never padded to another's. A row without an adapter costs the start of a block.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int SHRINK_THREADS = 128;
// Ranks that a warp sums side by side: its row is read once for them.
constexpr int SHRINK_RANKS = 4;
constexpr int EXPAND_THREADS = 128;
// Outputs of a block: two for each thread.
constexpr int EXPAND_OUTPUTS = 2 * EXPAND_THREADS;
// The greatest rank of a site.
constexpr int MAX_RANK = 256;
// Sites of a stack, at most: q, k, v.
constexpr int MAX_SITES = 3;

// The B side of a site, and where its A is in the stack. Mirrored by the host.
struct LoraSite {
    const void* b;  // B^T [rank, outputs]: what neighbouring threads read lies side by side; not read where rank is 0
    int first;      // its first row in the stacked A
    int rank;       // its rows there; 0 is a site that the adapter leaves alone
    float scale;    // alpha / r, or alpha / sqrt(r) with rank stabilisation
    int outputs;    // how many there are
    int place;      // where they begin in a row of y
};

// What the adapter of a slot does at the sites that share an input. Mirrored by the host.
struct LoraStack {
    const void* a;  // [rank, inputs], the A of each site below the other
    int rank;       // rows of a; 0 is a stack that the adapter leaves alone
    LoraSite sites[MAX_SITES];
};
static_assert(sizeof(LoraSite) == 32 && sizeof(LoraStack) == 112, "as the host has them");

// shrunk[row, r] = x[row] . A[r] with the stack in the row's slot.
//
// x [rows, inputs] with inputs a multiple of 8; stacks [slots]; slots [rows], negative where a row has no adapter; shrunk [rows,
// room], of which the first `rank` numbers of a row are written.
//
// Grid: rows, any number of blocks that share the ranks. Block: SHRINK_THREADS. A lane sums every 32nd group of eight inputs, and a
// warp its lanes.
template <typename T>
__device__ void lora_shrink(const T* x, const LoraStack* stacks, const int* slots, const int* rows, int inputs, int room,
                            float* shrunk) {
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, slot = slots[row];
    if (slot < 0) return;
    const T* a = static_cast<const T*>(stacks[slot].a);
    const int rank = stacks[slot].rank;
    const int lane = threadIdx.x % WARP, warp = blockIdx.y * (SHRINK_THREADS / WARP) + threadIdx.x / WARP;
    const int warps = gridDim.y * (SHRINK_THREADS / WARP);
    for (int first = warp * SHRINK_RANKS; first < rank; first += warps * SHRINK_RANKS) {
        float sums[SHRINK_RANKS] = {};
        for (int i = 8 * lane; i < inputs; i += 8 * WARP) {
            float own[8];
            load_eight(x + size_t(row) * inputs + i, own);
            for (int r = 0; r < SHRINK_RANKS && first + r < rank; ++r) {
                float eight[8];
                load_eight(a + size_t(first + r) * inputs + i, eight);
                for (int j = 0; j < 8; ++j) sums[r] = fmaf(own[j], eight[j], sums[r]);
            }
        }
        for (int r = 0; r < SHRINK_RANKS; ++r) {
            const float sum = warp_sum(sums[r]);
            if (lane == 0 && first + r < rank) shrunk[size_t(row) * room + first + r] = sum;
        }
    }
}

// y[row, outputs of each site] += scale * shrunk[row, ranks of the site] . B^T, summed in the order of ranks.
//
// shrunk [rows, room] as lora_shrink leaves it; stacks, slots as there; y [rows, width].
//
// Grid: rows, any number of blocks that share the outputs, sites. Block: EXPAND_THREADS.
template <typename T>
__device__ void lora_expand(const float* shrunk, const LoraStack* stacks, const int* slots, const int* rows, int room,
                            int width, T* y) {
    __shared__ float own[MAX_RANK];
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, slot = slots[row];
    if (slot < 0) return;
    const LoraSite site = stacks[slot].sites[blockIdx.z];
    if (site.rank == 0) return;
    for (int r = threadIdx.x; r < site.rank; r += EXPAND_THREADS) {
        own[r] = shrunk[size_t(row) * room + site.first + r];
    }
    __syncthreads();
    const T* b = static_cast<const T*>(site.b);
    T* to = y + size_t(row) * width + site.place;
    for (int tile = blockIdx.y * EXPAND_OUTPUTS; tile < site.outputs; tile += gridDim.y * EXPAND_OUTPUTS) {
        const int left = tile + threadIdx.x, right = left + EXPAND_THREADS;
        float sums[2] = {};
        for (int r = 0; r < site.rank; ++r) {
            const T* of_rank = b + size_t(r) * site.outputs;
            if (left < site.outputs) sums[0] = fmaf(own[r], widen(of_rank[left]), sums[0]);
            if (right < site.outputs) sums[1] = fmaf(own[r], widen(of_rank[right]), sums[1]);
        }
        if (left < site.outputs) to[left] = narrow<T>(fmaf(sums[0], site.scale, widen(to[left])));
        if (right < site.outputs) to[right] = narrow<T>(fmaf(sums[1], site.scale, widen(to[right])));
    }
}

#define LORA(type, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(SHRINK_THREADS)                                                \
        lora_shrink_##type(const T* x, const LoraStack* stacks, const int* slots, const int* rows, int inputs,  \
                           int room, float* shrunk) {                                                           \
        lora_shrink<T>(x, stacks, slots, rows, inputs, room, shrunk);                                           \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(EXPAND_THREADS)                                                \
        lora_expand_##type(const float* shrunk, const LoraStack* stacks, const int* slots, const int* rows,     \
                           int room, int width, T* y) {                                                         \
        lora_expand<T>(shrunk, stacks, slots, rows, room, width, y);                                            \
    }
LORA(f16, __half)
LORA(bf16, __nv_bfloat16)
