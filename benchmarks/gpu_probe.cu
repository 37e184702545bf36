// What gpu_probe.py launches to measure a GPU.
#include "../kernels/grid.cuh"

// A chain of loads, each of which waits for the one before.   rows = 1
KERNEL chain(long long rows, const int* next, int* end, int loads) {
    ROWS(r, rows) {
        int at = 0;
        for (int i = 0; i < loads; i++) at = next[at];
        LANES(lane, 1) end[r] = at;
    }
}

// Next to nothing.   rows = 1
KERNEL nothing(long long rows, float* x) {
    ROWS(r, rows) LANES(lane, 1) x[r] = 0;
}
