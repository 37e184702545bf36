// The norm of all gradients together, and what brings it down to a limit (Pascanu 2013, algorithm 1, as PyTorch has it):
//   norm = root of the sum of all g^2;   g *= min(1, limit / (norm + 1e-6))
// Fixed slices are summed first, and then their sums in order, so that the bits do not depend on how many threads there are.
#include "grid.cuh"

constexpr int SLICE = 4096;
constexpr int BLOCK = 256;

// partial[r] = sum of g[i]^2 over slice r.   rows = ceil(count / SLICE)
KERNEL squares(long long rows, const float* g, float* partial, long long count) {
    ROWS(r, rows) {
        const float* gr = g + r * SLICE;
        const int n = count - r * SLICE < SLICE ? (int)(count - r * SLICE) : SLICE;
        float sum = 0;
        LANES(i, n) sum += gr[i] * gr[i];
        sum = row_sum(sum);
        LANES(i, 1) partial[r] = sum;
    }
}

// norm[0] = root of the sum of partial;   norm[1] = min(1, limit / (norm[0] + 1e-6)), NaN where that is.   rows = 1
KERNEL clip_factor(long long rows, const float* partial, float* norm, int count, float limit) {
    ROWS(r, rows) {
        float sum = 0;
        LANES(i, count) sum += partial[i];
        const float all = sqrtf(row_sum(sum)), factor = limit / (all + 1e-6f);
        LANES(i, 1) norm[0] = all;
        LANES(i, 1) norm[1] = factor > 1.0f ? 1.0f : factor;
    }
}

// g *= norm[1]; most often that is 1, and nothing is read.   rows = ceil(count / BLOCK)
KERNEL scale_gradient(long long rows, float* g, const float* norm, long long count) {
    const float factor = norm[1];
    if (factor == 1.0f) return;
    ROWS(r, rows) {
        float* gr = g + r * BLOCK;
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        LANES(i, n) gr[i] *= factor;
    }
}
