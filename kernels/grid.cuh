// Rows and lanes: the only file that knows where a kernel runs.
//
// A kernel is a loop over independent rows around a loop over contiguous lanes. On a GPU a warp owns a row and its
// threads are the lanes; on a CPU a core owns a row and its vector slots are the lanes. An op's author needs:
//
//   KERNEL name(long long rows, ...)    a kernel; DEVICE marks a function that kernels call
//   KERNEL name(unsigned rows, ...)     one that divides the numbers of its rows, in the 32 bits that a GPU divides quickly:
//                                       a launch of more rows than that is refused
//   ROWS(r, rows)                       the rows that belong to this warp or core
//   LANES(c, n)                         c = 0 .. n-1, spread over the lanes
//   RUNS(i, j, runs, n)                 i = 0 .. runs-1, j = 0 .. n-1: many short runs, still filling every lane
//   lanes(n, [&](auto c) {...})         as LANES, for bodies that keep values in registers over an inner loop: in it
//                                       load, load_int, splat, select, store and inverse_power work on a whole vector
//                                       register on a CPU and on one float in a GPU's thread
//   UNROLL for (...)                    a loop whose arrays a GPU keeps in registers, so that its length must be known
//   row_sum(v), row_max(v)              over the lanes of the row, in a fixed order
//   ROW_SCRATCH(float, name, n)         n floats that the lanes of a row share; row_sync() between writing and reading
//   stage(scratch, p, pitch, lines, n)  `lines` lines of n floats that the row reads again and again, as Lines
#pragma once

#define LOWEST (-3.402823466e+38f)

struct Lines { const float* first; long long pitch; };

#ifdef __CUDACC__

#define ROWS_PER_BLOCK 4
// Ten blocks on a multiprocessor, 40 warps: left to itself, ptxas spills a few registers to reach 64 warps. A file whose kernels hold more
// in registers says how many blocks leave room for that.
#ifndef BLOCKS
#define BLOCKS 10
#endif
#define KERNEL extern "C" __global__ void __launch_bounds__(32 * ROWS_PER_BLOCK, BLOCKS)
#define UNROLL _Pragma("unroll")
#define DEVICE static __device__ __forceinline__
#define MY_LANE ((int)(threadIdx.x & 31))
#define ROWS(r, rows) \
    for (long long r = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 5, r##_grid_step = ((long long)gridDim.x * blockDim.x) >> 5; \
         r < (rows); r += r##_grid_step)
#define LANES(c, n) for (int c = MY_LANE, c##_end = (n); c < c##_end; c += 32)
#define RUNS(i, j, runs, n) for (int i = MY_LANE / (n), j = MY_LANE % (n); i < (runs); next_run(i, j, n))
#define ROW_SCRATCH(type, name, n) __shared__ type name##_of_block[ROWS_PER_BLOCK][n]; type* name = name##_of_block[threadIdx.x >> 5]

DEVICE void next_run(int& i, int& j, int n) {
    for (j += 32; j >= n; j -= n) ++i;
}
DEVICE void row_sync() { __syncwarp(); }
DEVICE float row_sum(float v) {
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}
DEVICE float row_max(float v) {
    for (int step = 16; step; step >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// Read once, side by side, into scratch.
DEVICE Lines stage(float* scratch, const float* p, long long pitch, int lines, int n) {
    row_sync();
    if (n > 0) RUNS(i, j, lines, n) scratch[i * n + j] = p[i * pitch + j];
    row_sync();
    return Lines{scratch, n};
}

struct Lane { int i; };
template <class F> DEVICE void lanes(int n, F body) { LANES(c, n) body(Lane{c}); }
template <class T> DEVICE T load(const T* p, Lane c) { return p[c.i]; }
template <class T> DEVICE void store(T* p, Lane c, T v) { p[c.i] = v; }
DEVICE int load_int(const unsigned char* p, Lane c) { return p[c.i]; }
DEVICE void store(unsigned char* p, Lane c, int v) { p[c.i] = (unsigned char)v; }
template <class T> DEVICE T splat(Lane, T v) { return v; }
template <class T> DEVICE T select(bool m, T a, T b) { return m ? a : b; }
DEVICE float square_root(float v) { return sqrtf(v); }
DEVICE float power(float v, float e) { return powf(v, e); }

#else

#include <math.h>

#define KERNEL extern "C" void
#define UNROLL
#define DEVICE static inline __attribute__((always_inline))
#define LANES(c, n) _Pragma("omp simd") for (int c = 0; c < (n); ++c)
#define RUNS(i, j, runs, n) for (int i = 0; i < (runs); ++i) LANES(j, n)
#define ROW_SCRATCH(type, name, n) type name[n]

// A launch is cut into `grid_parts` equal slices of rows; this core has slice `grid_part` (set by the caller of the kernel).
static thread_local long long grid_part = 0, grid_parts = 1;
#define ROWS(r, rows) \
    for (long long r = (rows) * grid_part / grid_parts, r##_end = (rows) * (grid_part + 1) / grid_parts; r < r##_end; ++r)

DEVICE void row_sync() {}
DEVICE float row_sum(float v) { return v; }
DEVICE float row_max(float v) { return v; }
DEVICE Lines stage(float*, const float* p, long long pitch, int, int) { return Lines{p, pitch}; }      // the cache has them

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

template <int N> struct Lane { int i; };
template <class T, int N> struct vector_of { typedef T type __attribute__((vector_size(N * sizeof(T)))); };
template <class T> struct vector_of<T, 1> { typedef T type; };
template <class T, int N> using vector = typename vector_of<T, N>::type;

template <class F> DEVICE void lanes(int n, F body) {
    int c = 0;
    for (; c + WIDTH <= n; c += WIDTH) body(Lane<WIDTH>{c});
    for (; c < n; ++c) body(Lane<1>{c});
}
template <class T, int N> DEVICE vector<T, N> load(const T* p, Lane<N> c) {
    vector<T, N> v;
    __builtin_memcpy(&v, p + c.i, sizeof v);
    return v;
}
template <class V, int N> DEVICE void store(float* p, Lane<N> c, V v) { __builtin_memcpy(p + c.i, &v, sizeof v); }
template <int N> DEVICE vector<int, N> load_int(const unsigned char* p, Lane<N> c) {
    if constexpr (N == 1) return p[c.i];
    // By way of shorts: g++ 12 takes a step of four widths apart, byte by byte.
    else return __builtin_convertvector(__builtin_convertvector(load(p, c), vector<short, N>), vector<int, N>);
}
template <class V, int N> DEVICE void store(unsigned char* p, Lane<N> c, V v) {
    if constexpr (N == 1) p[c.i] = (unsigned char)v;
    else {
        auto bytes = __builtin_convertvector(v, vector<unsigned char, N>);
        __builtin_memcpy(p + c.i, &bytes, sizeof bytes);
    }
}
template <class T, int N> DEVICE vector<T, N> splat(Lane<N>, T v) {
    if constexpr (N == 1) return v;
    else return vector<T, N>{} + v;
}
template <class M, class V> DEVICE V select(M m, V a, V b) { return m ? a : b; }
DEVICE float square_root(float v) { return sqrtf(v); }
DEVICE float power(float v, float e) { return powf(v, e); }
template <class V> DEVICE V square_root(V v) {
    for (int i = 0; i < WIDTH; ++i) v[i] = sqrtf(v[i]);
    return v;
}
template <class V> DEVICE V power(V v, float e) {
    for (int i = 0; i < WIDTH; ++i) v[i] = powf(v[i], e);
    return v;
}

#endif

// v^-e; the exponents that networks use have their own path, as powf takes nine times as long.
template <class V> DEVICE V inverse_power(V v, float e) {
    if (e == 0.75f) {
        V r = 1.0f / square_root(v);
        return r * square_root(r);
    }
    if (e == 0.5f) return 1.0f / square_root(v);
    if (e == 1.0f) return 1.0f / v;
    return power(v, -e);
}
