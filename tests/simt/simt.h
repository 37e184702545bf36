// Runs the CUDA branch of a kernel on a CPU, thread by thread: this text goes in front of a .cu file for the C++ compiler.
//
// Every CUDA thread is a fiber. It runs undisturbed up to a warp collective or barrier; then the next one runs, in the
// order that the launch asks for. A result that changes with that order is a race. A lane that does not come where
// others wait for it is an error that names the kernel, never a hang. Shared memory is poisoned before each block.
// Of a GPU's speed, approximate arithmetic and memory ordering this shows nothing.
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
#define SIMT_SWITCH
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(...) __VA_ARGS__
#else
#define ASAN(...)
#endif

#define __CUDACC__ 1       // only now: the system's headers look at it
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("simt_shared")))

struct dim3 { unsigned x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

// Where the linker put that section; null without shared memory.
extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

namespace simt {

constexpr int WARP = 32, LARGEST_BLOCK = 128;
constexpr size_t STACK = 64 << 10, GUARD = 64 << 10;      // GUARD: the largest page in use

// ---- Fibers: a stack each, and a switch between them ----

struct Context {
#ifdef SIMT_SWITCH
    void* stack_pointer;
#else
    ucontext_t registers;
#endif
    const void* stack;
    size_t size;
    void* fake_stack;      // AddressSanitizer's
};

#ifdef SIMT_SWITCH
// Pushes the registers that a function must preserve, changes the stack, and pops those of the fiber found there.
extern "C" void simt_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl simt_switch
    .hidden simt_switch
    .type simt_switch, @function
simt_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
    .size simt_switch, .-simt_switch
)");
#endif

static void switch_fiber(Context& from, Context& to) {
    ASAN(__sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);)
#ifdef SIMT_SWITCH
    simt_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.registers, &to.registers);
#endif
    ASAN(__sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);)
}

static void start_at(Context& fiber, void (*entry)()) {
    ASAN(__asan_unpoison_memory_region(fiber.stack, fiber.size);)      // frames of an abandoned launch
#ifdef SIMT_SWITCH
    void** top = (void**)((char*)fiber.stack + fiber.size);
    memset(top - 8, 0, 8 * sizeof *top);       // six registers, the entry, and a return address that nothing uses
    top[-2] = (void*)entry;
    fiber.stack_pointer = top - 8;
#else
    getcontext(&fiber.registers);
    fiber.registers.uc_stack.ss_sp = (void*)fiber.stack;
    fiber.registers.uc_stack.ss_size = fiber.size;
    makecontext(&fiber.registers, entry, 0);
#endif
}

// ---- The threads of a block ----

enum State { READY, WAITING, RETURNED };
struct Thread {
    Context context;
    State state;
    // What it waits at: a call (its return address tells two calls apart), and the lanes it must meet there.
    const char* call;
    const void* site;
    int first, count;
    unsigned mask, source;      // source: the lane whose value it asks for
    uint64_t value, result;
};

static Thread thread[LARGEST_BLOCK];
static Context scheduler;
static int current, threads;      // the thread that runs, and how many a block has
static const char* kernel;
static void (*body)(const void*);
static const void* arguments;
static char error[400];
static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;

static void fail(int t, const char* format, ...) {
    va_list values;
    va_start(values, format);
    const int length = snprintf(error, sizeof error, "%s: block %u, warp %d: lane %d ", kernel, blockIdx.x, t / WARP, t % WARP);
    vsnprintf(error + length, sizeof error - length, format, values);
    va_end(values);
}

static bool same_place(const Thread& a, const Thread& b) {
    return a.state == WAITING && b.state == WAITING && a.site == b.site && a.mask == b.mask;
}

// The first thread that `t` still waits for; -1 when all are there.
static int missing(int t) {
    for (int other = thread[t].first; other < thread[t].first + thread[t].count; ++other)
        if (thread[t].mask >> (other % WARP) & 1 && !same_place(thread[t], thread[other])) return other;
    return -1;
}

// Meets the lanes of `mask` in `count` threads from `first`, and returns the value that lane `source` brought.
__attribute__((noinline)) static uint64_t meet(const char* call, int first, int count, unsigned mask, uint64_t value, unsigned source) {
    Thread& self = thread[current];
    self.call = call, self.site = __builtin_return_address(0), self.first = first, self.count = count;
    self.mask = mask, self.value = value, self.source = source, self.state = WAITING;
    if (!(mask >> (current % WARP) & 1)) fail(current, "is not in the mask 0x%08x of its own %s", mask, call);
    else if (source >= WARP || !(mask >> source & 1)) fail(current, "asks lane %u, which is not in the mask 0x%08x of its %s", source, mask, call);
    else if (missing(current) < 0)
        for (int t = first; t < first + count; ++t)
            if (mask >> (t % WARP) & 1) thread[t].result = thread[first + thread[t].source].value, thread[t].state = READY;
    switch_fiber(self.context, scheduler);
    return self.result;
}

static void run_thread() {
    ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.size);)
    body(arguments);
    thread[current].state = RETURNED;
    switch_fiber(thread[current].context, scheduler);
}

static void explain_deadlock() {
    int t = 0;
    while (thread[t].state != WAITING) ++t;
    const int other = missing(t);
    const Thread& late = thread[other];
    if (late.state == RETURNED) fail(t, "waits at %s for lane %d of warp %d, which has returned", thread[t].call, other % WARP, other / WARP);
    else fail(t, "waits at %s (mask 0x%08x) for lane %d of warp %d, which waits at %s %s (mask 0x%08x)", thread[t].call, thread[t].mask,
              other % WARP, other / WARP, late.site == thread[t].site ? "the same" : "another", late.call, late.mask);
}

// Lane orders: 0 ascending, 1 descending, else a permutation.
static void set_order(int* order, unsigned seed) {
    for (int i = 0; i < threads; ++i) order[i] = seed == 1 ? threads - 1 - i : i;
    for (int i = threads - 1; seed > 1 && i > 0; --i) {
        seed = seed * 1664525u + 1013904223u;
        const int j = (seed >> 8) % (i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

__attribute__((no_sanitize("address", "thread"))) static void poison_shared_memory() {
    for (volatile char* p = __start_simt_shared; p != __stop_simt_shared; ++p) *p = -1;
}

static void run_block(const int* order) {
    poison_shared_memory();
    for (int t = 0; t < threads; ++t) start_at(thread[t].context, run_thread), thread[t].state = READY;
    for (int returned = 0; returned < threads;) {
        bool moved = false;
        for (int i = 0; i < threads; ++i) {
            current = order[i];
            if (thread[current].state != READY) continue;
            moved = true;
            threadIdx = {(unsigned)current, 0, 0};
            switch_fiber(scheduler, thread[current].context);
            if (error[0]) return;
            returned += thread[current].state == RETURNED;
        }
        if (!moved) return explain_deadlock();
    }
}

// The GPU's flush-to-zero, as CuPy asks NVRTC for it with -ftz=true.
static uint64_t float_mode() {
    uint64_t mode = 0;
#if defined(__x86_64__)
    mode = __builtin_ia32_stmxcsr();
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
#endif
    return mode;
}
static void set_float_mode(uint64_t mode) {
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(mode));
#endif
}
#if defined(__x86_64__)
constexpr uint64_t FLUSH = 0x8040;
#else
constexpr uint64_t FLUSH = 1 << 24;
#endif

// How a launch is laid out: `grid` blocks of `block` threads, of which those from first to last run, their lanes in
// the given order. Tests of huge launches run their last blocks only.
struct Shape { long long grid, block, order, first, last; };
#define SIMT_BLOCK_RANGE

// -> null, or what went wrong
static const char* launch(const char* name, void (*run)(const void*), const void* values, const Shape& shape) {
    pthread_mutex_lock(&one_launch);
    if (!thread[0].context.stack) {
        char* at = (char*)mmap(nullptr, LARGEST_BLOCK * (STACK + GUARD), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (int t = 0; t < LARGEST_BLOCK; ++t, at += STACK + GUARD) {
            mprotect(at + GUARD, STACK, PROT_READ | PROT_WRITE);
            thread[t].context.stack = at + GUARD, thread[t].context.size = STACK;
        }
    }
    kernel = name, body = run, arguments = values, error[0] = 0, threads = (int)shape.block;
    blockDim = {(unsigned)threads, 1, 1}, gridDim = {(unsigned)shape.grid, 1, 1};
    int lanes[LARGEST_BLOCK];
    set_order(lanes, (unsigned)shape.order);
    const uint64_t mode = float_mode();
    set_float_mode(mode | FLUSH);
    for (long long b = shape.first; b <= shape.last && !error[0]; ++b) {
        blockIdx = {(unsigned)(shape.order ? shape.first + shape.last - b : b), 0, 0};
        run_block(lanes);
    }
    set_float_mode(mode);
    pthread_mutex_unlock(&one_launch);
    return error[0] ? error : nullptr;
}

}  // namespace simt

// What -fsanitize=alignment calls instead of its library's: a GPU has no access of four floats but at a multiple of 16 bytes.
struct Misaligned {
    const char* file;
    uint32_t line, column;
    const struct { uint16_t kind, about; char name[1]; }* type;
    uint8_t log_alignment, check;
};
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(const Misaligned* what, uintptr_t) {
    simt::fail(simt::current, "touches a %s that is not at a multiple of %d bytes", what->type->name, 1 << what->log_alignment);
    simt::switch_fiber(simt::thread[simt::current].context, simt::scheduler);
}

// ---- CUDA's built-in functions ----

static __forceinline__ float __fdividef(float a, float b) { return a / b; }
static __forceinline__ float rsqrtf(float v) { return 1 / sqrtf(v); }

template <class T> static __forceinline__ T __shfl_xor_sync(unsigned mask, T v, int step) {
    static_assert(sizeof v <= sizeof(uint64_t), "a shuffle moves 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    const int first = simt::current & -simt::WARP;
    bits = simt::meet("__shfl_xor_sync", first, simt::WARP, mask, bits, (simt::current - first) ^ step);
    memcpy(&v, &bits, sizeof v);
    return v;
}
static __forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
    const int first = simt::current & -simt::WARP;
    simt::meet("__syncwarp", first, simt::WARP, mask, 0, simt::current - first);
}
static __forceinline__ void __syncthreads() { simt::meet("__syncthreads", 0, simt::threads, 0xffffffffu, 0, simt::current % simt::WARP); }
