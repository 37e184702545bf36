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
//                                       load, load_int, splat, select, store, divide and inverse_power work on a whole
//                                       vector register on a CPU and on one float in a GPU's thread
//   lanes(wide, n, [&](auto c) {...})   the same, on four floats in a GPU's thread if `wide`: then what the body loads and
//                                       stores must lie on multiples of four floats, as fours(step, p, ...) says of the
//                                       places `step` floats apart from p, or from each of several pointers
//   sum_around(p, c, half)              in lanes: the sum of p[c + d] over -half <= d <= half
//   copy(wide, to, from, n)             to[i] = from[i] for n floats; clear(wide, to, n) sets them to 0
//   copy_runs(wide, to, from, pitch, runs, n)    to[i * n + j] = from[i * pitch + j]
//   copy_windows(wide, to, to_step, from, from_step, windows, runs, n, place)    to[i * n + j] = from[place(i) + j], and
//                                       again for each window, from_step floats on, to to_step floats on
//   UNROLL for (...)                    a loop whose arrays a GPU keeps in registers, so that its length must be known
//   ROLLED for (...)                    a loop of few turns, of which a GPU's compiler should not make four at a time
//   divide(a, b)                        a / b; of whole numbers, not negative, a GPU is quick below 2^20; of floats 2 ulp off
//   row_sum(v), row_max(v)              over the lanes of the row, in a fixed order
//   ROW_SCRATCH(float, name, n)         n floats that the lanes of a row share; row_sync() between writing and reading
//   CACHED                              whether what a row reads again and again is as near as its scratch
#pragma once

#define LOWEST (-3.402823466e+38f)

template <int N> struct Lane {
    static constexpr int width = N;
    int i;
};

#ifdef __CUDACC__

#define ROWS_PER_BLOCK 4
// Ten blocks on a multiprocessor, 40 warps: left to itself, ptxas spills a few registers to reach 64 warps. A file whose kernels hold more
// in registers says how many blocks leave room for that.
#ifndef BLOCKS
#define BLOCKS 10
#endif
#define KERNEL extern "C" __global__ void __launch_bounds__(32 * ROWS_PER_BLOCK, BLOCKS)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define DEVICE static __device__ __forceinline__
#define MY_LANE ((int)(threadIdx.x & 31))
#define ROWS(r, rows) \
    for (long long r = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 5, r##_grid_step = ((long long)gridDim.x * blockDim.x) >> 5; \
         r < (rows); r += r##_grid_step)
#define LANES(c, n) for (int c = MY_LANE, c##_end = (n); c < c##_end; c += 32)
#define RUNS(i, j, runs, n) for (int i = MY_LANE / (n), j = MY_LANE % (n); i < (runs); next_run(i, j, n))
#define ROW_SCRATCH(type, name, n) alignas(16) __shared__ type name##_of_block[ROWS_PER_BLOCK][n]; type* name = name##_of_block[threadIdx.x >> 5]

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

constexpr bool CACHED = false;

// Four neighbours, which a thread reads and writes at once; a GPU has no such access but at a multiple of their size.
template <class T> struct Four { T x, y, z, w; };
template <class T> DEVICE Four<T> four(T x, T y, T z, T w) { return Four<T>{x, y, z, w}; }
template <class T> DEVICE Four<T> four(T v) { return Four<T>{v, v, v, v}; }
template <class F, class T> DEVICE auto each(Four<T> v, F f) { return four(f(v.x), f(v.y), f(v.z), f(v.w)); }
#define OF_FOURS(op) \
    template <class T> DEVICE auto operator op(Four<T> a, Four<T> b) { return four(a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w); } \
    template <class T> DEVICE auto operator op(Four<T> a, T b) { return a op four(b); } \
    template <class T> DEVICE auto operator op(T a, Four<T> b) { return four(a) op b; }
OF_FOURS(+) OF_FOURS(-) OF_FOURS(*) OF_FOURS(<=) OF_FOURS(==) OF_FOURS(!=) OF_FOURS(|)
#undef OF_FOURS
DEVICE void operator+=(Four<float>& a, Four<float> b) { a = a + b; }

template <class... T> DEVICE bool fours(int step, const T*... p) {
    return step % 4 == 0 && (((unsigned long long)p % (4 * sizeof(T))) + ... + 0) == 0;
}
template <class F> DEVICE void lanes(int n, F body) { ROLLED LANES(c, n) body(Lane<1>{c}); }
template <class F> DEVICE void lanes(bool wide, int n, F body) {
    const int whole = wide ? n & ~3 : 0;
    ROLLED for (int c = 4 * MY_LANE; c < whole; c += 4 * 32) body(Lane<4>{c});
    ROLLED for (int c = whole + MY_LANE; c < n; c += 32) body(Lane<1>{c});
}
template <class T> DEVICE T load(const T* p, Lane<1> c) { return p[c.i]; }
template <class V, class T> DEVICE Four<T> load_as(const T* p) {
    const V v = *(const V*)p;
    return Four<T>{v.x, v.y, v.z, v.w};
}
DEVICE Four<float> load(const float* p, Lane<4> c) { return load_as<float4>(p + c.i); }
DEVICE Four<unsigned char> load(const unsigned char* p, Lane<4> c) { return load_as<uchar4>(p + c.i); }
template <class T> DEVICE void store(T* p, Lane<1> c, T v) { p[c.i] = v; }
DEVICE void store(float* p, Lane<4> c, Four<float> v) { *(float4*)(p + c.i) = float4{v.x, v.y, v.z, v.w}; }
DEVICE int load_int(const unsigned char* p, Lane<1> c) { return p[c.i]; }
DEVICE Four<int> load_int(const unsigned char* p, Lane<4> c) { return each(load(p, c), [](unsigned char v) { return (int)v; }); }
DEVICE void store(unsigned char* p, Lane<1> c, int v) { p[c.i] = (unsigned char)v; }
DEVICE void store(unsigned char* p, Lane<4> c, Four<int> v) {
    *(uchar4*)(p + c.i) = uchar4{(unsigned char)v.x, (unsigned char)v.y, (unsigned char)v.z, (unsigned char)v.w};
}
template <class T> DEVICE T splat(Lane<1>, T v) { return v; }
template <class T> DEVICE Four<T> splat(Lane<4>, T v) { return four(v); }
template <class T> DEVICE T select(bool m, T a, T b) { return m ? a : b; }
template <class M, class T> DEVICE Four<T> select(Four<M> m, Four<T> a, Four<T> b) {
    return four(m.x ? a.x : b.x, m.y ? a.y : b.y, m.z ? a.z : b.z, m.w ? a.w : b.w);
}

// (a + 0.5) / b is at least 0.5 / b from the next whole number; of a < 2^20, 2 ulp are half of that.
DEVICE unsigned divide(unsigned a, unsigned b) { return a < 1u << 20 ? (unsigned)__fdividef(a + 0.5f, (float)b) : a / b; }
DEVICE int divide(int a, int b) { return (int)divide((unsigned)a, (unsigned)b); }
DEVICE float divide(float a, float b) { return __fdividef(a, b); }
DEVICE float inverse_root(float v) { return rsqrtf(v); }
DEVICE float square_root(float v) { return v > 0 ? v * rsqrtf(v) : v; }      // 0 times infinity is NaN
DEVICE float power(float v, float e) { return exp2f(e * log2f(v)); }      // of v > 0: 1e-6 off, with a third of powf's registers
DEVICE Four<float> divide(Four<float> a, Four<float> b) { return four(divide(a.x, b.x), divide(a.y, b.y), divide(a.z, b.z), divide(a.w, b.w)); }
DEVICE Four<float> divide(float a, Four<float> b) { return divide(four(a), b); }
DEVICE Four<float> inverse_root(Four<float> v) { return each(v, [](float v) { return rsqrtf(v); }); }
DEVICE Four<float> square_root(Four<float> v) { return each(v, [](float v) { return square_root(v); }); }
DEVICE Four<float> power(Four<float> v, float e) { return each(v, [=](float v) { return power(v, e); }); }

DEVICE float sum_around(const float* p, Lane<1> c, int half) {
    float sum = p[c.i - half];
    ROLLED for (int d = 1 - half; d <= half; ++d) sum += p[c.i + d];
    return sum;
}
DEVICE Four<float> sum_around(const float* p, Lane<4> c, int half) {
    if (half == 2) {      // of the twelve around it, each read once
        const Four<float> a = load(p - 4, c), b = load(p, c), d = load(p + 4, c);
        const float left = a.w + b.x, middle = b.y + b.z, right = b.w + d.x;
        return four(a.z + left + middle, left + middle + b.w, b.x + middle + right, middle + right + d.y);
    }
    Four<float> sum = four(0.0f);
    ROLLED for (int i = c.i - half; i <= c.i + half; ++i) sum += four(p[i], p[i + 1], p[i + 2], p[i + 3]);
    return sum;
}

// Two turns at a time: the second load is asked for before the first has come. (Pointers go along: NVRTC writes four floats at a place that it
// has to add up one by one.)
DEVICE void copy(bool wide, float* to, const float* from, int n) {
    const int whole = wide ? n & ~3 : 0;
    const Lane<4> here = {0};
    const float* p = from + 4 * MY_LANE;
    float* q = to + 4 * MY_LANE;
    int c = 0;
    ROLLED for (; c + 256 <= whole; c += 256, p += 256, q += 256) {
        const Four<float> a = load(p, here), b = load(p + 128, here);
        store(q, here, a);
        store(q + 128, here, b);
    }
    ROLLED for (c += 4 * MY_LANE; c < whole; c += 128, p += 128, q += 128) store(q, here, load(p, here));
    ROLLED for (c = whole + MY_LANE; c < n; c += 32) to[c] = from[c];
}
DEVICE void clear(bool wide, float* to, int n) {
    lanes(wide, n, [&](auto c) { store(to, c, splat(c, 0.0f)); });
}
// A thread steps its run i and its place j there along without dividing.
template <int N> DEVICE void copy_runs_by(float* to, const float* from, int pitch, int runs, int n) {
    const int down = divide(32 * N, n), right = 32 * N - down * n;
    int i = divide(N * MY_LANE, n), j = N * MY_LANE - i * n;
    for (to += N * MY_LANE; i < runs; to += 32 * N) {
        store(to, Lane<N>{0}, load(from, Lane<N>{i * pitch + j}));
        i += down;
        if ((j += right) >= n) j -= n, ++i;
    }
}
DEVICE void copy_runs(bool wide, float* to, const float* from, int pitch, int runs, int n) {
    if (wide) copy_runs_by<4>(to, from, pitch, runs, n);
    else copy_runs_by<1>(to, from, pitch, runs, n);
}
// A thread has the same places of each copy.
DEVICE float gather(const float* p, const int* at, Lane<1>) { return p[at[0]]; }
DEVICE Four<float> gather(const float* p, const int* at, Lane<4>) { return four(p[at[0]], p[at[1]], p[at[2]], p[at[3]]); }
template <class F> DEVICE void copy_windows(bool wide, float* to, int to_step, const float* from, int from_step, int windows, int runs, int n, F place) {
    lanes(wide, runs * n, [&](auto c) {
        constexpr int N = decltype(c)::width;
        int at[N], i = divide(c.i, n), j = c.i - i * n;
        UNROLL for (int k = 0; k < N; ++k) {
            at[k] = place(i) + j;
            if (++j == n) j = 0, ++i;
        }
        const Lane<N> here = {0};
        const float* p = from;
        float* q = to + c.i;
        ROLLED for (int t = 0; t < windows; ++t, q += to_step, p += from_step) store(q, here, gather(p, at, c));
    });
}

#else

#include <math.h>

#define KERNEL extern "C" void
#define UNROLL
#define ROLLED
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
constexpr bool CACHED = true;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

template <class T, int N> struct vector_of { typedef T type __attribute__((vector_size(N * sizeof(T)))); };
template <class T> struct vector_of<T, 1> { typedef T type; };
template <class T, int N> using vector = typename vector_of<T, N>::type;

template <class F> DEVICE void lanes(int n, F body) {
    int c = 0;
    for (; c + WIDTH <= n; c += WIDTH) body(Lane<WIDTH>{c});
    for (; c < n; ++c) body(Lane<1>{c});
}
template <class F> DEVICE void lanes(bool, int n, F body) { lanes(n, body); }
template <class... T> DEVICE bool fours(int, const T*...) { return false; }
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
template <class A, class B> DEVICE auto divide(A a, B b) { return a / b; }
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

template <class V> DEVICE V inverse_root(V v) { return 1.0f / square_root(v); }
#if defined(__AVX__)
// A first guess of 12 bits, and a step of Newton's: 3e-7 off, in a fifth of the time of a root and a division. Of 0 and infinity the guess is exact,
// and the step would make NaN of it.
DEVICE vector<float, 8> inverse_root(vector<float, 8> v) {
    const vector<float, 8> r = __builtin_ia32_rsqrtps256(v);
    return select((v > 0.0f) & (v <= -LOWEST), r * (1.5f - 0.5f * v * r * r), r);
}
DEVICE vector<float, 8> square_root(vector<float, 8> v) { return select((v > 0.0f) & (v <= -LOWEST), v * inverse_root(v), v); }
#endif
template <int N> DEVICE vector<float, N> sum_around(const float* p, Lane<N> c, int half) {
    auto sum = load(p - half, c);
    for (int d = 1 - half; d <= half; ++d) sum += load(p + d, c);
    return sum;
}

DEVICE void copy(bool, float* to, const float* from, int n) { LANES(c, n) to[c] = from[c]; }
DEVICE void clear(bool, float* to, int n) { LANES(c, n) to[c] = 0.0f; }
DEVICE void copy_runs(bool, float* to, const float* from, int pitch, int runs, int n) {
    for (int i = 0; i < runs; ++i) LANES(j, n) to[i * n + j] = from[i * pitch + j];
}
template <class F> DEVICE void copy_windows(bool, float* to, int to_step, const float* from, int from_step, int windows, int runs, int n, F place) {
    for (int t = 0; t < windows; ++t, to += to_step, from += from_step)
        for (int i = 0; i < runs; ++i) LANES(j, n) to[i * n + j] = from[place(i) + j];
}

#endif

// v^-e; the exponents that networks use have their own path, as powf takes nine times as long.
template <class V> DEVICE V inverse_power(V v, float e) {
    if (e == 0.75f) {
        V r = inverse_root(v);
        return r * square_root(r);
    }
    if (e == 0.5f) return inverse_root(v);
    if (e == 1.0f) return divide(1.0f, v);
    return power(v, -e);
}
