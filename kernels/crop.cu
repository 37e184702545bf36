// The network's input from decoded pictures: a crop, a flip, and per colour (pixel - mean) * scale.
//   y[n, h, w, c] = (image[n, top + h, left + w, c] - mean[c]) * scale[c], with w counted from the right if flipped
#include "grid.cuh"

// crops[n] = (top, left, flip); pictures are side x side x 3, the network's input size x size x 3.   rows = N * size
KERNEL crop(long long rows, const unsigned char* images, const int* crops, const float* mean, const float* scale, float* y,
            int side, int size) {
    ROWS(r, rows) {
        const unsigned n = (unsigned)r / size, h = (unsigned)r % size;
        const int *at = crops + 3 * n, flip = at[2];
        const unsigned char* line = images + (((long long)n * side + at[0] + h) * side + at[1]) * 3;
        float* out = y + r * size * 3;
        LANES(i, size * 3) {
            const int w = i / 3, c = i - 3 * w;
            out[i] = (line[(flip ? size - 1 - w : w) * 3 + c] - mean[c]) * scale[c];
        }
    }
}
