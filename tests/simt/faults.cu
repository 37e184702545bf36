// Kernels with one seeded fault each, that the executor must catch, beside some that are right. CUDA branch only.
#include "../../kernels/grid.cuh"

// x[r] counts the visits of row r.
KERNEL visits(long long rows, float* x) {
    ROWS(r, rows) LANES(i, 1) x[r] += 1.0f;
}

KERNEL sum_in_a_branch(long long rows, float* x) {
    ROWS(r, rows)
        if (MY_LANE != 5) x[r] = row_sum(1.0f);
}

KERNEL sums_in_two_branches(long long rows, float* x) {
    ROWS(r, rows)
        if (MY_LANE < 16) x[r] = row_sum(1.0f);
        else x[r] = row_sum(2.0f);
}

KERNEL lane_outside_its_mask(long long rows, float* x) {
    ROWS(r, rows) x[r] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}

KERNEL asks_outside_its_mask(long long rows, float* x) {
    ROWS(r, rows)
        if (MY_LANE < 16) x[r] = __shfl_xor_sync(0x0000ffffu, 1.0f, 16);
}

KERNEL half_warps(long long rows, float* x) {
    ROWS(r, rows) {
        const float v = (float)MY_LANE;
        if (MY_LANE < 16) x[r * 32 + MY_LANE] = __shfl_xor_sync(0x0000ffffu, v, 15);
        else x[r * 32 + MY_LANE] = __shfl_xor_sync(0xffff0000u, v, 15);
    }
}

KERNEL barrier_in_a_row(long long rows, float* x) {
    ROWS(r, rows) {
        x[r] = 1.0f;
        __syncthreads();
    }
}

KERNEL barrier_of_all(long long rows, float* x) {
    __shared__ float seen[4];
    seen[threadIdx.x >> 5] = 1.0f;
    __syncthreads();
    ROWS(r, rows) LANES(i, 1) x[r] = seen[0] + seen[1] + seen[2] + seen[3];
}

template <bool SYNC> DEVICE void neighbour(long long rows, const float* x, float* y, float (*own)[32]) {
    float* scratch = own[threadIdx.x >> 5];
    ROWS(r, rows) {
        LANES(i, 32) scratch[i] = x[r * 32 + i];
        if (SYNC) row_sync();
        LANES(i, 32) y[r * 32 + i] = scratch[(i + 1) % 32];
        if (SYNC) row_sync();
    }
}
KERNEL neighbour_synced(long long rows, const float* x, float* y) {
    __shared__ float scratch[ROWS_PER_BLOCK][32];
    neighbour<true>(rows, x, y, scratch);
}
KERNEL neighbour_race(long long rows, const float* x, float* y) {
    __shared__ float scratch[ROWS_PER_BLOCK][32];
    neighbour<false>(rows, x, y, scratch);
}

// All lanes write one element.
KERNEL lanes_race(long long rows, float* x) {
    ROWS(r, rows) x[r] = (float)MY_LANE;
}

// Rows r and r + 8, which lie in different blocks, write one element.
KERNEL rows_race(long long rows, float* x) {
    ROWS(r, rows) LANES(i, 1) x[r % 8] = (float)r;
}

KERNEL missing_write(long long rows, float* x) {
    ROWS(r, rows) LANES(i, 31) x[r * 32 + i] = 0.0f;
}

KERNEL stale_scratch(long long rows, float* x) {
    ROW_SCRATCH(float, scratch, 32);
    ROWS(r, rows) LANES(i, 32) x[r * 32 + i] = scratch[i];
}

KERNEL half_of(long long rows, float* x) {
    ROWS(r, rows) LANES(i, 1) x[r] *= 0.5f;
}

// n is 32: one lane reads past the end of x; with n = 31 it is right.
KERNEL past_the_end(long long rows, const float* x, float* y, int n) {
    ROWS(r, rows) LANES(i, n) y[i] = x[i + 1];
}
KERNEL past_the_scratch(long long rows, float* y, int n) {
    ROW_SCRATCH(float, scratch, 31);
    ROWS(r, rows) LANES(i, n) y[i] = scratch[i + 4 * 31 - 31 * (int)(threadIdx.x >> 5) - 32] = 1.0f;
}

// With enough rows, the place in x leaves the range of an int.
KERNEL int_index(long long rows, float* x, int channels) {
    ROWS(r, rows) LANES(i, channels) x[(int)r * channels + i] = 1.0f;
}

// Right where x starts at a multiple of four floats.
KERNEL four_at_once(long long rows, const float* x, float* y) {
    ROWS(r, rows) lanes(true, 64, [&](auto c) { store(y + r * 64, c, load(x + r * 64, c)); });
}
KERNEL four_from_scratch(long long rows, float* x, int start) {
    ROW_SCRATCH(float, scratch, 132);
    ROWS(r, rows) {
        LANES(i, 132) scratch[i] = (float)i;
        row_sync();
        lanes(true, 128, [&](auto c) { store(x + r * 128, c, load(scratch + start, c)); });
    }
}
