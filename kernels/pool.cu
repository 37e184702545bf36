// Max-pool: y[n, oh, ow, c] = max of x over the window's pixels inside the image. The first NaN wins over everything,
// else the first maximum; `winner` keeps its place in the window (kh * window_width + kw), so that backward can gather:
//   dx[n, h, w, c] = sum of dy over the windows whose winner is this pixel.
// After a convolution it adds that one's bias and applies its ReLU: max(x) + b = max(x + b), and there are fewer maxima than pixels.
#include "grid.cuh"

// rows = N * OH * OW
KERNEL max_pool(unsigned rows, const float* x, float* y, unsigned char* winner, const float* bias, int height, int width, int channels,
                int out_height, int out_width, int window_height, int window_width, int stride_h, int stride_w,
                int pad_top, int pad_left, int add, int relu) {
    const bool wide = fours(channels, x, y, winner, bias);
    ROWS(r, rows) {
        const unsigned line = divide((unsigned)r, (unsigned)out_width), n = divide(line, (unsigned)out_height);
        const int top = (int)(line - n * out_height) * stride_h - pad_top, left = (int)((unsigned)r - line * out_width) * stride_w - pad_left;
        const int h_from = top < 0 ? 0 : top, w_from = left < 0 ? 0 : left;
        const int h_to = top + window_height < height ? top + window_height : height;
        const int w_to = left + window_width < width ? left + window_width : width;
        const float* first = x + (((long long)n * height + h_from) * width + w_from) * channels;
        const int first_place = (h_from - top) * window_width + w_from - left;
        lanes(wide, channels, [&](auto c) {
            auto best = load(first, c);
            auto place = splat(c, first_place);
            const float* from = first;
            int number = first_place;
            for (int h = h_from; h < h_to; ++h, from += width * channels, number += window_width)
                ROLLED for (int w = 0; w < w_to - w_from; ++w) {
                    auto v = load(from + w * channels, c);
                    auto loses = (v <= best) | (best != best);
                    best = select(loses, best, v);
                    place = select(loses, place, splat(c, number + w));
                }
            if (add) best += load(bias, c);
            if (relu) best = select(best <= splat(c, 0.0f), splat(c, 0.0f), best);
            store(y + r * channels, c, best);
            store(winner + r * channels, c, place);
        });
    }
}

// rows = N * H * W
KERNEL max_pool_backward(unsigned rows, const float* dy, const unsigned char* winner, float* dx, int height, int width,
                         int channels, int out_height, int out_width, int window_height, int window_width, int stride_h,
                         int stride_w, int pad_top, int pad_left) {
    const bool wide = fours(channels, dy, winner, dx);
    ROWS(r, rows) {
        const unsigned line = divide((unsigned)r, (unsigned)width), n = divide(line, (unsigned)height);
        const int h = (int)(line - n * height) + pad_top, w = (int)((unsigned)r - line * width) + pad_left;
        const int oh_from = h < window_height ? 0 : divide(h - window_height, stride_h) + 1, oh_last = divide(h, stride_h);
        const int ow_from = w < window_width ? 0 : divide(w - window_width, stride_w) + 1, ow_last = divide(w, stride_w);
        const int oh_to = oh_last < out_height ? oh_last + 1 : out_height, ow_to = ow_last < out_width ? ow_last + 1 : out_width;
        // What number this pixel is in the first of the windows over it, and where that lies: 32 bits count windows, which are rows of max_pool.
        const int first_number = (h - oh_from * stride_h) * window_width + w - ow_from * stride_w;
        const long long first = (long long)((n * out_height + oh_from) * out_width + ow_from) * channels;
        lanes(wide, channels, [&](auto c) {
            auto sum = splat(c, 0.0f);
            const float* from = dy + first;
            const unsigned char* winners = winner + first;
            int number = first_number;
            for (int oh = oh_from; oh < oh_to; ++oh, from += out_width * channels, winners += out_width * channels, number -= stride_h * window_width)
                ROLLED for (int i = 0; i < ow_to - ow_from; ++i) {
                    auto mine = load_int(winners + i * channels, c) == splat(c, number - i * stride_w);
                    sum += select(mine, load(from + i * channels, c), splat(c, 0.0f));
                }
            store(dx + r * channels, c, sum);
        });
    }
}
