// to += other. The cores' private weight gradients are summed with it, in a fixed order.
#include "grid.cuh"

constexpr int BLOCK = 1024;

// rows = ceil(count / BLOCK)
KERNEL add(long long rows, float* to, const float* other, long long count) {
    ROWS(r, rows) {
        const int n = count - r * BLOCK < BLOCK ? (int)(count - r * BLOCK) : BLOCK;
        float* t = to + r * BLOCK;
        const float* f = other + r * BLOCK;
        LANES(i, n) t[i] += f[i];
    }
}
