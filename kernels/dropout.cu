// Inverted dropout, in place: x = 0 with probability p, else x * scale with scale = 1 / (1 - p). Backward is the same
// kernel on dy: the mask is a function of (seed, step, layer, element) and is drawn again instead of stored.
#include "random.cuh"

constexpr int BLOCK = 256;

// threshold = p * 2^32; first = index of x[0] in the global batch's array; now[0] = step.   rows = ceil(count / BLOCK)
KERNEL dropout_in_place(long long rows, float* x, long long count, long long first, unsigned threshold, float scale,
                        unsigned long long seed, unsigned layer, const double* now) {
    ROWS(r, rows) {
        float* xr = x + r * BLOCK;
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        const unsigned step = (unsigned)(long long)now[0];
        LANES(i, n) xr[i] = random_word(seed, first + r * BLOCK + i, layer, step) < threshold ? 0.0f : xr[i] * scale;
    }
}
