// Runs a subset of CUDA C++ on an x86-64 CPU, to test kernels without a GPU.
//
// One fiber a thread, with its own stack; the blocks run one after another. Covers __shared__ (poisoned before every
// block), __syncthreads, __syncwarp, shuffles, votes, and atomics; aborts where threads of a block part at a barrier.
// Does not find races within a warp or between blocks.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("block_shared")))
#define __align__(n) __attribute__((aligned(n)))

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
using std::max;
using std::min;

// The linker names the ends of the section; weak, for kernels that share nothing.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_block_shared[], __stop_block_shared[];

namespace on_cpu {

enum class State : uint8_t { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
    void* stack_pointer;
    State state;
    dim3 index;
    uint64_t published;    // what other lanes of the warp read in a shuffle
    unsigned fragments[6]; // and in a tensor-core product
};

constexpr size_t STACK = 64 << 10;
inline std::vector<Fiber> fibers;
inline std::vector<char> stacks;
inline int current = 0;
inline void* scheduler = nullptr;
inline dim3 block_index, block_size, grid_size;
inline std::function<void()> body;

[[noreturn]] inline void fail(const char* message)
{
    std::fprintf(stderr, "%s, in block %u\n", message, block_index.x);
    std::abort();
}

// Saves the registers that a callee keeps (System V ABI) and goes on with another stack.
extern "C" void on_cpu_switch(void** saved, void* next);
__asm__(".text\n.weak on_cpu_switch\n.type on_cpu_switch,@function\non_cpu_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

__attribute__((noinline)) inline void wait(State state)
{
    fibers[current].state = state;
    on_cpu_switch(&fibers[current].stack_pointer, scheduler);
}

inline void fiber_main()
{
    body();
    for (;;) wait(State::done);
}

inline void start_fiber(int i)
{
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(&stacks[(i + 1) * STACK]) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fibers[i] = {top, State::ready, {i % block_size.x, i / block_size.x, 0}, 0, {}};
}

inline int count(State state, int from, int to)
{
    return std::count_if(fibers.begin() + from, fibers.begin() + to, [=](const Fiber& f) { return f.state == state; });
}

inline void release(State state, int from, int to)
{
    for (int i = from; i < to; ++i)
        if (fibers[i].state == state) fibers[i].state = State::ready;
}

// Runs one warp until all of it waits for the block or is done.
inline void run_warp(int from, int to, bool backwards)
{
    for (;;) {
        for (int step = 0; step < to - from; ++step) {
            current = backwards ? to - 1 - step : from + step;
            if (fibers[current].state == State::ready) on_cpu_switch(&scheduler, fibers[current].stack_pointer);
        }
        const int waiting = count(State::at_warp_barrier, from, to);
        if (waiting == 0) return;
        if (waiting != to - from) fail("part of a warp does not take part in a shuffle");
        release(State::at_warp_barrier, from, to);
    }
}

inline void run_block(bool backwards)
{
    const int threads = block_size.x, warps = (threads + 31) / 32;
    if (__start_block_shared) std::memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
    for (int i = 0; i < threads; ++i) start_fiber(i);
    while (count(State::done, 0, threads) < threads) {
        for (int step = 0; step < warps; ++step) {
            const int warp = backwards ? warps - 1 - step : step;
            run_warp(warp * 32, min(threads, warp * 32 + 32), backwards);
        }
        const int waiting = count(State::at_block_barrier, 0, threads);
        if (waiting != 0 && waiting != threads) fail("part of a block does not reach a barrier");
        release(State::at_block_barrier, 0, threads);
    }
}

template <class... A, size_t... I>
void launch(void (*kernel)(A...), void** arguments, std::index_sequence<I...>, unsigned grid, unsigned block,
            bool backwards)
{
    body = [=] { kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...); };
    block_size = {block, 1, 1};
    grid_size = {grid, 1, 1};
    fibers.resize(block);
    stacks.resize((block + 1) * STACK);
    for (unsigned b = 0; b < grid; ++b) {
        block_index = {backwards ? grid - 1 - b : b, 0, 0};
        run_block(backwards);
    }
}

// As cuLaunchKernel: an array of pointers to the values of the kernel's parameters.
template <class... A>
void launch(void (*kernel)(A...), void** arguments, unsigned grid, unsigned block, bool backwards)
{
    launch(kernel, arguments, std::index_sequence_for<A...>{}, grid, block, backwards);
}

inline int lane() { return current & 31; }

template <class T>
T exchange(T value, int lane)
{
    static_assert(sizeof(T) <= 8);
    std::memcpy(&fibers[current].published, &value, sizeof(T));
    wait(State::at_warp_barrier);
    std::memcpy(&value, &fibers[(current & ~31) + (lane & 31)].published, sizeof(T));
    wait(State::at_warp_barrier);
    return value;
}

}  // namespace on_cpu

#define threadIdx (on_cpu::fibers[on_cpu::current].index)
#define blockIdx (on_cpu::block_index)
#define blockDim (on_cpu::block_size)
#define gridDim (on_cpu::grid_size)

inline void __syncthreads() { on_cpu::wait(on_cpu::State::at_block_barrier); }
inline void __syncwarp(unsigned = ~0u) { on_cpu::wait(on_cpu::State::at_warp_barrier); }
template <class T> T __shfl_sync(unsigned, T v, int from) { return on_cpu::exchange(v, from); }
template <class T> T __shfl_xor_sync(unsigned, T v, int mask) { return on_cpu::exchange(v, on_cpu::lane() ^ mask); }
template <class T> T __shfl_up_sync(unsigned, T v, int by)
{
    return on_cpu::exchange(v, on_cpu::lane() < by ? on_cpu::lane() : on_cpu::lane() - by);
}
template <class T> T __shfl_down_sync(unsigned, T v, int by)
{
    return on_cpu::exchange(v, on_cpu::lane() + by > 31 ? on_cpu::lane() : on_cpu::lane() + by);
}
template <class T> T atomicAdd(T* p, T v) { return std::exchange(*p, *p + v); }
template <class T> T atomicMax(T* p, T v) { return std::exchange(*p, std::max(*p, v)); }
template <class T> T atomicMin(T* p, T v) { return std::exchange(*p, std::min(*p, v)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
template <class T> T __ldg(const T* p) { return *p; }
inline unsigned __float_as_uint(float f) { unsigned u; std::memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(unsigned u) { float f; std::memcpy(&f, &u, 4); return f; }
