// Runs the kernels on the host: see host.h.
//
// A block's threads are fibers. Each runs until it waits, for its block or for its warp, or is done. A warp goes on when all its
// lanes wait at the same line, a block when all its threads that are not done wait for the same barrier. Anything else would
// hang or be undefined on a device, and ends the launch with an error; so does an index beyond the end of an array, or a load from
// a place that is not a multiple of its size, of which the compiler's checks tell (-fsanitize=bounds,alignment).
#include <setjmp.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../numbers.cuh"

#include "../norm.cu"

#include "../attention.cu"

#include "../lora.cu"

#include "../bias.cu"

#include "../gate.cu"

#include "../greedy.cu"

#include "../linear.cu"

// What kernels must not do, to see that it is told.
extern "C" void fault_barrier(int* numbers) {
    if (threadIdx.x < 16) __syncthreads();
    numbers[threadIdx.x] = 1;
}
extern "C" void fault_exchange(float* numbers) {
    if (threadIdx.x < 16) numbers[threadIdx.x] = warp_sum(1.0f);
}
extern "C" void fault_index(int* numbers) {
    __shared__ int few[16];
    few[threadIdx.x] = 1;
    numbers[threadIdx.x] = few[threadIdx.x];
}
extern "C" void fault_alignment(const __half* numbers) {
    float eight[8];
    load_eight(numbers + 1, eight);
}
// Reads what another thread writes, without a barrier in between.
extern "C" void fault_race(int* numbers) {
    __shared__ int all[64];
    all[threadIdx.x] = int(threadIdx.x + blockIdx.x);
    numbers[blockIdx.x * 64 + threadIdx.x] = all[(threadIdx.x + 1) % 64];
}

// Comes to another operation than half of its warp.
extern "C" void fault_warp(int* numbers) {
    Sums sums;
    nvcuda::wmma::fill_fragment(sums, float(numbers[threadIdx.x]));
    if (threadIdx.x < 16) __syncwarp();
    if (threadIdx.x >= 16) nvcuda::wmma::mma_sync(sums, Inputs<__half>{}, Widened<__half, nvcuda::wmma::row_major>{}, sums);
}
extern "C" void fault_matrix_place(const __half* numbers) {
    Inputs<__half> inputs;
    nvcuda::wmma::load_matrix_sync(inputs, numbers + 8, 16);
}
extern "C" void fault_matrix_lines(const __half* numbers) {
    Inputs<__half> inputs;
    nvcuda::wmma::load_matrix_sync(inputs, numbers, 4);
}
// Loads what other lanes store, without a barrier in between.
extern "C" void fault_matrix_race(float* numbers) {
    alignas(32) __shared__ __half lines[FRAGMENT][FRAGMENT];
    alignas(32) __shared__ float squares[FRAGMENT][FRAGMENT];
    for (int i = 0; i < 8; ++i) lines[threadIdx.x / 2][threadIdx.x % 2 * 8 + i] = narrow<__half>(float(blockIdx.x + 1));
    Inputs<__half> left;
    Widened<__half, nvcuda::wmma::col_major> right;
    Sums sums;
    nvcuda::wmma::load_matrix_sync(right, &lines[0][0], FRAGMENT);
    nvcuda::wmma::load_matrix_sync(left, &lines[0][0], FRAGMENT);
    nvcuda::wmma::fill_fragment(sums, 0.0f);
    nvcuda::wmma::mma_sync(sums, left, right, sums);
    nvcuda::wmma::store_matrix_sync(&squares[0][0], sums, FRAGMENT, nvcuda::wmma::mem_row_major);
    numbers[blockIdx.x * 64 + threadIdx.x] = squares[threadIdx.x / 2][threadIdx.x % 2];
}

namespace host {
namespace {

constexpr size_t STACK = 64 * 1024;  // bytes of a fiber

enum class State { Runs, WaitsForWarp, WaitsForBlock, Done };

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK]};
    ucontext_t first;
    jmp_buf resumed;
    bool begun = false;
    State state = State::Done;
    int line = 0;       // at which it waits
    uint32_t bits = 0;  // that it brings to its warp
    // Its parts of matrices that the warp multiplies.
    const float *left = nullptr, *right = nullptr;
};

using Body = void (*)(void (*kernel)(), const void* const* arguments);

struct Kernel {
    const char* name;
    void (*kernel)();
    Body body;
    std::vector<size_t> sizes;  // of its parameters, in bytes
};

// What a thread of the host runs.
struct Device {
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* fiber = nullptr;  // that runs
    unsigned thread = 0;     // its number in the block
    ucontext_t first;
    jmp_buf scheduler;
    const Kernel* kernel = nullptr;
    const void* const* arguments = nullptr;
    std::string error;
};
// A pointer: the thing itself would be asked at each use whether it is made yet.
thread_local Device* device = nullptr;

// Goes from a fiber back to the scheduler, until it is resumed.
void pause() {
    if (_setjmp(device->fiber->resumed) == 0) _longjmp(device->scheduler, 1);
}

// A fiber runs one thread of one block after the other.
void run_threads() {
    for (;;) {
        device->kernel->body(device->kernel->kernel, device->arguments);
        device->fiber->state = State::Done;
        pause();
    }
}

__attribute__((noinline)) void resume(unsigned thread) {
    Fiber& fiber = *device->fibers[thread];
    device->fiber = &fiber;
    device->thread = thread;
    threadIdx = {thread, 0, 0};
    fiber.state = State::Runs;
    if (_setjmp(device->scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.resumed, 1);
    fiber.begun = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack.get();
    fiber.first.uc_stack.ss_size = STACK;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, run_threads, 0);
    setcontext(&fiber.first);
}

[[gnu::format(printf, 1, 2)]] void fail(const char* format, ...) {
    if (!device->error.empty()) return;
    char text[400];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    device->error = text;
}

// Runs the lanes of a warp, `first` to `end`, until none of them can go on without other warps.
void run_warp(unsigned first, unsigned end, bool backwards) {
    for (;;) {
        for (unsigned i = 0; i < end - first; ++i) {
            resume(backwards ? end - 1 - i : first + i);
            if (!device->error.empty()) return;
        }
        const Fiber& one = *device->fibers[first];
        bool all = one.state == State::WaitsForWarp, none = !all;
        for (unsigned lane = first; lane < end; ++lane) {
            const Fiber& fiber = *device->fibers[lane];
            const bool waits = fiber.state == State::WaitsForWarp;
            all = all && waits && fiber.line == one.line;
            none = none && !waits;
        }
        if (none) return;
        if (!all) return fail("lanes of the warp of threads %u to %u wait at different lines, or are done", first, end);
    }
}

// Whether the threads of a block may go on: none of them is left at another barrier, or done before it.
bool released(unsigned threads) {
    const Fiber *waits = nullptr, *other = nullptr;
    for (unsigned thread = 0; thread < threads; ++thread) {
        const Fiber* fiber = device->fibers[thread].get();
        if (fiber->state == State::WaitsForBlock && waits == nullptr) waits = fiber;
        if (waits != nullptr && fiber->state == State::WaitsForBlock && fiber->line != waits->line) other = fiber;
    }
    if (other != nullptr) fail("threads of a block wait at the barriers of lines %d and %d", waits->line, other->line);
    for (unsigned thread = 0; waits != nullptr && thread < threads; ++thread) {
        if (device->fibers[thread]->state == State::Done) fail("thread %u does not reach the barrier of line %d", thread, waits->line);
    }
    return waits != nullptr;
}

void run_block(unsigned threads, bool backwards) {
    do {
        const unsigned warps = (threads + WARP - 1) / WARP;
        for (unsigned i = 0; i < warps; ++i) {
            const unsigned first = (backwards ? warps - 1 - i : i) * WARP;
            const unsigned end = threads - first < unsigned(WARP) ? threads : first + WARP;
            run_warp(first, end, backwards);
            if (!device->error.empty()) return;
        }
    } while (released(threads) && device->error.empty());
}

template <typename... P, size_t... I>
void call(void (*kernel)(P...), const void* const* arguments, std::index_sequence<I...>) {
    kernel(*static_cast<const P*>(arguments[I])...);
}

template <typename... P>
Kernel bind(const char* name, void (*kernel)(P...)) {
    const Body body = [](void (*kernel)(), const void* const* arguments) {
        call(reinterpret_cast<void (*)(P...)>(kernel), arguments, std::index_sequence_for<P...>());
    };
    return {name, reinterpret_cast<void (*)()>(kernel), body, {sizeof(P)...}};
}

#define KERNEL(name) bind(#name, name)
#define BOTH(name) KERNEL(name##_f16), KERNEL(name##_bf16)
#define TILES(name) KERNEL(name##_f16_16), KERNEL(name##_f16_64), KERNEL(name##_bf16_16), KERNEL(name##_bf16_64)
const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = {
        BOTH(rms_norm),     BOTH(rope_and_write), BOTH(attention_splits),   BOTH(attention_combine), BOTH(attention_whole),
        BOTH(lora_shrink),  KERNEL(lora_expand),  BOTH(silu_mul),           BOTH(greedy_parts),      KERNEL(greedy_parts_f32),
        KERNEL(greedy_pick), KERNEL(rms_norm_f32), KERNEL(add_bias),
        TILES(linear_f32),  TILES(linear_f16),    TILES(linear_bf16),       TILES(linear_q4_0),      TILES(linear_q4_1),
        TILES(linear_q5_0), TILES(linear_q5_1),   TILES(linear_q8_0),       TILES(linear_q4_k),      TILES(linear_q5_k),
        TILES(linear_q6_k),
        KERNEL(fault_barrier), KERNEL(fault_exchange), KERNEL(fault_index), KERNEL(fault_alignment), KERNEL(fault_race),
        KERNEL(fault_warp), KERNEL(fault_matrix_place), KERNEL(fault_matrix_lines), KERNEL(fault_matrix_race),
    };
    return all;
}

// Where something is wrong, as the compiler's checks tell it.
struct SourceLocation {
    const char* file;
    uint32_t line;
    uint32_t column;
};

}  // namespace

void wait_for_block(int line) {
    device->fiber->line = line;
    device->fiber->state = State::WaitsForBlock;
    pause();
}

void wait_for_warp(int line) {
    device->fiber->line = line;
    device->fiber->state = State::WaitsForWarp;
    pause();
}

void refuse_matrix(const char* why, int line) {
    fail("a matrix of line %d %s", line, why);
    pause();
    std::abort();
}

using Eight = float __attribute__((vector_size(32)));

void multiply(float* sums, const float* left, const float* right, const float* before, int line) {
    const Device& own = *device;
    const unsigned lane = own.thread % WARP, first = own.thread - lane;
    if (first + WARP > blockDim.x) refuse_matrix("is multiplied by a part of a warp", line);
    own.fiber->left = left;
    own.fiber->right = right;
    wait_for_warp(line);
    Eight added, next;
    std::memcpy(&added, before, sizeof added);
    for (unsigned k = 0; k < 16; ++k) {
        std::memcpy(&next, own.fibers[first + 2 * k + lane % 2]->right, sizeof next);
        added += own.fibers[first + lane / 2 * 2 + k / 8]->left[k % 8] * next;
    }
    std::memcpy(sums, &added, sizeof added);
    // No lane takes new matrices before all have multiplied these.
    wait_for_warp(line);
}

uint32_t exchange(uint32_t bits, unsigned lanes, int apart, int line) {
    if (lanes != ALL_LANES) {
        fail("the exchange of line %d is not one of all lanes", line);
        pause();
    }
    Fiber& fiber = *device->fiber;
    const unsigned other = device->thread ^ unsigned(apart);
    // Brought, then taken: no lane brings anew before all have taken.
    for (int turn = 0; turn < 2; ++turn) {
        if (turn == 0) fiber.bits = bits;
        if (turn == 1) bits = other < blockDim.x ? device->fibers[other]->bits : bits;
        wait_for_warp(line);
    }
    return bits;
}

}  // namespace host

extern "C" {

// Called by what the compiler puts before an index or a load; never returns to it.
void __ubsan_handle_out_of_bounds(void* where, void* index) {
    const auto* at = static_cast<const host::SourceLocation*>(where);
    host::fail("%s:%u: index %td is beyond an array", at->file, at->line, reinterpret_cast<ptrdiff_t>(index));
    host::pause();
}
void __ubsan_handle_type_mismatch_v1(void* where, void* pointer) {
    const auto* at = static_cast<const host::SourceLocation*>(where);
    host::fail("%s:%u: %p is no place for what is read or written", at->file, at->line, pointer);
    host::pause();
}

// Mirrored by the tests.
struct Launch {
    const char* kernel;
    unsigned grid[3];
    unsigned block;
    int backwards;  // 1: blocks, warps and their lanes, last first
    const void* const* arguments;
    const size_t* sizes;  // of the arguments, in bytes
    size_t count;         // of the arguments
};

// Null, or what went wrong: to be read before the next launch of this thread.
const char* chorus_launch(const Launch* launch) {
    static thread_local std::unique_ptr<host::Device> owned{new host::Device};
    host::device = owned.get();
    host::Device& device = *owned;
    device.error.clear();
    device.kernel = nullptr;
    for (const host::Kernel& kernel : host::kernels()) {
        if (std::strcmp(kernel.name, launch->kernel) == 0) device.kernel = &kernel;
    }
    if (device.kernel == nullptr) return "there is no such kernel";
    const std::vector<size_t> sizes(launch->sizes, launch->sizes + launch->count);
    if (sizes != device.kernel->sizes) return "the arguments are not of the sizes of the parameters";
    device.arguments = launch->arguments;
    while (device.fibers.size() < launch->block) device.fibers.emplace_back(new host::Fiber);
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    blockDim = {launch->block, 1, 1};
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    for (unsigned i = 0; i < blocks && device.error.empty(); ++i) {
        const unsigned block = launch->backwards ? blocks - 1 - i : i;
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        host::run_block(launch->block, launch->backwards != 0);
    }
    if (device.error.empty()) return nullptr;
    // They are in the middle of a kernel.
    device.fibers.clear();
    return device.error.c_str();
}

// The conversions by themselves.
float chorus_widen_f16(uint16_t bits) { return __half2float({bits}); }
uint16_t chorus_narrow_f16(float x) { return __float2half_rn(x).bits; }
uint16_t chorus_narrow_bf16(float x) { return __float2bfloat16_rn(x).bits; }
}
