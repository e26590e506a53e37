// Products of matrices that the lanes of a warp make together, as host.h has the rest.
//
// On a device it is left open which lane has which numbers of a matrix. Here lane l has eight of row l / 2, from column l % 2 * 8
// on, of any. Lanes that store and lanes that load need a barrier between them as on a device: a lane loads before it waits.
#ifndef CHORUS_HOST_MMA
#define CHORUS_HOST_MMA

#include "host.h"

namespace host {

// Tells of an address or a distance of lines that is none for a matrix; does not return.
[[noreturn]] void refuse_matrix(const char* why, int line);
// sums = before + left * right, each the eight numbers of a lane; every lane of the warp comes to it.
void multiply(float* sums, const float* left, const float* right, const float* before, int line);

inline float wide(float x) { return x; }
inline float wide(__half x) { return __half2float(x); }
inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
void check_matrix(const T* memory, unsigned apart, int line) {
    if (reinterpret_cast<uintptr_t>(memory) % 32 != 0) refuse_matrix("is not at a multiple of 32 bytes", line);
    if (apart * sizeof(T) % 16 != 0) refuse_matrix("has lines that are not multiples of 16 bytes apart", line);
}

}  // namespace host

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major {
    static constexpr bool BY_ROWS = true;
};
struct col_major {
    static constexpr bool BY_ROWS = false;
};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "the one shape there is here");
    float own[8];
};
template <typename Use, typename T, typename Layout>
using square = fragment<Use, 16, 16, 16, T, Layout>;

inline void fill_fragment(square<accumulator, float, void>& to, float value) {
    for (float& own : to.own) own = value;
}

template <typename Use, typename T, typename Layout>
void load_matrix_sync(square<Use, T, Layout>& to, const T* from, unsigned apart, int line = __builtin_LINE()) {
    host::check_matrix(from, apart, line);
    const unsigned row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
    const T* first = from + (Layout::BY_ROWS ? size_t(row) * apart + column : size_t(column) * apart + row);
    for (int i = 0; i < 8; ++i) to.own[i] = host::wide(first[Layout::BY_ROWS ? size_t(i) : size_t(i) * apart]);
    host::wait_for_warp(line);
}

template <typename T, typename Left, typename Right>
void mma_sync(square<accumulator, float, void>& sums, const square<matrix_a, T, Left>& left,
              const square<matrix_b, T, Right>& right, const square<accumulator, float, void>& before,
              int line = __builtin_LINE()) {
    host::multiply(sums.own, left.own, right.own, before.own, line);
}

inline void store_matrix_sync(float* to, const square<accumulator, float, void>& from, unsigned apart, layout_t layout,
                              int line = __builtin_LINE()) {
    host::check_matrix(to, apart, line);
    if (layout != mem_row_major) host::refuse_matrix("is stored by columns, which nothing here does", line);
    const unsigned row = threadIdx.x % 32 / 2, column = threadIdx.x % 2 * 8;
    for (unsigned i = 0; i < 8; ++i) to[size_t(row) * apart + column + i] = from.own[i];
    host::wait_for_warp(line);
}

}  // namespace nvcuda::wmma

#endif
