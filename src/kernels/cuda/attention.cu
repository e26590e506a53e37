// Rotation (RoPE, Su et al., arXiv 2104.09864) and attention over paged keys and values.
//
// Memory for keys and values is cut into pages of PAGE positions, and a sequence owns a list of them (Kwon et al.,
// arXiv 2309.06180). Keys and values of a page lie as [key heads, PAGE, dim]: what eight lanes, or a warp, read of a position
// lies side by side. (The CPU keeps keys with positions side by side, as its lanes are positions.)
//
// A row's positions are cut into splits of SPLIT, which begin at multiples of SPLIT whatever else is in the batch (Dao et al.,
// "Flash-Decoding for long-context inference", 2023, but of fixed length rather than of fixed number). Each split gives its
// greatest score, its sum of weights and its weighted values, and these are merged in the order of positions (online softmax,
// Milakov and Gimelshein, arXiv 1805.02867). So a row's result depends on its position alone: it has the same bits alone, in
// any batch, as the last of its sequence or within a prompt. Splits of a row are computed side by side where there are few rows
// (attention_splits, then attention_combine), or one after the other where there are many and the room for all splits would be
// too much (attention_whole): the same bits again.
#ifndef CHORUS_NUMBERS
#include "numbers.cuh"
#endif

constexpr int PAGE = 16;    // positions
constexpr int SPLIT = 256;  // positions
constexpr int ATTENTION_THREADS = 128;
constexpr int ROPE_THREADS = 128;
// Query heads that a block computes at a time: what the models there are have for each key head, 3 to 8, at once.
constexpr int QUERIES = 8;
// The widest head: two dimensions for each thread.
constexpr int MAX_DIM = 2 * ATTENTION_THREADS;
// Lanes that share a position while scores are computed: each reads eight numbers of it at a time.
constexpr int LANES = ATTENTION_THREADS / PAGE;

// The shape of attention. `dim` is a multiple of 8 and at most MAX_DIM; `queries` is a multiple of `keys`, and each key head serves
// queries / keys query heads in turn.
struct Heads {
    int queries;
    int keys;
    int dim;
    int window;  // positions that a row sees, its own included; 0 is all (Mistral, arXiv 2310.06825)
};

// The first position that a row sees; the last is its own.
__device__ inline int first_visible(Heads heads, int position) {
    return heads.window > 0 && position >= heads.window ? position - heads.window + 1 : 0;
}

// Where the keys, or values, of one head at one position begin.
__device__ inline size_t place_in_pages(const int* pages, Heads heads, int head, int position) {
    const size_t page = pages[position / PAGE];
    return ((page * heads.keys + head) * PAGE + position % PAGE) * heads.dim;
}

// Turns the queries of qkv [rows, queries + 2 * keys, dim] in place, and puts keys, turned, and values into their pages, rounded
// once. Dimension i is turned with i + dim / 2 (as Llama's weights in Hugging Face's order have it).
//
// cosines, sines [positions, dim / 2]: of each position's angles, times what a scaling makes queries and keys longer by. They are
// the host's, so that both sides turn by the same angles. keys, values [pages, key heads, PAGE, dim]; pages [sequences,
// pages_of_sequence]; sequences, positions [rows].
//
// Grid: rows. Block: ROPE_THREADS. No two rows have the same page and place.
template <typename T>
__device__ void rope_and_write(float* qkv, const float* cosines, const float* sines, T* keys, T* values, const int* pages,
                               int pages_of_sequence, const int* sequences, const int* positions, const int* rows,
                               Heads heads) {
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, half = heads.dim / 2, position = positions[row];
    const int* own_pages = pages + size_t(sequences[row]) * pages_of_sequence;
    float* own = qkv + size_t(row) * (heads.queries + 2 * heads.keys) * heads.dim;
    for (int i = threadIdx.x; i < (heads.queries + heads.keys) * half; i += ROPE_THREADS) {
        const int head = i / half, d = i % half;
        const float cosine = cosines[size_t(position) * half + d], sine = sines[size_t(position) * half + d];
        float* from = own + head * heads.dim;
        const float left = from[d], right = from[half + d];
        const float turned_left = fmaf(left, cosine, -(right * sine)), turned_right = fmaf(right, cosine, left * sine);
        if (head < heads.queries) {
            from[d] = turned_left;
            from[half + d] = turned_right;
        } else {
            T* key = keys + place_in_pages(own_pages, heads, head - heads.queries, position);
            key[d] = narrow<T>(turned_left);
            key[half + d] = narrow<T>(turned_right);
        }
    }
    const float* own_values = own + size_t(heads.queries + heads.keys) * heads.dim;
    for (int i = threadIdx.x; i < heads.keys * heads.dim; i += ROPE_THREADS) {
        const int head = i / heads.dim, d = i % heads.dim;
        values[place_in_pages(own_pages, heads, head, position) + d] = narrow<T>(own_values[i]);
    }
}

// What a block knows of one row, one key head and up to QUERIES of its query heads; in shared memory.
struct Tile {
    float queries[QUERIES][MAX_DIM];  // divided by the root of dim
    float weights[QUERIES][SPLIT];    // scores, then exp(score - max)
    float answers[QUERIES][MAX_DIM];  // the values of the split times their weights
    float max[QUERIES];               // greatest score of the split
    float sum[QUERIES];               // of the split's weights
};

// queries [query heads, dim], turned: those from `first` on, of which there are `count`.
__device__ inline void load_queries(Tile& tile, const float* queries, Heads heads, int first, int count) {
    const float scale = 1.0f / sqrtf(float(heads.dim));
    for (int i = threadIdx.x; i < QUERIES * heads.dim; i += ATTENTION_THREADS) {
        const int q = i / heads.dim, d = i % heads.dim;
        tile.queries[q][d] = q < count ? queries[(first + q) * heads.dim + d] * scale : 0.0f;
    }
    __syncthreads();
}

// The scores of positions `from` to `to`, which are in the split that begins at `begin`: a page at a time, LANES lanes for each
// of its positions. What is in no row's sight is not read: it may be another sequence's old numbers, or none.
template <typename T>
__device__ void score(Tile& tile, const T* keys, const int* pages, Heads heads, int head, int begin, int from, int to) {
    const int lane = threadIdx.x % LANES, place = threadIdx.x / LANES;
    for (int start = begin; start < to; start += PAGE) {
        if (start + PAGE <= from) continue;
        const int position = start + place;
        float scores[QUERIES] = {};
        if (from <= position && position < to) {
            const T* key = keys + place_in_pages(pages, heads, head, position);
            for (int d = 8 * lane; d < heads.dim; d += 8 * LANES) {
                float eight[8];
                load_eight(key + d, eight);
                for (int q = 0; q < QUERIES; ++q) {
                    for (int i = 0; i < 8; ++i) scores[q] = fmaf(tile.queries[q][d + i], eight[i], scores[q]);
                }
            }
        }
        for (int q = 0; q < QUERIES; ++q) {
            for (int apart = LANES / 2; apart > 0; apart /= 2) {
                scores[q] += __shfl_xor_sync(ALL_LANES, scores[q], apart);
            }
            if (lane == 0) tile.weights[q][position - begin] = scores[q];
        }
    }
    __syncthreads();
}

// Scores become weights; a warp takes a query at a time.
__device__ inline void weigh(Tile& tile, int begin, int from, int to) {
    for (int q = threadIdx.x / WARP; q < QUERIES; q += ATTENTION_THREADS / WARP) {
        float max = minus_infinity();
        for (int i = threadIdx.x % WARP; i < to - begin; i += WARP) {
            if (begin + i >= from) max = fmaxf(max, tile.weights[q][i]);
        }
        max = warp_max(max);
        float sum = 0.0f;
        for (int i = threadIdx.x % WARP; i < to - begin; i += WARP) {
            if (begin + i < from) continue;
            const float score = tile.weights[q][i], weight = expf(score - max);
            tile.weights[q][i] = weight;
            // Zero, or no number where a score is none or infinite: such a row must not look like an answer.
            sum += fmaf(score, 0.0f, weight);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) {
            tile.max[q] = max;
            tile.sum[q] = sum;
        }
    }
    __syncthreads();
}

// The values of the positions times their weights. Two dimensions are a thread's; where that leaves threads over, as many groups of
// them as there are share the positions in turn, and their sums are added in the groups' order.
template <typename T>
__device__ void gather(Tile& tile, const T* values, const int* pages, Heads heads, int head, int begin, int from, int to) {
    const int pairs = heads.dim / 2, groups = ATTENTION_THREADS / pairs;
    const int group = threadIdx.x / pairs, d = threadIdx.x % pairs * 2;
    float sums[QUERIES][2] = {};
    if (group < groups) {
        for (int position = begin + group; position < to; position += groups) {
            if (position < from) continue;
            float two[2];
            load_two(values + place_in_pages(pages, heads, head, position) + d, two);
            for (int q = 0; q < QUERIES; ++q) {
                const float weight = tile.weights[q][position - begin];
                for (int i = 0; i < 2; ++i) sums[q][i] = fmaf(weight, two[i], sums[q][i]);
            }
        }
    }
    for (int next = 0; next < groups; ++next) {
        if (group == next) {
            for (int q = 0; q < QUERIES; ++q) {
                for (int i = 0; i < 2; ++i) {
                    tile.answers[q][d + i] = next == 0 ? sums[q][i] : tile.answers[q][d + i] + sums[q][i];
                }
            }
        }
        __syncthreads();
    }
}

// One split of a row, which sees at least one of its positions.
template <typename T>
__device__ void attend(Tile& tile, const T* keys, const T* values, const int* pages, Heads heads, int head, int position,
                       int split) {
    const int begin = split * SPLIT, first = first_visible(heads, position);
    const int from = first > begin ? first : begin;
    const int to = position + 1 < begin + SPLIT ? position + 1 : begin + SPLIT;
    score(tile, keys, pages, heads, head, begin, from, to);
    weigh(tile, begin, from, to);
    gather(tile, values, pages, heads, head, begin, from, to);
}

// What is multiplied by what when a split, of greatest score `next`, is merged into those before it, of greatest score `max`.
struct Fade {
    float max;
    float before;
    float split;
};

__device__ inline Fade fade(float max, float next) {
    const float both = fmaxf(max, next);
    return {both, max == minus_infinity() ? 0.0f : expf(max - both), expf(next - both)};
}

__device__ inline float merged(Fade fade, float before, float split) {
    return fmaf(split, fade.split, before * fade.before);
}

// softmax(q K^T / sqrt(dim)) V of each split by itself.
//
// qkv [rows, queries + 2 * keys, dim] with queries turned; keys, values, pages, sequences, positions as above. answers [rows, query
// heads, splits, dim] and states [rows, query heads, splits]: max and sum. Splits that a row does not see are not written.
//
// Grid: rows, key heads, splits. Block: ATTENTION_THREADS. A row's position is below splits * SPLIT.
template <typename T>
__device__ void attention_splits(const float* qkv, const T* keys, const T* values, const int* pages, int pages_of_sequence,
                                 const int* sequences, const int* positions, const int* rows, Heads heads, float* answers,
                                 float2* states) {
    __shared__ Tile tile;
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, head = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    const int position = positions[row];
    if (split > position / SPLIT || split < first_visible(heads, position) / SPLIT) return;
    const int* own_pages = pages + size_t(sequences[row]) * pages_of_sequence;
    const float* queries = qkv + size_t(row) * (heads.queries + 2 * heads.keys) * heads.dim;
    const int group = heads.queries / heads.keys;
    for (int done = 0; done < group; done += QUERIES) {
        const int first = head * group + done, count = group - done < QUERIES ? group - done : QUERIES;
        load_queries(tile, queries, heads, first, count);
        attend(tile, keys, values, own_pages, heads, head, position, split);
        for (int i = threadIdx.x; i < count * heads.dim; i += ATTENTION_THREADS) {
            const int q = i / heads.dim, d = i % heads.dim;
            const size_t place = (size_t(row) * heads.queries + first + q) * splits + split;
            answers[place * heads.dim + d] = tile.answers[q][d];
            if (d == 0) states[place] = make_float2(tile.max[q], tile.sum[q]);
        }
        __syncthreads();
    }
}

// Merges what attention_splits left: y [rows, query heads * dim].
//
// Grid: rows, query heads. Block: ATTENTION_THREADS.
template <typename T>
__device__ void attention_combine(const float* answers, const float2* states, const int* positions, const int* rows,
                                  Heads heads, int splits, T* y) {
    if (blockIdx.x >= unsigned(*rows)) return;
    const size_t query = size_t(blockIdx.x) * heads.queries + blockIdx.y;
    const int position = positions[blockIdx.x];
    for (int d = threadIdx.x; d < heads.dim; d += ATTENTION_THREADS) {
        float max = minus_infinity(), sum = 0.0f, answer = 0.0f;
        for (int split = first_visible(heads, position) / SPLIT; split <= position / SPLIT; ++split) {
            const float2 state = states[query * splits + split];
            const Fade next = fade(max, state.x);
            sum = merged(next, sum, state.y);
            answer = merged(next, answer, answers[(query * splits + split) * heads.dim + d]);
            max = next.max;
        }
        y[query * heads.dim + d] = narrow<T>(answer / sum);
    }
}

// The same without room for splits: y [rows, query heads * dim].
//
// Grid: rows, key heads. Block: ATTENTION_THREADS.
template <typename T>
__device__ void attention_whole(const float* qkv, const T* keys, const T* values, const int* pages, int pages_of_sequence,
                                const int* sequences, const int* positions, const int* rows, Heads heads, T* y) {
    __shared__ Tile tile;
    __shared__ float answers[QUERIES][MAX_DIM];
    __shared__ float maxima[QUERIES], sums[QUERIES];
    if (blockIdx.x >= unsigned(*rows)) return;
    const int row = blockIdx.x, head = blockIdx.y, position = positions[row];
    const int* own_pages = pages + size_t(sequences[row]) * pages_of_sequence;
    const float* queries = qkv + size_t(row) * (heads.queries + 2 * heads.keys) * heads.dim;
    const int group = heads.queries / heads.keys;
    for (int done = 0; done < group; done += QUERIES) {
        const int first = head * group + done, count = group - done < QUERIES ? group - done : QUERIES;
        for (int i = threadIdx.x; i < QUERIES * heads.dim; i += ATTENTION_THREADS) {
            answers[i / heads.dim][i % heads.dim] = 0.0f;
        }
        if (threadIdx.x < QUERIES) {
            maxima[threadIdx.x] = minus_infinity();
            sums[threadIdx.x] = 0.0f;
        }
        load_queries(tile, queries, heads, first, count);
        for (int split = first_visible(heads, position) / SPLIT; split <= position / SPLIT; ++split) {
            attend(tile, keys, values, own_pages, heads, head, position, split);
            for (int i = threadIdx.x; i < count * heads.dim; i += ATTENTION_THREADS) {
                const int q = i / heads.dim, d = i % heads.dim;
                answers[q][d] = merged(fade(maxima[q], tile.max[q]), answers[q][d], tile.answers[q][d]);
            }
            __syncthreads();
            if (threadIdx.x < QUERIES) {
                const Fade next = fade(maxima[threadIdx.x], tile.max[threadIdx.x]);
                sums[threadIdx.x] = merged(next, sums[threadIdx.x], tile.sum[threadIdx.x]);
                maxima[threadIdx.x] = next.max;
            }
            __syncthreads();
        }
        for (int i = threadIdx.x; i < count * heads.dim; i += ATTENTION_THREADS) {
            const int q = i / heads.dim, d = i % heads.dim;
            y[(size_t(row) * heads.queries + first + q) * heads.dim + d] = narrow<T>(answers[q][d] / sums[q]);
        }
        __syncthreads();
    }
}

#define ATTENTION(type, T)                                                                                      \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS) rope_and_write_##type(                           \
        float* qkv, const float* cosines, const float* sines, T* keys, T* values, const int* pages,             \
        int pages_of_sequence, const int* sequences, const int* positions, const int* rows, Heads heads) {      \
        rope_and_write<T>(qkv, cosines, sines, keys, values, pages, pages_of_sequence, sequences, positions,    \
                          rows, heads);                                                                         \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention_splits_##type(                    \
        const float* qkv, const T* keys, const T* values, const int* pages, int pages_of_sequence,              \
        const int* sequences, const int* positions, const int* rows, Heads heads, float* answers,               \
        float2* states) {                                                                                       \
        attention_splits<T>(qkv, keys, values, pages, pages_of_sequence, sequences, positions, rows, heads,     \
                            answers, states);                                                                   \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention_combine_##type(                   \
        const float* answers, const float2* states, const int* positions, const int* rows, Heads heads,         \
        int splits, T* y) {                                                                                     \
        attention_combine<T>(answers, states, positions, rows, heads, splits, y);                               \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS) attention_whole_##type(                     \
        const float* qkv, const T* keys, const T* values, const int* pages, int pages_of_sequence,              \
        const int* sequences, const int* positions, const int* rows, Heads heads, T* y) {                       \
        attention_whole<T>(qkv, keys, values, pages, pages_of_sequence, sequences, positions, rows, heads, y);  \
    }
ATTENTION(f16, __half)
ATTENTION(bf16, __nv_bfloat16)
