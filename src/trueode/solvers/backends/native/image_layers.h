/* Layers on images, one sample at a time, whose layers stay in the cache; a part of kernel.h. The
 * plan of a solve of images has blocks of one sample. Its state is flat, (height, columns,
 * channels). The layers' own images have a border of zeros, and whole vectors of channels. Layers
 * have one tap, or the nine of a convolution with 3 x 3 weights (winograd.h). */

/* An image: the place of its first pixel, and numbers from a row, and a pixel, to the next. */
typedef struct {
    T *first;
    int64_t row, pixel;
} View;

static int64_t NAME(whole)(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

/* Tiles in a column or a row. */
static int64_t NAME(tiles_along)(int64_t pixels) { return (pixels + 3) / 4; }

/* Numbers in an image with a border, and the view of it. */
static int64_t NAME(bordered)(const Solve *solve, int64_t channels) {
    return (4 * NAME(tiles_along)(solve->height) + 2) * (4 * NAME(tiles_along)(solve->columns) + 2) * NAME(whole)(channels);
}

static View NAME(view)(const Solve *solve, vec *image, int64_t channels) {
    int64_t pixel = NAME(whole)(channels), row = (4 * NAME(tiles_along)(solve->columns) + 2) * pixel;
    return (View){(T *)image + row + pixel, row, pixel};
}

static View NAME(flat)(const Solve *solve, const vec *state, int64_t channels) {
    return (View){(T *)state, solve->columns * channels, channels};
}

/* Sets what lies around the pixels of an image to zero. */
static void NAME(clear_border)(const Solve *solve, vec *image, int64_t channels) {
    int64_t pixel = NAME(whole)(channels), wide = 4 * NAME(tiles_along)(solve->columns) + 2, high = 4 * NAME(tiles_along)(solve->height) + 2;
    T *row = (T *)image;
    for (int64_t r = 0; r < high; r++, row += wide * pixel)
        if (r == 0 || r > solve->height)
            memset(row, 0, wide * pixel * sizeof(T));
        else {
            memset(row, 0, pixel * sizeof(T));
            memset(row + (solve->columns + 1) * pixel, 0, (wide - solve->columns - 1) * pixel * sizeof(T));
        }
}

/* What becomes of an output before it is written: itself, its ReLU, or, as a gradient, the product
 * with the derivative of ReLU. That one's values, `known`, lie as the outputs from `first` on. */
typedef struct {
    int how;
    const T *known, *first;
} Finish;

static const Finish NAME(plain) = {PLAIN, NULL, NULL};

ALWAYS vec NAME(finished)(const Finish *finish, vec x, const T *place) {
    const vec zero = {0};
    if (finish->how == RECTIFIED) return NAME(select)(x < 0, zero, x);
    if (finish->how == MASKED) return NAME(select)(*(const vec *)(finish->known + (place - finish->first)) <= 0, zero, x);
    return x;
}

/* Rows (rows, n) times weights (n, m) plus a shift (m), m whole vectors: `high` rows and `wide`
 * vectors at once. Numbers from a row to the next: step, step_to. */
ALWAYS void NAME(few_rows)(const int high, const int wide, int64_t n, int64_t m, const T *a, int64_t step, const T *b,
                           const vec *shift, const Finish *finish, T *to, int64_t step_to) {
    vec sums[8][SUMS_WIDE];
    const vec zero = {0};
#pragma GCC unroll 8
    for (int q = 0; q < high; q++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) sums[q][j] = shift ? shift[j] : zero;
    for (int64_t i = 0; i < n; i++) {
        const vec *right = (const vec *)(b + i * m);
#pragma GCC unroll 8
        for (int q = 0; q < high; q++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[q][j] += a[q * step + i] * right[j];
    }
    if (finish->how != PLAIN)
#pragma GCC unroll 8
        for (int q = 0; q < high; q++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[q][j] = NAME(finished)(finish, sums[q][j], to + q * step_to + j * LANES);
#pragma GCC unroll 8
    for (int q = 0; q < high; q++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) ((vec *)(to + q * step_to))[j] = sums[q][j];
}

ALWAYS void NAME(strip)(const int high, const int wide, int64_t rows, int64_t n, int64_t m, const T *a, int64_t step, const T *b,
                        const vec *shift, const Finish *finish, T *to, int64_t step_to) {
    int64_t r = 0;
    for (; r + high <= rows; r += high) NAME(few_rows)(high, wide, n, m, a + r * step, step, b, shift, finish, to + r * step_to, step_to);
    for (; r + 4 <= rows; r += 4) NAME(few_rows)(4, wide, n, m, a + r * step, step, b, shift, finish, to + r * step_to, step_to);
    for (; r < rows; r++) NAME(few_rows)(1, wide, n, m, a + r * step, step, b, shift, finish, to + r * step_to, step_to);
}

static void NAME(matrix)(int64_t rows, int64_t n, int64_t m, const T *a, int64_t step, const T *b, const T *shift,
                         const Finish *finish, T *to, int64_t step_to) {
    for (int64_t o = 0; o < m;) {
        const vec *here = shift ? (const vec *)(shift + o) : NULL;
        int64_t left = (m - o) / LANES;
        if (left >= SUMS_WIDE) {
            NAME(strip)(4, SUMS_WIDE, rows, n, m, a, step, b + o, here, finish, to + o, step_to);
            o += SUMS_WIDE * LANES;
        } else if (left >= 2) {
            NAME(strip)(8, 2, rows, n, m, a, step, b + o, here, finish, to + o, step_to);
            o += 2 * LANES;
        } else {
            NAME(strip)(8, 1, rows, n, m, a, step, b + o, here, finish, to + o, step_to);
            o += LANES;
        }
    }
}

/* The same for outputs that fill no more than half a vector: the other half is not written. */
ALWAYS void NAME(few_halves)(const int high, int64_t n, const T *a, int64_t step, const T *b, const vec *shift, T *to, int64_t step_to) {
    halfvec sums[8];
#pragma GCC unroll 8
    for (int q = 0; q < high; q++) sums[q] = shift ? *(const halfvec *)shift : (halfvec){0};
    for (int64_t i = 0; i < n; i++) {
        halfvec right = *(const halfvec *)(b + i * LANES);
#pragma GCC unroll 8
        for (int q = 0; q < high; q++) sums[q] += a[q * step + i] * right;
    }
#pragma GCC unroll 8
    for (int q = 0; q < high; q++) *(halfvec *)(to + q * step_to) = sums[q];
}

static void NAME(matrix_of_halves)(int64_t rows, int64_t n, const T *a, int64_t step, const T *b, const T *shift, T *to, int64_t step_to) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) NAME(few_halves)(8, n, a + r * step, step, b, (const vec *)shift, to + r * step_to, step_to);
    for (; r + 4 <= rows; r += 4) NAME(few_halves)(4, n, a + r * step, step, b, (const vec *)shift, to + r * step_to, step_to);
    for (; r < rows; r++) NAME(few_halves)(1, n, a + r * step, step, b, (const vec *)shift, to + r * step_to, step_to);
}

static int NAME(fills_half)(int64_t channels) { return channels <= LANES / 2; }

/* to (n, m) += a' b with a (rows, n), b (rows, m); n is read up to a multiple of `high`. */
ALWAYS void NAME(few_sums)(const int high, const int wide, int64_t rows, int64_t m, const T *a, int64_t step, const T *b,
                           int64_t step_b, T *to) {
    vec sums[8][SUMS_WIDE];
#pragma GCC unroll 8
    for (int q = 0; q < high; q++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) sums[q][j] = ((vec *)(to + q * m))[j];
    for (int64_t r = 0; r < rows; r++) {
        const vec *right = (const vec *)(b + r * step_b);
#pragma GCC unroll 8
        for (int q = 0; q < high; q++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[q][j] += a[r * step + q] * right[j];
    }
#pragma GCC unroll 8
    for (int q = 0; q < high; q++)
#pragma GCC unroll 4
        for (int j = 0; j < wide; j++) ((vec *)(to + q * m))[j] = sums[q][j];
}

static void NAME(sum_products)(int64_t rows, int64_t n, int64_t m, const T *a, int64_t step, const T *b, int64_t step_b, T *to) {
    for (int64_t o = 0; o < m;) {
        int64_t left = (m - o) / LANES;
        if (left < SUMS_WIDE && n <= 4) {
            NAME(few_sums)(4, 1, rows, m, a, step, b + o, step_b, to + o);
            o += LANES;
        } else if (left >= SUMS_WIDE) {
            for (int64_t i = 0; i < n; i += 4) NAME(few_sums)(4, SUMS_WIDE, rows, m, a + i, step, b + o, step_b, to + i * m + o);
            o += SUMS_WIDE * LANES;
        } else if (left >= 2) {
            for (int64_t i = 0; i < n; i += 8) NAME(few_sums)(8, 2, rows, m, a + i, step, b + o, step_b, to + i * m + o);
            o += 2 * LANES;
        } else {
            for (int64_t i = 0; i < n; i += 8) NAME(few_sums)(8, 1, rows, m, a + i, step, b + o, step_b, to + i * m + o);
            o += LANES;
        }
    }
}

/* The matrix of a layer in this layout: (points, in, whole(out)), with 36 points for nine taps. */
static int64_t NAME(points)(const Layer *layer) { return layer->taps == 9 ? POINTS : 1; }

/* The sums of products that give the gradient of a layer's weights: (points, rows, wide), `wide`
 * whole vectors. Where outputs fill no more than half of one, rows belong to them, otherwise to
 * inputs. */
typedef struct {
    int turned;
    int64_t rows, wide;
} Sums;

static Sums NAME(sums_of)(const Solve *solve, int64_t j) {
    const Layer *layer = &solve->layers[j];
    int turned = j && layer->taps == 1 && NAME(fills_half)(layer->fan_out) && layer->fan_out < layer->fan_in;
    int64_t high = turned ? layer->fan_out : NAME(whole)(layer->fan_in);
    return (Sums){turned, (high + ROUND_ROWS - 1) / ROUND_ROWS * ROUND_ROWS, NAME(whole)(turned ? layer->fan_in : layer->fan_out)};
}

/* Tiles at once, forward: few, whose points stay in the first cache; or more, if the weights come
 * from the last one. */
static int64_t NAME(tiles_at_once)(int64_t n, int64_t m) {
    int64_t few = FIRST_CACHE / (int64_t)(POINTS * (n + m) * sizeof(T)) / 8 * 8;
    int64_t many = POINTS * n * m * (int64_t)sizeof(T) > CACHE ? 32 : 8;
    return smaller(TILES_AT_MOST, larger(few, many));
}

/* Numbers from a point of tiles to the next: an odd number of cache lines, so that the points of a
 * tile, which are read and written together, do not take each other's place in the cache. */
static int64_t NAME(point)(int64_t tiles, int64_t channels) { return tiles * channels + LINE / (int64_t)sizeof(T); }

static int64_t NAME(image_size)(const Layer *layer, int back) {
    int64_t n = back ? layer->fan_out : layer->fan_in, m = back ? layer->fan_in : layer->fan_out;
    return NAME(points)(layer) * n * NAME(whole)(m);
}

static void NAME(pack_image_layer)(const Layer *layer, int back, T *to) {
    int64_t n = back ? layer->fan_out : layer->fan_in, m = back ? layer->fan_in : layer->fan_out, wide = NAME(whole)(m);
    int64_t step_n = back ? layer->stride_out : layer->stride_in, step_m = back ? layer->stride_in : layer->stride_out;
    const T *weight = layer->weight;
    for (int64_t i = 0; i < n; i++)
        for (int64_t o = 0; o < wide; o += LANES) {
            vec taps[9], points[POINTS];
            for (int64_t tap = 0; tap < layer->taps; tap++)
                for (int64_t lane = 0; lane < LANES; lane++)
                    ((T *)(taps + tap))[lane] = o + lane < m ? weight[i * step_n + (o + lane) * step_m + (back ? layer->taps - 1 - tap : tap) * layer->tap_stride] : 0;
            if (layer->taps == 1) {
                *(vec *)(to + i * wide + o) = taps[0];
                continue;
            }
            NAME(both_ways)(NAME(spread_weight), 3, 6, taps, 3, 1, points, 1);
            for (int64_t p = 0; p < POINTS; p++) *(vec *)(to + (p * n + i) * wide + o) = points[p];
        }
}

/* The points of tiles, each (count, channels), from the pixels of an image with a border. Numbers
 * from a point to the next: step. */
ALWAYS void NAME(spread_view)(const Solve *solve, View x, int64_t first, int64_t count, int64_t step, int64_t channels,
                              Transform transform, const int size, const int before, T *to) {
    int64_t across = NAME(tiles_along)(solve->columns);
    for (int64_t t = 0; t < count; t++) {
        int64_t top = (first + t) / across * 4 - before, left = (first + t) % across * 4 - before;
        const T *from = x.first + top * x.row + left * x.pixel;
        for (int64_t k = 0; k < channels; k += LANES)
            NAME(both_ways)(transform, size, 6, (const vec *)(from + k), x.row / LANES, x.pixel / LANES, (vec *)(to + t * channels + k),
                               step / LANES);
    }
}

/* y = weights * x + shift for 3 x 3 weights; x has a border; y is flat if its pixels are no whole
 * vectors. */
static void NAME(convolve_view)(const Solve *solve, View x, int64_t fan_in, const T *weight, const T *shift, const Finish *finish,
                                View y, int64_t fan_out, T *room) {
    int64_t n = NAME(whole)(fan_in), m = NAME(whole)(fan_out), at_once = NAME(tiles_at_once)(n, m);
    int64_t across = NAME(tiles_along)(solve->columns), tiles = NAME(tiles_along)(solve->height) * across;
    int64_t step_n = NAME(point)(at_once, n), step_m = NAME(point)(at_once, m);
    T *inputs = room, *outputs = room + POINTS * step_n;
    for (int64_t first = 0; first < tiles; first += at_once) {
        int64_t count = smaller(at_once, tiles - first);
        NAME(spread_view)(solve, x, first, count, step_n, n, NAME(spread_input), 6, 1, inputs);
        for (int64_t p = 0; p < POINTS; p++)
            NAME(matrix)(count, fan_in, m, inputs + p * step_n, n, weight + p * fan_in * m, NULL, &NAME(plain), outputs + p * step_m, m);
        for (int64_t t = 0; t < count; t++) {
            int64_t top = (first + t) / across * 4, left = (first + t) % across * 4;
            int64_t high = smaller(4, solve->height - top), wide = smaller(4, solve->columns - left);
            T *to = y.first + top * y.row + left * y.pixel;
            for (int64_t o = 0; o < m; o += LANES) {
                vec pixels[16], here = {0};
                int64_t step = step_m / LANES;
                if (shift) here = *(const vec *)(shift + o);
                NAME(both_ways)(NAME(gather_output), 6, 4, (const vec *)(outputs + t * m + o), 6 * step, step, pixels, 1);
                for (int64_t i = 0; i < high; i++)
                    for (int64_t j = 0; j < wide; j++) {
                        vec pixel = pixels[4 * i + j] + here;
                        T *place = to + i * y.row + j * y.pixel + o;
                        if (y.pixel == m)
                            *(vec *)place = NAME(finished)(finish, pixel, place);
                        else
                            memcpy(place, &pixel, smaller(LANES, fan_out - o) * sizeof(T));
                    }
            }
        }
    }
}

/* Writes a row of whole pixels to flat ones, from the first to the last: what a vector writes too
 * much, the next one overwrites. `end`: of the memory. */
static void NAME(narrow)(const T *from, int64_t count, int64_t m, int64_t fan_out, T *to, const T *end) {
    for (int64_t j = 0; j < count; j++, from += m, to += fan_out)
        for (int64_t o = 0; o < fan_out; o += LANES)
            if (fan_out * sizeof(T) <= 16 && to + 16 / sizeof(T) <= end)
                memcpy(to, from, 16);
            else if (to + o + LANES <= end)
                *(loose *)(to + o) = *(const vec *)(from + o);
            else
                memcpy(to + o, from + o, smaller(LANES, fan_out - o) * sizeof(T));
}

/* The same with one tap; `room`: a row of whole pixels. */
static void NAME(multiply_view)(const Solve *solve, View x, int64_t fan_in, const T *weight, const T *shift, const Finish *finish,
                                View y, int64_t fan_out, T *room) {
    int64_t m = NAME(whole)(fan_out);
    int direct = y.pixel == m;
    for (int64_t r = 0; r < solve->height; r++) {
        T *to = y.first + r * y.row;
        if (!direct && NAME(fills_half)(fan_out))
            NAME(matrix_of_halves)(solve->columns, fan_in, x.first + r * x.row, x.pixel, weight, shift, room, m);
        else
            NAME(matrix)(solve->columns, fan_in, m, x.first + r * x.row, x.pixel, weight, shift, direct ? finish : &NAME(plain), direct ? to : room, m);
        if (!direct) NAME(narrow)(room, solve->columns, m, fan_out, to, y.first + solve->width);
    }
}

static void NAME(apply_view)(const Solve *solve, const Layer *layer, View x, int64_t fan_in, const T *weight, const T *shift,
                             const Finish *finish, View y, int64_t fan_out, T *room) {
    (layer->taps == 9 ? NAME(convolve_view) : NAME(multiply_view))(solve, x, fan_in, weight, shift, finish, y, fan_out, room);
}

/* Numbers of the room that a layer needs, forward and backward. */
static int64_t NAME(room_of)(const Solve *solve, const Layer *layer) {
    int64_t channels = NAME(whole)(layer->fan_in) + NAME(whole)(layer->fan_out);
    int64_t tiles = layer->taps == 9 ? POINTS * NAME(point)(TILES_AT_MOST, channels) + POINTS * LINE / (int64_t)sizeof(T) : 0;
    return tiles + solve->columns * channels + channels;
}

/* The places of a plan, as in make_plan: on the tape of a stage the state, then the image that each
 * layer reads, and the one before the activation where its derivative needs it. The slot and the
 * gradients of a stage overwrite those of the one before; cheap images are at the start of the
 * slot, the rest of it is room. */
static void NAME(place_images)(Plan *plan) {
    const Solve *solve = plan->solve;
    int64_t sums = 0, g_at = 0, room = 0;
    plan->kept = plan->n;
    for (int64_t j = 0; j < solve->n_layers; j++) {
        const Layer *layer = &solve->layers[j];
        int64_t *place = NAME(is_cheap)(solve, j - 1) ? &plan->cheap : &plan->kept;
        plan->x_at[j] = *place;
        if (j || layer->taps == 9) *place += NAME(bordered)(solve, layer->fan_in) / LANES;
        plan->pre_at[j] = plan->kept;
        if (layer->activation >= SILU) plan->kept += NAME(bordered)(solve, layer->fan_out) / LANES;
        int last = j + 1 == solve->n_layers;
        plan->g_at[j] = g_at;
        if (last) g_at += plan->n;
        plan->g_sum[j] = last ? g_at : plan->g_at[j]; /* with a border */
        g_at += !last || layer->taps == 9 ? NAME(bordered)(solve, layer->fan_out) / LANES : 0;
        Sums own = NAME(sums_of)(solve, j);
        plan->w_at[j] = sums;
        sums += NAME(points)(layer) * own.rows * own.wide + 2 * NAME(whole)(layer->fan_out);
        plan->operations += 2.0 * solve->batch * solve->height * solve->columns * layer->fan_in * layer->fan_out * (layer->taps == 9 ? 3 : 1);
        room = larger(room, NAME(room_of)(solve, layer) / LANES + 1);
    }
    plan->room = plan->cheap + room;
    plan->g_slot = g_at;
    plan->sums = sums;
}

/* The image that a layer reads; the first one may read the state itself. */
static View NAME(read_from)(const Plan *plan, int64_t j, vec *tape, vec *slot) {
    const Solve *solve = plan->solve;
    int64_t channels = solve->layers[j].fan_in;
    if (j == 0 && solve->layers[j].taps == 1) return NAME(flat)(solve, tape, channels);
    return NAME(view)(solve, NAME(input)(plan, j, tape, slot), channels);
}

/* Copies flat pixels into an image with a border. */
static void NAME(with_border)(const Solve *solve, const vec *state, int64_t channels, vec *image) {
    View from = NAME(flat)(solve, state, channels), to = NAME(view)(solve, image, channels);
    NAME(clear_border)(solve, image, channels);
    for (int64_t r = 0; r < solve->height; r++)
        for (int64_t c = 0; c < solve->columns; c++) {
            T *place = to.first + r * to.row + c * to.pixel;
            memcpy(place, from.first + r * from.row + c * from.pixel, channels * sizeof(T));
            memset(place + channels, 0, (to.pixel - channels) * sizeof(T));
        }
}

static void NAME(apply_image_layer)(const Plan *plan, int64_t j, const vec *t, vec *tape, vec *slot, vec *k) {
    const Solve *solve = plan->solve;
    const Layer *layer = &solve->layers[j];
    const Packed *packed = &plan->packed[j];
    int64_t m = NAME(whole)(layer->fan_out);
    int last = j + 1 == solve->n_layers;
    T *shift = (T *)(slot + plan->cheap);
    for (int64_t o = 0; o < m; o++)
        shift[o] = o >= layer->fan_out ? 0 : packed->bias[o] + (packed->time ? packed->time[o] * ((const T *)t)[0] : 0);
    vec *image = last ? k : NAME(input)(plan, j + 1, tape, slot), *before = layer->activation >= SILU ? tape + plan->pre_at[j] : image;
    View y = last ? NAME(flat)(solve, k, layer->fan_out) : NAME(view)(solve, before, layer->fan_out);
    if (!last) NAME(clear_border)(solve, image, layer->fan_out);
    Finish finish = {layer->activation == RELU ? RECTIFIED : PLAIN, NULL, NULL};
    NAME(apply_view)(solve, layer, NAME(read_from)(plan, j, tape, slot), layer->fan_in, packed->forward, shift, &finish, y, layer->fan_out,
                     shift + m);
    if (layer->activation <= RELU) return;
    View to = NAME(view)(solve, image, layer->fan_out);
    for (int64_t r = 0; r < solve->height; r++)
        NAME(activate)(layer->activation, (vec *)(y.first + r * y.row), (vec *)(to.first + r * to.row), solve->columns * m / LANES);
}

static void NAME(evaluate_images)(const Plan *plan, const vec *t, vec *tape, vec *slot, vec *k) {
    const Solve *solve = plan->solve;
    if (solve->layers[0].taps == 9) NAME(with_border)(solve, tape, solve->layers[0].fan_in, tape + plan->x_at[0]);
    for (int64_t j = 0; j < solve->n_layers; j++) NAME(apply_image_layer)(plan, j, t, tape, slot, k);
    memset((T *)k + solve->width, 0, plan->n * sizeof(vec) - solve->width * sizeof(T));
}

static void NAME(restore_images)(const Plan *plan, const vec *t, vec *tape, vec *slot) {
    for (int64_t j = 0; j + 1 < plan->solve->n_layers; j++)
        if (NAME(is_cheap)(plan->solve, j)) NAME(apply_image_layer)(plan, j, t, tape, slot, NULL);
}

/* See pull_back. The gradients of the outputs stay in g_slot, with borders where convolutions read
 * them. */
static void NAME(pull_back_images)(const Plan *plan, vec *tape, vec *slot, vec *g_slot, vec *g) {
    const Solve *solve = plan->solve;
    T *room = (T *)(slot + plan->cheap);
    for (int64_t j = solve->n_layers - 1; j >= 0; j--) {
        const Layer *layer = &solve->layers[j];
        int last = j + 1 == solve->n_layers;
        if (last && layer->taps == 9) NAME(with_border)(solve, g_slot + plan->g_at[j], layer->fan_out, g_slot + plan->g_sum[j]);
        View above = last && layer->taps == 1 ? NAME(flat)(solve, g_slot + plan->g_at[j], layer->fan_out)
                                              : NAME(view)(solve, g_slot + plan->g_sum[j], layer->fan_out);
        vec *image = j ? g_slot + plan->g_at[j - 1] : g;
        View below = j ? NAME(view)(solve, image, layer->fan_in) : NAME(flat)(solve, g, layer->fan_in);
        if (j) NAME(clear_border)(solve, image, layer->fan_in);
        int64_t activation = j ? solve->layers[j - 1].activation : IDENTITY;
        View known = activation >= SILU ? NAME(view)(solve, tape + plan->pre_at[j - 1], layer->fan_in) : NAME(read_from)(plan, j, tape, slot);
        Finish finish = {activation == RELU ? MASKED : PLAIN, known.first, below.first};
        NAME(apply_view)(solve, layer, above, layer->fan_out, plan->packed[j].back, NULL, &finish, below, layer->fan_in, room);
        for (int64_t r = 0; activation > RELU && r < solve->height; r++)
            NAME(pull_activation)(activation, (vec *)(known.first + r * known.row), (vec *)(below.first + r * below.row), solve->columns * below.pixel / LANES);
    }
    memset((T *)g + solve->width, 0, plan->n * sizeof(vec) - solve->width * sizeof(T));
}

/* The sum over pixels, so many numbers apart, of a vector of channels. */
ALWAYS vec NAME(sum_pixels)(const T *from, int64_t count, int64_t pixel) {
    vec sums[4] = {{0}};
    int64_t c = 0;
    for (; c + 4 <= count; c += 4)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[q] += *(const loose *)(from + (c + q) * pixel);
    for (; c < count; c++) sums[0] += *(const loose *)(from + c * pixel);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The gradients of the weights (see Sums) and of the shift of a layer from a stage; the shift's
 * follows them, then that of the time weights. */
static void NAME(image_gradient)(const Plan *plan, int64_t j, vec *tape, vec *slot, vec *g_slot, const vec *time, T *gradient) {
    const Solve *solve = plan->solve;
    const Layer *layer = &solve->layers[j];
    int64_t n = NAME(whole)(layer->fan_in), m = NAME(whole)(layer->fan_out);
    Sums own = NAME(sums_of)(solve, j);
    int last = j + 1 == solve->n_layers;
    View x = NAME(read_from)(plan, j, tape, slot);
    View g = last && layer->taps == 1 ? NAME(flat)(solve, g_slot + plan->g_at[j], layer->fan_out)
                                      : NAME(view)(solve, g_slot + plan->g_sum[j], layer->fan_out);
    vec *shift = (vec *)(gradient + NAME(points)(layer) * own.rows * own.wide), *sums = slot + plan->cheap;
    T *free_room = (T *)sums + m;
    for (int64_t o = 0; o < m / LANES; o++) sums[o] = (vec){0};
    for (int64_t r = 0; r < solve->height; r++) {
        const T *from = g.first + r * g.row, *rows = x.first + r * x.row;
        for (int64_t o = 0; o < m / LANES; o++) sums[o] += NAME(sum_pixels)(from + o * LANES, solve->columns, g.pixel);
        if (layer->taps == 9) continue;
        if (own.turned) {
            NAME(sum_products)(solve->columns, layer->fan_out, n, from, g.pixel, rows, x.pixel, gradient);
            continue;
        }
        if (g.pixel != m) { /* whole vectors of a flat row; what they read too much is not used */
            for (int64_t c = 0; c < solve->columns; c++)
                for (int64_t o = 0; o < m; o += LANES) *(vec *)(free_room + c * m + o) = *(const loose *)(from + c * g.pixel + o);
            from = free_room;
        }
        NAME(sum_products)(solve->columns, layer->fan_in, m, rows, x.pixel, from, m, gradient);
    }
    for (int64_t o = 0; o < m / LANES; o++) {
        shift[o] += sums[o];
        shift[m / LANES + o] += sums[o] * ((const T *)time)[0];
    }
    if (layer->taps == 1) return;
    int64_t tiles = NAME(tiles_along)(solve->height) * NAME(tiles_along)(solve->columns);
    int64_t at_once = POINTS * n * m * (int64_t)sizeof(T) > CACHE ? TILES_AT_MOST : TILES_AT_MOST / 2;
    int64_t step_n = NAME(point)(at_once, n), step_m = NAME(point)(at_once, m);
    T *inputs = free_room, *outputs = inputs + POINTS * step_n;
    for (int64_t first = 0; first < tiles; first += at_once) {
        int64_t count = smaller(at_once, tiles - first);
        NAME(spread_view)(solve, x, first, count, step_n, n, NAME(spread_input), 6, 1, inputs);
        NAME(spread_view)(solve, g, first, count, step_m, m, NAME(spread_output), 4, 0, outputs);
        for (int64_t p = 0; p < POINTS; p++)
            NAME(sum_products)(count, layer->fan_in, m, inputs + p * step_n, n, outputs + p * step_m, m, gradient + p * own.rows * m);
    }
}

static void NAME(image_gradients)(const Plan *plan, vec *tape, vec *slot, vec *g_slot, const vec *time, T *sums) {
    for (int64_t j = 0; j < plan->solve->n_layers; j++)
        NAME(image_gradient)(plan, j, tape, slot, g_slot, time, sums + plan->w_at[j]);
}

/* Writes the gradients of a layer's tensors, as in backward. */
static void NAME(take_image_gradient)(const Solve *solve, int64_t j, const T *sums) {
    const Layer *layer = &solve->layers[j];
    int64_t n = layer->fan_in, m = layer->fan_out;
    Sums own = NAME(sums_of)(solve, j);
    const T *shift = sums + NAME(points)(layer) * own.rows * own.wide;
    T *found = layer->weight_gradient;
    for (int64_t o = 0; found && own.turned && o < m; o++) memcpy(found + o * n, sums + o * own.wide, n * sizeof(T));
    for (int64_t k = 0; found && !own.turned && k < n; k++)
        for (int64_t o = 0; o < m; o += LANES) {
            vec points[POINTS], taps[9];
            for (int64_t p = 0; p < NAME(points)(layer); p++) points[p] = *(const vec *)(sums + (p * own.rows + k) * own.wide + o);
            taps[0] = points[0];
            if (layer->taps == 9) NAME(both_ways)(NAME(gather_weight), 6, 3, points, 6, 1, taps, 1);
            for (int64_t lane = 0; lane < smaller(LANES, m - o); lane++)
                for (int64_t tap = 0; tap < layer->taps; tap++)
                    found[((o + lane) * n + k) * layer->taps + tap] = ((const T *)(taps + tap))[lane];
        }
    if (layer->bias_gradient) memcpy(layer->bias_gradient, shift, m * sizeof(T));
    if (layer->time_gradient) memcpy(layer->time_gradient, shift + NAME(whole)(m), m * sizeof(T));
}
