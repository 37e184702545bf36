// Runs the CUDA branch of a kernel on a CPU, thread by thread (g++ -include simt.h kernel.cu). Every CUDA thread is a
// fiber: it runs undisturbed up to a warp collective or barrier, then the next lane runs, in the order that the launch
// names. A result that changes with that order is a race. A lane that does not come to a collective is an error that
// names the kernel, not a hang. Shared memory is poisoned before each block. It shows nothing about a GPU's speed,
// its approximate arithmetic or the order of blocks.
#pragma once
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __CUDACC__ 13      // after the system's headers, some of which look at it
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("simt_shared")))

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker's names for the ends of that section; null where no kernel has shared memory.
extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

namespace simt {

constexpr int MOST_THREADS = 128, WARP = 32;
constexpr size_t STACK = 64 << 10, GUARD = 64 << 10;     // a guard of the largest page size in use

// ---- fibers ----

struct Context {
#ifdef SIMT_UCONTEXT
    ucontext_t registers;
#else
    void* stack_pointer;
#endif
    char* stack;
    void* fake_stack;      // AddressSanitizer's
};

#ifndef SIMT_UCONTEXT
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
#endif

__attribute__((noinline)) static void switch_fiber(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, STACK);
#endif
#ifdef SIMT_UCONTEXT
    swapcontext(&from.registers, &to.registers);
#else
    simt_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
    if (&to != &from && !from.stack) from.stack = nullptr;
#endif
}

static void prepare(Context& fiber, void (*entry)()) {
#ifdef SIMT_UCONTEXT
    getcontext(&fiber.registers);
    fiber.registers.uc_stack = {fiber.stack, 0, STACK};
    makecontext(&fiber.registers, entry, 0);
#else
    void** top = (void**)(fiber.stack + STACK);
    memset(top - 8, 0, 8 * sizeof *top);     // six registers, the entry, and a return address that is never used
    top[-2] = (void*)entry;
    fiber.stack_pointer = top - 8;
#endif
}
