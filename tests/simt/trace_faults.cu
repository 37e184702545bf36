// Kernels with one seeded fault each in how they use memory, that tracing must show, beside some that are right.
#include "../../kernels/grid.cuh"

// Right: a row copies 96 floats.
KERNEL copied(long long rows, const float* x, float* y) {
    ROWS(r, rows) LANES(i, 96) y[r * 96 + i] = x[r * 96 + i];
}

// Rows r and r + 8 write one element.
KERNEL shared_element(long long rows, float* y) {
    ROWS(r, rows) LANES(i, 1) y[r % 8] = 1.0f;
}

// Row r also writes the last byte of what row r - 1 wrote.
KERNEL shared_byte(long long rows, unsigned char* y) {
    ROWS(r, rows) LANES(i, r ? 33 : 32) y[r * 32 + 31 - i] = 1;
}

// A row reads 32 floats, `stride` apart and from `offset` on.
KERNEL strided(long long rows, const float* x, float* y, int stride, int offset) {
    ROWS(r, rows) LANES(i, 32) y[r * 32 + i] = x[(r * 32 + i) * stride + offset];
}

KERNEL const_written(long long rows, const float* x, float* y) {
    ROWS(r, rows) LANES(i, 32) {
        y[r * 32 + i] = x[i];
        if (r == 3 && i == 5) const_cast<float*>(x)[i] = 0.0f;
    }
}

// Right: twice a row copies the same 36 floats: only lanes below 4 have a second turn, before all come to the second copy.
KERNEL copied_twice(long long rows, const float* x, float* y) {
    ROWS(r, rows) {
        int copy = 0;
        while (copy < 2) {
            LANES(i, 36) y[(r * 2 + copy) * 36 + i] = x[i];
            ++copy;
        }
    }
}
