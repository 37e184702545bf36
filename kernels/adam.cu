// Adam (Kingma and Ba 2015) as Keras has it, with epsilon beside the root of the raw second moment:
//   m += take1 (g - m);   v += take2 (g^2 - v);   w -= lr_t m / (sqrt(v) + epsilon),   take = 1 - beta
// 1 - 0.999 in float32 would be wrong by a hundred thousandth, so the takes come ready.
#include "grid.cuh"

constexpr int BLOCK = 256;

// now[1] = lr_t = lr sqrt(1 - beta2^t) / (1 - beta1^t) of this step, t = 1, 2, ...   rows = ceil(count / BLOCK)
KERNEL adam(long long rows, float* w, float* m, float* v, const float* g, long long count, const double* now, float take1, float take2,
            float epsilon) {
    ROWS(r, rows) {
        const long long first = r * BLOCK;
        const int n = count - first < BLOCK ? (int)(count - first) : BLOCK;
        const float rate = (float)now[1];
        float *wr = w + first, *mr = m + first, *vr = v + first;
        const float* gr = g + first;
        LANES(i, n) {
            const float mean = mr[i] + take1 * (gr[i] - mr[i]), square = vr[i] + take2 * (gr[i] * gr[i] - vr[i]);
            mr[i] = mean;
            vr[i] = square;
            wr[i] -= rate * mean / (sqrtf(square) + epsilon);
        }
    }
}
