// The running mean of weights over the steps of training (Polyak and Juditsky 1992, in its exponential form).
#include "grid.cuh"

constexpr int BLOCK = 256;

// mean += (1 - d) (w - mean), d = min(decay, step / (9 + step)), step = now[0] from 0 on: the first steps, far from the end, are soon forgotten.
// rows = ceil(count / BLOCK)
KERNEL average(long long rows, float* mean, const float* w, long long count, const double* now, float decay) {
    ROWS(r, rows) {
        const long long first = r * BLOCK;
        const int n = count - first < BLOCK ? (int)(count - first) : BLOCK;
        const float soon = (float)(now[0] / (9 + now[0])), take = 1 - (soon < decay ? soon : decay);
        float* m = mean + first;
        const float* wr = w + first;
        LANES(i, n) m[i] = take == 1 ? wr[i] : m[i] + take * (wr[i] - m[i]);
    }
}
