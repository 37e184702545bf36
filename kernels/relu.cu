// ReLU, in place: x = max(x, 0), where NaN stays NaN; backward passes dy on where y > 0.
#include "grid.cuh"

constexpr int BLOCK = 1024;

// rows = ceil(count / BLOCK)
KERNEL relu_in_place(long long rows, float* x, long long count) {
    ROWS(r, rows) {
        float* xr = x + r * BLOCK;
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        LANES(i, n) xr[i] = xr[i] <= 0.0f ? 0.0f : xr[i];
    }
}

// rows = ceil(count / BLOCK)
KERNEL relu_backward_in_place(long long rows, const float* y, float* dy, long long count) {
    ROWS(r, rows) {
        const float* yr = y + r * BLOCK;
        float* dyr = dy + r * BLOCK;
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        LANES(i, n) dyr[i] = yr[i] <= 0.0f ? 0.0f : dyr[i];
    }
}
