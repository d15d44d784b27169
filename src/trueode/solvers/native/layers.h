/* Products of a matrix with the features of a block; a part of kernel.h. */

/* A matrix (n_in, n_out) in tiles of columns, TILE, 4, 2 or 1 wide; the columns of a tile side by side, row after row. */
typedef struct {
    T *forward, *back; /* the weights; the weights transposed */
    T *bias, *time;    /* (fan_out); time is NULL where the layer does not see the time */
} Packed;

static int64_t NAME(tile_width)(int64_t left) { return left >= TILE ? TILE : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

static void NAME(pack)(const T *from, int64_t n_in, int64_t n_out, int64_t step_in, int64_t step_out, T *to) {
    for (int64_t o = 0; o < n_out;) {
        int64_t wide = NAME(tile_width)(n_out - o);
        for (int64_t k = 0; k < n_in; k++)
            for (int64_t j = 0; j < wide; j++) *to++ = from[k * step_in + (o + j) * step_out];
        o += wide;
    }
}

/* `wide` outputs of a block: bias + t time + sum over k of weight[k] x[k]; t: two vectors of times. */
static inline __attribute__((always_inline)) void NAME(tile)(
    const int wide, int64_t n_in, const T *weight, const T *bias, const T *time, const vec *t, const vec *x, vec *y) {
    vec low[TILE], high[TILE];
    const vec zero = {0};
#pragma GCC unroll 8
    for (int j = 0; j < wide; j++) {
        low[j] = high[j] = zero + (bias ? bias[j] : 0);
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

/* y = x times a packed matrix (n_in, n_out), plus bias and t time where they are not NULL. */
static void NAME(product)(int64_t n_in, int64_t n_out, const T *weight, const T *bias, const T *time, const vec *t,
                          const vec *x, vec *y) {
    for (int64_t o = 0; o < n_out;) {
        int64_t wide = NAME(tile_width)(n_out - o);
        const T *here = bias ? bias + o : NULL, *timed = time ? time + o : NULL;
        if (wide == TILE)
            NAME(tile)(TILE, n_in, weight, here, timed, t, x, y + 2 * o);
        else if (wide == 4)
            NAME(tile)(4, n_in, weight, here, timed, t, x, y + 2 * o);
        else if (wide == 2)
            NAME(tile)(2, n_in, weight, here, timed, t, x, y + 2 * o);
        else
            NAME(tile)(1, n_in, weight, here, timed, t, x, y + 2 * o);
        weight += n_in * wide;
        o += wide;
    }
}
