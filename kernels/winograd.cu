// Winograd's convolution (stride 1, filters of R x R): F(M x M, R x R) makes M x M outputs of a tile of T x T inputs, T = M + R - 1, with T^2
// multiplications instead of M^2 R^2.
//
// Where the matrices come from. In one dimension, the product s(z) of two polynomials, g of R coefficients and h of M, has T coefficients. It
// is known from its values at T points, and its values are those of g times those of h: T multiplications. In matrices, with G and A that
// evaluate g and h at the points, and B whose columns are the polynomials that are 1 at one point and 0 at the others:
//     s = B ((G g) * (A h)),      * value by value.
// For a given g this is a linear map of h, s[i] = sum_k g[k] h[i-k]. Its transpose is the correlation that a network calls convolution,
//     y[j] = sum_k g[k] d[j+k]    = A^T ((G g) * (B^T d)),       and the transpose in g is the gradient of g,
//     dg[k] = sum_j h[j] d[j+k]   = G^T ((A h) * (B^T d)).
// In two dimensions each matrix is applied to the columns of a tile and then to its rows. Summed over channels, "*" is a matrix product for
// each of the T^2 values of a tile, of (tiles, channels) and (channels, filters).
//
// The points are 0, then 1, -1, 2, -2, 1/2, -1/2 as far as needed, and, where T is even, infinity, where a polynomial's value is its leading
// coefficient. Of points p and -p the even powers agree and the odd ones differ in sign, so that both values take the work of one.
#define BLOCKS 4      // a thread holds 64 values
#include "grid.cuh"

constexpr double POINTS[] = {0, 1, -1, 2, -2, 0.5, -0.5};

constexpr int finite(int t) { return t % 2 ? t : t - 1; }

// Rows of these three belong to points, of an even number the last one to infinity. `at(i, k)` is what coefficient k counts for at point i.
template <int T, int N> struct Evaluate {      // A, with N = M
    static constexpr int columns = N, points = T;
    static constexpr double at(int i, int k) {
        if (i == finite(T)) return k == N - 1;
        double power = 1;
        for (int j = 0; j < k; ++j) power *= POINTS[i];
        return power;
    }
};

template <int T> struct Interpolate {      // B^T: row i is the product of (z - p) over all points p but the i-th
    static constexpr int columns = T, points = T;
    static constexpr double at(int i, int k) {
        double product[T + 1] = {1};
        for (int p = 0; p < finite(T); ++p)
            if (p != i) {
                for (int j = T; j > 0; --j) product[j] = product[j - 1] - POINTS[p] * product[j];
                product[0] *= -POINTS[p];
            }
        return product[k];
    }
};

template <int T, int N> struct EvaluateOver {      // G, with N = R: that product is not 1 at its point, so g's value is divided by what it is
    static constexpr int columns = N, points = T;
    static constexpr double at(int i, int k) {
        double scale = 1;
        for (int p = 0; p < finite(T); ++p)
            if (i < finite(T) && p != i) scale *= POINTS[i] - POINTS[p];
        return Evaluate<T, N>::at(i, k) / scale;
    }
};

// Whether points i and i + 1 are p and -p.
template <class F> constexpr bool paired(int i) { return i % 2 == 1 && i + 1 < finite(F::points); }

// The transpose of one of them, with points p and -p as one: they go into the even outputs by their sum and into the odd ones by their difference.
template <class F> struct Folded {
    static constexpr int columns = F::points / 2 + 1;
    static constexpr double at(int k, int i) { return F::at(i == 0 ? 0 : 2 * i - 1, k); }
};

// The sum over j = J, J + STEP, ... of F::at(I, j) x[j]: zeros cost nothing and ones no multiplication.
template <class F, int I, int J, int STEP, bool FIRST = true, class V> DEVICE V sum(const V* x, V before = V()) {
    constexpr float f = J < F::columns ? F::at(I, J) : 0;
    if constexpr (J >= F::columns) return before;
    else if constexpr (f == 0) return sum<F, I, J + STEP, STEP, FIRST>(x, before);
    else if constexpr (FIRST && f == 1) return sum<F, I, J + STEP, STEP, false>(x, x[J]);
    else if constexpr (FIRST) return sum<F, I, J + STEP, STEP, false>(x, f * x[J]);
    else if constexpr (f == 1) return sum<F, I, J + STEP, STEP, false>(x, before + x[J]);
    else if constexpr (f == -1) return sum<F, I, J + STEP, STEP, false>(x, before - x[J]);
    else return sum<F, I, J + STEP, STEP, false>(x, before + f * x[J]);
}

// v = F x
template <class F, int I = 0, class V> DEVICE void to_points(const V* x, V* v) {
    if constexpr (!paired<F>(I)) v[I] = sum<F, I, 0, 1>(x);
    else {
        const V even = sum<F, I, 0, 2>(x), odd = sum<F, I, 1, 2>(x);
        v[I] = even + odd;
        v[I + 1] = even - odd;
    }
    constexpr int next = paired<F>(I) ? I + 2 : I + 1;
    if constexpr (next < F::points) to_points<F, next>(x, v);
}

// y = F^T v
template <class F, int K = 0, class V> DEVICE void from_folded(const V* even, const V* odd, V* y) {
    if constexpr (K < F::columns) {
        y[K] = sum<Folded<F>, K, 0, 1>(K % 2 ? odd : even);
        from_folded<F, K + 1>(even, odd, y);
    }
}
template <class F, class V> DEVICE void from_points(const V* v, V* y) {
    constexpr int last = Folded<F>::columns - 1;
    V even[last + 1], odd[last + 1];
    even[0] = odd[0] = v[0];
    if (!paired<F>(2 * last - 1)) even[last] = odd[last] = v[F::points - 1];
    UNROLL for (int i = 1; paired<F>(2 * i - 1); ++i) {
        even[i] = v[2 * i - 1] + v[2 * i];
        odd[i] = v[2 * i - 1] - v[2 * i];
    }
    from_folded<F>(even, odd, y);
}

// A tile of F::columns squared values, those at `from` + i * down + j * right that are inside(i, j), to its values at the points, in planes that
// lie `pitch` floats apart. Pointers go from place to place: a GPU's compiler would make products of (i, j) in 64 bits, and keep them all.
template <class F, class C, class Inside>
DEVICE void tile_to_points(C c, const float* from, long long down, long long right, float* planes, long long pitch, Inside inside) {
    constexpr int T = F::points, N = F::columns;
    using V = decltype(splat(c, 0.0f));
    V half[T * N];
    from += c.i;
    planes += c.i;
    UNROLL for (int j = 0; j < N; ++j, from += right) {
        V x[N], v[T];
        const float* at = from;
        UNROLL for (int i = 0; i < N; ++i, at += down) x[i] = inside(i, j) ? load(at, C{0}) : splat(c, 0.0f);
        to_points<F>(x, v);
        UNROLL for (int i = 0; i < T; ++i) half[i * N + j] = v[i];
    }
    UNROLL for (int i = 0; i < T; ++i) {
        V v[T];
        to_points<F>(half + i * N, v);
        UNROLL for (int j = 0; j < T; ++j, planes += pitch) store(planes, C{0}, v[j]);
    }
}

// And back: the transpose. write(i, j, at, value) takes F::columns squared values and their places.
template <class F, class C, class Write>
DEVICE void tile_from_points(C c, const float* planes, long long pitch, float* to, long long down, long long right, Write write) {
    constexpr int T = F::points, N = F::columns;
    using V = decltype(splat(c, 0.0f));
    V half[N * T];
    planes += c.i;
    to += c.i;
    UNROLL for (int j = 0; j < T; ++j, planes += pitch) {
        V v[T], y[N];
        const float* at = planes;
        UNROLL for (int i = 0; i < T; ++i, at += T * pitch) v[i] = load(at, C{0});
        from_points<F>(v, y);
        UNROLL for (int i = 0; i < N; ++i) half[i * T + j] = y[i];
    }
    UNROLL for (int i = 0; i < N; ++i, to += down) {
        V y[N];
        float* at = to;
        from_points<F>(half + i * T, y);
        UNROLL for (int j = 0; j < N; ++j, at += right) write(i, j, at, y[j]);
    }
}

// Images (N, height, width, channels) as tiles: a row of a kernel is a group's channels of one tile.
struct Tile { long long image; int group, top, left; long long number; };
DEVICE Tile tile_of(unsigned row, int groups, int down, int across, int size, int pad_top, int pad_left) {
    const unsigned number = row / groups, image = number / (down * across), q = number % (down * across);
    return Tile{image, (int)(row % groups), (int)(q / across) * size - pad_top, (int)(q % across) * size - pad_left, number};
}

// Which pixels of a tile lie in its image, whose floats 32 bits count. It is asked of a lane's own place: the answers are those of all lanes, but a
// GPU's compiler would keep all 64 of them from one lane to the next.
DEVICE auto inside_of(const Tile& t, int height, int width, int channels, int lane) {
    const unsigned line = width * channels, left = t.left * channels + lane, first = t.top * line + left;
    return [=](int i, int j) { return left + j * channels < line && first + i * line + j * channels < height * line; };
}

template <class F> DEVICE void image_to_points(const Tile& t, const float* x, float* planes, int height, int width, int channels, int groups, int pitch) {
    const int own = channels / groups;
    const long long line = (long long)width * channels;
    const float* from = x + (t.image * height + t.top) * line + (long long)t.left * channels + t.group * own;
    lanes(own, [&](auto c) {
        tile_to_points<F>(c, from, line, channels, planes + (long long)t.group * pitch + t.number * own, (long long)groups * pitch,
                          inside_of(t, height, width, channels, t.group * own + c.i));
    });
}

// Calls body with the F(m x m, r x r) of the list.
template <int SIZE, int KERNEL_SIZE> struct Form {
    static constexpr int M = SIZE, R = KERNEL_SIZE, T = M + R - 1;
    using A = Evaluate<T, M>;
    using B = Interpolate<T>;
    using G = EvaluateOver<T, R>;
};
template <class Body> DEVICE void with_form(int m, int r, Body body) {
    if (m == 4 && r == 3) body(Form<4, 3>());
    if (m == 5 && r == 3) body(Form<5, 3>());
    if (m == 4 && r == 5) body(Form<4, 5>());
}

// planes[v, g, tile, c] = B^T d B at v, of the tiles d of T x T pixels, M apart, that begin at -pad.   rows = N * down * across * groups
KERNEL winograd_input(unsigned rows, const float* x, float* planes, int m, int r, int height, int width, int channels, int down, int across,
                      int pad_top, int pad_left, int groups, int pitch) {
    with_form(m, r, [&](auto f) {
        using F = decltype(f);
        ROWS(row, rows)
            image_to_points<typename F::B>(tile_of((unsigned)row, groups, down, across, F::M, pad_top, pad_left), x, planes, height, width, channels,
                                           groups, pitch);
    });
}

// planes[v, g, tile, c] = A h A^T at v, of the tiles h of M x M pixels that lie side by side.   rows = N * down * across * groups
KERNEL winograd_spread(unsigned rows, const float* x, float* planes, int m, int r, int height, int width, int channels, int down, int across,
                       int groups, int pitch) {
    with_form(m, r, [&](auto f) {
        using F = decltype(f);
        ROWS(row, rows)
            image_to_points<typename F::A>(tile_of((unsigned)row, groups, down, across, F::M, 0, 0), x, planes, height, width, channels, groups, pitch);
    });
}

// y = A^T v A, of the tiles v of planes[v, g, tile, c], + bias[c] if `add`, and then max(y, 0) if `relu`.   rows = N * down * across * groups
KERNEL winograd_output(unsigned rows, const float* planes, float* y, const float* bias, int m, int r, int height, int width, int channels, int down,
                       int across, int groups, int pitch, int add, int relu) {
    const int own = channels / groups;
    with_form(m, r, [&](auto f) {
        using F = decltype(f);
        ROWS(row, rows) {
            const Tile t = tile_of((unsigned)row, groups, down, across, F::M, 0, 0);
            const float* from = planes + (long long)t.group * pitch + t.number * own;
            const long long line = (long long)width * channels;
            float* to = y + (t.image * height + t.top) * line + (long long)t.left * channels + t.group * own;
            lanes(own, [&](auto c) {
                auto b = splat(c, 0.0f);
                if (add) b = load(bias + t.group * own, c);
                const auto inside = inside_of(t, height, width, channels, t.group * own + c.i);
                tile_from_points<typename F::A>(c, from, (long long)groups * pitch, to, line, channels, [&](int i, int j, float* at, auto v) {
                    v += b;
                    if (relu) v = select(v < 0.0f, splat(c, 0.0f), v);
                    if (inside(i, j)) store(at, decltype(c){0}, v);
                });
            });
        }
    });
}

constexpr int STRIP = 32;      // filters in a row of the two kernels that follow: there are few channels

// planes[v, g, c, o] = G w G^T at v; w: `groups` times `first` matrices c of R x R filters o, whose places lie this many floats apart.
// turned: by half a turn.   rows = groups * first * ceil(own / STRIP)
KERNEL winograd_filter(unsigned rows, const float* w, float* planes, int m, int r, int groups, int own, int group_pitch, int row_pitch, int tap_pitch,
                       int pitch, int turned) {
    const unsigned strips = (own + STRIP - 1) / STRIP, first = rows / strips / groups;
    const long long tap = turned ? -tap_pitch : tap_pitch;
    with_form(m, r, [&](auto f) {
        using F = decltype(f);
        ROWS(row, rows) {
            const unsigned matrix = (unsigned)row / strips, g = matrix / first, c = matrix % first;
            const int at = (unsigned)row % strips * STRIP;
            const float* from = w + (long long)g * group_pitch + (long long)c * row_pitch + at + (turned ? (F::R * F::R - 1) * -tap : 0);
            float* to = planes + (long long)g * pitch + (long long)c * own + at;
            lanes(own - at < STRIP ? own - at : STRIP, [&](auto o) {
                tile_to_points<typename F::G>(o, from, F::R * tap, tap, to, (long long)groups * pitch, [](int, int) { return true; });
            });
        }
    });
}

// dw = G^T v G of planes[v, g, c, o], added to dw if accumulate. turned: by half a turn.
// rows = groups * C/groups * ceil(own / STRIP), own = filters / groups
KERNEL winograd_filter_gradient(unsigned rows, const float* planes, float* dw, int m, int r, int groups, int filters, int pitch, int turned,
                                 int accumulate) {
    const int own = filters / groups;
    const unsigned strips = (own + STRIP - 1) / STRIP, first = rows / strips / groups;
    const long long tap = turned ? -(long long)first * filters : (long long)first * filters;
    with_form(m, r, [&](auto f) {
        using F = decltype(f);
        ROWS(row, rows) {
            const unsigned matrix = (unsigned)row / strips, g = matrix / first, c = matrix % first;
            const int at = (unsigned)row % strips * STRIP;
            const float* from = planes + (long long)g * pitch + (long long)c * own + at;
            float* to = dw + (long long)c * filters + g * own + at + (turned ? (F::R * F::R - 1) * -tap : 0);
            lanes(own - at < STRIP ? own - at : STRIP, [&](auto o) {
                tile_from_points<typename F::G>(o, from, (long long)groups * pitch, to, F::R * tap, tap, [&](int, int, float* to, auto v) {
                    if (accumulate) v += load(to, decltype(o){0});
                    store(to, decltype(o){0}, v);
                });
            });
        }
    });
}

// A convolution of stride S is one of stride 1 over blocks of S x S pixels, whose S S C values are its channels: the window of 11 x 11 pixels that
// moves by 4 is one of 3 x 3 blocks (its weights beyond 11 are 0) that moves by 1.
// blocks[n, h, w, i, j, c] = x[n, h S + i - pad_top, w S + j - pad_left, c], 0 outside.   rows = N * down * across
KERNEL winograd_blocks(unsigned rows, const float* x, float* blocks, int step, int height, int width, int channels, int down, int across, int pad_top,
                       int pad_left) {
    const int run = step * channels, line = width * channels;
    ROWS(row, rows) {
        const unsigned q = (unsigned)row / across, image = q / down;
        const int top = (int)(q % down) * step - pad_top, from = ((int)((unsigned)row % across) * step - pad_left) * channels;
        const float* corner = x + ((long long)image * height + top) * line + from;
        float* to = blocks + row * step * run;
        RUNS(i, j, step, run) {
            const bool inside = (unsigned)(top + i) < (unsigned)height && (unsigned)(from + j) < (unsigned)line;
            to[i * run + j] = inside ? corner[(long long)i * line + j] : 0.0f;
        }
    }
}

// And back: x[n, h, w, c] = blocks[n, ...] of that pixel, 0 where there is no such block, added to x if accumulate.   rows = N * height * width
KERNEL winograd_pixels(unsigned rows, const float* blocks, float* x, int step, int height, int width, int channels, int down, int across, int pad_top,
                       int pad_left, int accumulate) {
    ROWS(row, rows) {
        const unsigned q = (unsigned)row / width, image = q / height;
        const int h = (int)(q % height) + pad_top, w = (int)((unsigned)row % width) + pad_left;
        const bool inside = h / step < down && w / step < across;
        const float* from = blocks + ((((long long)image * down + h / step) * across + w / step) * step * step + h % step * step + w % step) * channels;
        lanes(channels, [&](auto c) {
            auto v = inside ? load(from, c) : splat(c, 0.0f);
            if (accumulate) v += load(x + row * channels, c);
            store(x + row * channels, c, v);
        });
    }
}
