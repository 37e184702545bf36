// Max-pool: y[n, oh, ow, c] = max of x over the window's pixels inside the image. The first NaN wins over everything,
// else the first maximum; `winner` keeps its place in the window (kh * window_width + kw), so that backward can gather:
//   dx[n, h, w, c] = sum of dy over the windows whose winner is this pixel.
#include "grid.cuh"

// rows = N * OH * OW
KERNEL max_pool(unsigned rows, const float* x, float* y, unsigned char* winner, int height, int width, int channels,
                int out_height, int out_width, int window_height, int window_width, int stride_h, int stride_w,
                int pad_top, int pad_left) {
    const unsigned plane = out_height * out_width;
    ROWS(r, rows) {
        const unsigned n = (unsigned)r / plane, q = (unsigned)r % plane;
        const int top = (int)(q / out_width) * stride_h - pad_top, left = (int)(q % out_width) * stride_w - pad_left;
        const int h_from = top < 0 ? 0 : top, w_from = left < 0 ? 0 : left;
        const int h_to = top + window_height < height ? top + window_height : height;
        const int w_to = left + window_width < width ? left + window_width : width;
        lanes(channels, [&](auto c) {
            const float* image = x + (long long)n * height * width * channels;
            auto best = load(image + ((long long)h_from * width + w_from) * channels, c);
            auto place = splat(c, (h_from - top) * window_width + w_from - left);
            for (int h = h_from; h < h_to; ++h)
                for (int w = w_from; w < w_to; ++w) {
                    auto v = load(image + ((long long)h * width + w) * channels, c);
                    auto wins = (v > best) | ((v != v) & (best == best));
                    best = select(wins, v, best);
                    place = select(wins, splat(c, (h - top) * window_width + w - left), place);
                }
            store(y + r * channels, c, best);
            store(winner + r * channels, c, place);
        });
    }
}

// rows = N * H * W
KERNEL max_pool_backward(unsigned rows, const float* dy, const unsigned char* winner, float* dx, int height, int width,
                         int channels, int out_height, int out_width, int window_height, int window_width, int stride_h,
                         int stride_w, int pad_top, int pad_left) {
    const unsigned plane = height * width;
    ROWS(r, rows) {
        const unsigned n = (unsigned)r / plane, q = (unsigned)r % plane;
        const int h = (int)(q / width) + pad_top, w = (int)(q % width) + pad_left;
        const int oh_from = h < window_height ? 0 : (h - window_height) / stride_h + 1;
        const int ow_from = w < window_width ? 0 : (w - window_width) / stride_w + 1;
        const int oh_to = h / stride_h + 1 < out_height ? h / stride_h + 1 : out_height;
        const int ow_to = w / stride_w + 1 < out_width ? w / stride_w + 1 : out_width;
        lanes(channels, [&](auto c) {
            auto sum = splat(c, 0.0f);
            for (int oh = oh_from; oh < oh_to; ++oh)
                for (int ow = ow_from; ow < ow_to; ++ow) {
                    const long long window = (((long long)n * out_height + oh) * out_width + ow) * channels;
                    auto mine = load_int(winner + window, c) == splat(c, (h - oh * stride_h) * window_width + w - ow * stride_w);
                    sum += select(mine, load(dy + window, c), splat(c, 0.0f));
                }
            store(dx + r * channels, c, sum);
        });
    }
}
