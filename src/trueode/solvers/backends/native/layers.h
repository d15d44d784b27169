/* Products of a matrix with the features of a block; a part of kernel.h. */

/* Matrices (taps n_in, n_out) in tiles of TILE, 4, 2 or 1 columns; a tile is stored row by row. */
typedef struct {
    T *forward, *back; /* the weights; the weights transposed, the last tap first */
    T *bias, *time;    /* (fan_out); time is NULL if the layer does not depend on the time */
} Packed;

static int64_t NAME(tile_width)(int64_t left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

static void NAME(pack)(const T *from, int64_t taps, int64_t n_in, int64_t n_out, int64_t step_tap, int64_t step_in,
                       int64_t step_out, T *to) {
    for (int64_t o = 0; o < n_out;) {
        int64_t wide = NAME(tile_width)(n_out - o);
        for (int64_t tap = 0; tap < taps; tap++)
            for (int64_t k = 0; k < n_in; k++)
                for (int64_t j = 0; j < wide; j++) *to++ = from[tap * step_tap + k * step_in + (o + j) * step_out];
        o += wide;
    }
}

/* `wide` outputs of a block: `begin`, or else bias, + t time + sum over k of weight[k] x[k]; t: two
 * vectors of times. */
static inline __attribute__((always_inline)) void NAME(tile)(const int wide, int64_t n_in, const T *weight, const T *bias,
                                                             const T *time, const vec *t, const vec *begin, const vec *x,
                                                             vec *y) {
    vec low[TILE], high[TILE];
    const vec zero = {0};
#pragma GCC unroll 8
    for (int j = 0; j < wide; j++) {
        low[j] = begin ? begin[2 * j] : zero + (bias ? bias[j] : 0);
        high[j] = begin ? begin[2 * j + 1] : low[j];
        if (time) {
            low[j] += t[0] * time[j];
            high[j] += t[1] * time[j];
        }
    }
    for (int64_t k = 0; k < n_in; k++) {
        vec first = x[2 * k], second = x[2 * k + 1];
#pragma GCC unroll 8
        for (int j = 0; j < wide; j++) {
            T w = weight[k * wide + j];
            low[j] += first * w;
            high[j] += second * w;
        }
    }
#pragma GCC unroll 8
    for (int j = 0; j < wide; j++) {
        y[2 * j] = low[j];
        y[2 * j + 1] = high[j];
    }
}

/* y = x times n_in rows, starting at `from`, of a packed matrix (height, n_out), plus `begin`, or
 * else bias, plus t time, each unless NULL. */
static void NAME(product)(int64_t height, int64_t from, int64_t n_in, int64_t n_out, const T *weight, const T *bias,
                          const T *time, const vec *t, const vec *begin, const vec *x, vec *y) {
    for (int64_t o = 0; o < n_out;) {
        int64_t wide = NAME(tile_width)(n_out - o);
        const T *w = weight + from * wide, *here = bias ? bias + o : NULL, *timed = time ? time + o : NULL;
        const vec *first = begin ? begin + 2 * o : NULL;
        if (wide == TILE)
            NAME(tile)(TILE, n_in, w, here, timed, t, first, x, y + 2 * o);
        else if (wide == 4)
            NAME(tile)(4, n_in, w, here, timed, t, first, x, y + 2 * o);
        else if (wide == 2)
            NAME(tile)(2, n_in, w, here, timed, t, first, x, y + 2 * o);
        else
            NAME(tile)(1, n_in, w, here, timed, t, first, x, y + 2 * o);
        weight += height * wide;
        o += wide;
    }
}

/* All rows of a layer, or of its transpose. Each row of y depends on as many rows of x around it as
 * there are taps. These rows are adjacent, so they form one longer row, and the taps one taller
 * matrix. */
static void NAME(convolve)(int64_t rows, int64_t taps, int64_t n_in, int64_t n_out, const T *weight, const T *bias,
                           const T *time, const vec *t, const vec *x, vec *y) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t first = larger(0, r - taps / 2), last = smaller(rows - 1, r + taps / 2);
        NAME(product)(taps * n_in, (first - r + taps / 2) * n_in, (last - first + 1) * n_in, n_out, weight, bias, time, t,
                      NULL, x + 2 * first * n_in, y + 2 * r * n_out);
    }
}

/* Two rows and three taps w0, w1, w2 take three products instead of four:
 * y0 = w1 (x0 + x1) + (w2 - w1) x1 and y1 = w1 (x0 + x1) + (w0 - w1) x0. */
static int NAME(is_pair)(int64_t rows, int64_t taps) { return rows == 2 && taps == 3; }

/* The weights of a pair one above the other: w1, w2 - w1, w0 - w1. */
static void NAME(pack_pair)(const T *from, int64_t n_in, int64_t n_out, int64_t step_tap, int64_t step_in, int64_t step_out,
                            T *differences, T *to) {
    for (int64_t k = 0; k < n_in; k++)
        for (int64_t o = 0; o < n_out; o++) {
            const T *w = from + k * step_in + o * step_out;
            T *place = differences + k * n_out + o;
            place[0] = w[step_tap];
            place[n_in * n_out] = w[2 * step_tap] - w[step_tap];
            place[2 * n_in * n_out] = w[0] - w[step_tap];
        }
    NAME(pack)(differences, 3, n_in, n_out, n_in * n_out, n_out, 1, to);
}

/* The rows of a pair; `sum` is room for x0 + x1. */
static void NAME(convolve_pair)(int64_t n_in, int64_t n_out, const T *weight, const T *bias, const T *time, const vec *t,
                                const vec *x, vec *sum, vec *y) {
    const vec *x1 = x + 2 * n_in;
    vec *y1 = y + 2 * n_out;
    for (int64_t i = 0; i < 2 * n_in; i++) sum[i] = x[i] + x1[i];
    NAME(product)(3 * n_in, 0, n_in, n_out, weight, bias, time, t, NULL, sum, y1);
    NAME(product)(3 * n_in, n_in, n_in, n_out, weight, NULL, NULL, NULL, y1, x1, y);
    NAME(product)(3 * n_in, 2 * n_in, n_in, n_out, weight, NULL, NULL, NULL, y1, x, y1);
}
