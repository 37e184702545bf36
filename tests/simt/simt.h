// Runs the CUDA branch of a kernel on a CPU, thread by thread (c++ -include simt.h). Every CUDA thread is a fiber: it runs
// undisturbed to a warp collective, then the next lane runs, in the order that the launch names. A result that changes
// with the order is a race; a lane that does not come to a collective is an error, not a hang. Shared memory is poisoned
// before each block. It shows nothing about a GPU's speed, its approximate arithmetic, or the order of blocks.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xmmintrin.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __CUDACC__      // after the system's headers
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("simt_shared")))
#define __syncwarp() simt::meet()
#define __shfl_xor_sync(mask, value, lane) simt::exchange(mask, value, lane)

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker's names for the ends of the shared section; absent where no kernel has shared memory.
extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

namespace simt {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10, GUARD = 4 << 10;

enum State { ready, waiting, returned };
struct Fiber {
    void* stack_pointer;
    char* stack;
    void* fake_stack;      // AddressSanitizer's
    State state;
    float offered;         // to a shuffle
};

static Fiber fibers[WARP], scheduler;
static int lane;                  // that runs now
static const char* problem;       // the first one of a launch
static void (*body)(void*);
static void* argument;

// Pushes the registers that a function must preserve, exchanges the stacks, pops the other fiber's.
extern "C" void simt_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden simt_switch
    .globl simt_switch
    .type simt_switch, @function
simt_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .size simt_switch, .-simt_switch
)");

static void change(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
    static const void* bottom = nullptr;
    static size_t size = 0;
    const bool home = &to == &scheduler;
    __sanitizer_start_switch_fiber(from.state == returned && home ? nullptr : &from.fake_stack, home ? bottom : to.stack, home ? size : STACK);
#endif
    simt_switch(&from.stack_pointer, to.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    const void* left;
    size_t room;
    __sanitizer_finish_switch_fiber(from.fake_stack, &left, &room);
    if (&from != &scheduler && !size) bottom = left, size = room;
#endif
}

static void thread() {
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
#endif
    body(argument);
    fibers[lane].state = returned;
    change(fibers[lane], scheduler);
}

static void start(Fiber& fiber) {
    if (!fiber.stack) {
        char* memory = (char*)mmap(nullptr, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(memory, GUARD, PROT_NONE);
        fiber.stack = memory + GUARD;
    }
    fiber.state = ready;
    fiber.fake_stack = nullptr;
    void** top = (void**)(fiber.stack + STACK);
    memset(top - 8, 0, 8 * sizeof *top);      // six registers, the entry, and a return address that is never used
    top[-2] = (void*)thread;
    fiber.stack_pointer = top - 8;
}

// Until all 32 lanes of the warp have come here.
static void meet() {
    fibers[lane].state = waiting;
    change(fibers[lane], scheduler);
}

static float exchange(unsigned mask, float value, int with) {
    if (mask != 0xffffffffu && !problem) problem = "a shuffle whose mask is not the whole warp";
    fibers[lane].offered = value;
    meet();
    const float taken = fibers[lane ^ with].offered;
    meet();
    return taken;
}

// order: 0 ascending, 1 descending, else a permutation that changes with every turn.
static int pick(int turn, int order, unsigned seed) {
    if (order == 0) return turn;
    if (order == 1) return WARP - 1 - turn;
    return (int)((turn * (2 * (seed % 16) + 1) + seed / 16) % WARP);      // an odd factor permutes 32 lanes
}

static void run_warp(int order, unsigned& seed) {
    for (int i = 0; i < WARP; ++i) start(fibers[i]);
    for (int left = WARP; left;) {
        seed = seed * 1664525u + 1013904223u;
        for (int turn = 0; turn < WARP; ++turn) {
            lane = pick(turn, order, seed >> 16);
            if (fibers[lane].state != ready) continue;
            threadIdx.x = threadIdx.x / WARP * WARP + lane;
            change(scheduler, fibers[lane]);
            left -= fibers[lane].state == returned;
        }
        // Now each lane waits or has returned; all must have done the same.
        if (left && left < WARP) {
            if (!problem) problem = "some lanes of a warp wait at a collective that others never reach";
            return;
        }
        for (Fiber& fiber : fibers)
            if (fiber.state == waiting) fiber.state = ready;
    }
}

template <class F> static const char* launch(int blocks, int threads, int order, F call) {
    body = [](void* f) { (*(F*)f)(); };
    argument = &call;
    problem = nullptr;
    gridDim = {(unsigned)blocks, 1, 1};
    blockDim = {(unsigned)threads, 1, 1};
    unsigned seed = 12345;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);      // denormals are zero, as -ftz=true makes them
    for (int b = 0; b < blocks; ++b) {
        const int block = order == 1 ? blocks - 1 - b : b;
        if (__start_simt_shared) memset(__start_simt_shared, 0xff, __stop_simt_shared - __start_simt_shared);
        for (int w = 0; w < threads / WARP; ++w) {
            blockIdx = {(unsigned)block, 0, 0};
            threadIdx = {(unsigned)((order == 1 ? threads / WARP - 1 - w : w) * WARP), 0, 0};
            run_warp(order, seed);
        }
    }
    _mm_setcsr(before);
    return problem;
}

}  // namespace simt
