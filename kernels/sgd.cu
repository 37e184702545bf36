// SGD with momentum and weight decay, in the two forms that were published. They agree while lr stays the same.
//   2012   v = momentum v - lr (g + decay w);   w += v          (Krizhevsky 2012, section 5)
//   torch  v = momentum v + (g + decay w);      w -= lr v       (Sutskever 2013 as PyTorch has it)
#include "grid.cuh"

constexpr int BLOCK = 256;

// now[1] = learning rate of this step.   rows = ceil(count / BLOCK)
KERNEL sgd(long long rows, float* w, float* v, const float* g, long long count, const double* now, float lr_factor,
           float momentum, float decay, int form_2012) {
    ROWS(r, rows) {
        const long long first = r * BLOCK;
        const int n = count - first < BLOCK ? (int)(count - first) : BLOCK;
        const float lr = (float)now[1] * lr_factor;
        float *wr = w + first, *vr = v + first;
        const float* gr = g + first;
        if (form_2012) {
            LANES(i, n) {
                const float step = momentum * vr[i] - lr * (gr[i] + decay * wr[i]);
                vr[i] = step;
                wr[i] += step;
            }
        } else {
            LANES(i, n) {
                const float step = momentum * vr[i] + (gr[i] + decay * wr[i]);
                vr[i] = step;
                wr[i] -= lr * step;
            }
        }
    }
}
