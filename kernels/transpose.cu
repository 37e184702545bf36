// The transpose of a matrix: products whose operands lie as they are read run up to a third faster on a CPU.
#include "grid.cuh"

constexpr int TILE = 32;

// y[j, i] = x[i, j], of height x width.   rows = ceil(height / TILE) * ceil(width / TILE)
KERNEL transpose_tiles(unsigned rows, const float* x, float* y, int height, int width) {
    ROW_SCRATCH(float, tile, TILE * (TILE + 1));      // one more, so that a column of it is in as many banks as lanes
    const unsigned across = (width + TILE - 1) / TILE;
    ROWS(r, rows) {
        const int top = (int)((unsigned)r / across) * TILE, left = (int)((unsigned)r % across) * TILE;
        const int h = height - top < TILE ? height - top : TILE, w = width - left < TILE ? width - left : TILE;
        for (int i = 0; i < h; ++i)
            LANES(j, w) tile[i * (TILE + 1) + j] = x[(long long)(top + i) * width + left + j];
        row_sync();
        for (int j = 0; j < w; ++j)
            LANES(i, h) y[(long long)(left + j) * height + top + i] = tile[i * (TILE + 1) + j];
        row_sync();
    }
}
