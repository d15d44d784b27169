/* Solves with fixed steps, forward and backward; a part of kernel.h. */

/* The plan of a solve: the layout of memory and the division of work. The values of a stage are in
 * two places: on its tape those that the backward pass needs, in its slot those that it computes
 * again. */
typedef struct {
    const Solve *solve;
    Packed *packed;
    T *memory;                     /* of the packed weights */
    int64_t *rows, *x_at, *pre_at; /* of each layer: rows in a sample; places of its input, and of
                                    * its activation's input */
    int64_t *g_at, *w_at;          /* places of its output's gradient in a slot, and of its own
                                    * gradients in a part's sums */
    int64_t *x_sum, *g_sum;        /* of pairs: places of the sum of both rows, of the input and of
                                    * the output's gradient */
    int64_t block, n;              /* samples of a block, and vectors of its state */
    int64_t kept, slot, g_slot;    /* vectors of a stage: on the tape, in its slot, of gradients */
    int64_t g_step;                /* from the gradients of a stage to the next; 0 if each overwrites the one before */
    int64_t room, cheap;           /* of images: vectors that an evaluation needs, and those of them that hold
                                    * what is computed again */
    int64_t sums;                  /* numbers in a part's sums */
    double operations;             /* about, of one evaluation of the field for all samples */
    int64_t blocks, parts, group;  /* group: steps whose gradients of weights are summed together */
    T *part_sums;
    int64_t tape_block;            /* vectors of a block on the tape */
} Plan;

/* Layers on images; in image_layers.h. */
static void NAME(place_images)(Plan *plan);
static int64_t NAME(image_size)(const Layer *layer, int back);
static void NAME(pack_image_layer)(const Layer *layer, int back, T *to);
static void NAME(evaluate_images)(const Plan *plan, const vec *t, vec *tape, vec *slot, vec *k);
static void NAME(restore_images)(const Plan *plan, const vec *t, vec *tape, vec *slot);
static void NAME(pull_back_images)(const Plan *plan, vec *tape, vec *slot, vec *g_slot, vec *g);
static void NAME(image_gradients)(const Plan *plan, vec *tape, vec *slot, vec *g_slot, const vec *time, T *sums);
static void NAME(take_image_gradient)(const Solve *solve, int64_t j, const T *sums);

/* The divergence; in divergence.h. */
static void NAME(place_divergence)(Plan *plan, int64_t *slot, int64_t *g_at, int64_t *sums);
static void NAME(evaluate_divergence)(const Plan *plan, vec *tape, vec *slot, vec *k);
static void NAME(find_slopes)(const Plan *plan, vec *tape, vec *slot);
static void NAME(pull_back_divergence)(const Plan *plan, vec *tape, vec *slot, vec *g_slot);
static void NAME(add_curvature)(const Plan *plan, int64_t j, vec *tape, vec *slot, const vec *g_slot, vec *g);

static int NAME(is_image)(const Solve *solve) { return solve->height > 0; }

static void NAME(free_plan)(Plan *plan) {
    free(plan->packed);
    free(plan->memory);
    free(plan->rows);
    free(plan->part_sums);
}

/* Whether the backward pass computes the output of a layer again, which is faster than to fetch it
 * from the tape. */
static int NAME(is_cheap)(const Solve *solve, int64_t j) {
    return j >= 0 && solve->layers[j].taps * solve->layers[j].fan_in <= 4 && solve->layers[j].activation <= LEAKY_RELU;
}

/* Whether the input of a layer lies in the slot. */
static int NAME(in_slot)(const Solve *solve, int64_t j) { return j == solve->n_layers || NAME(is_cheap)(solve, j - 1); }

/* The number of layers, with the coupling of the divergence. */
static int64_t NAME(all_layers)(const Solve *solve) { return solve->n_layers + solve->divergence; }

static int NAME(make_plan)(Plan *plan, const Solve *solve) {
    int64_t n = NAME(all_layers)(solve), width = solve->width - solve->divergence, slot = 0, g_at = 0, sums = 0;
    memset(plan, 0, sizeof *plan);
    plan->solve = solve;
    plan->block = NAME(is_image)(solve) ? 1 : BLOCK;
    plan->n = NAME(is_image)(solve) ? 2 * ((width + BLOCK - 1) / BLOCK) : 2 * solve->width;
    plan->rows = malloc(7 * n * sizeof(int64_t));
    if (!plan->rows) return NAME(free_plan)(plan), NO_MEMORY;
    plan->x_at = plan->rows + n;
    plan->pre_at = plan->x_at + n;
    plan->g_at = plan->pre_at + n;
    plan->w_at = plan->g_at + n;
    plan->x_sum = plan->w_at + n;
    plan->g_sum = plan->x_sum + n;
    if (NAME(is_image)(solve)) NAME(place_images)(plan);
    for (int64_t j = 0; j < solve->n_layers && !NAME(is_image)(solve); j++) {
        const Layer *layer = &solve->layers[j];
        int64_t rows = width / layer->fan_in, out = rows * layer->fan_out;
        plan->rows[j] = rows;
        int64_t *place = NAME(in_slot)(solve, j) ? &slot : &plan->kept;
        plan->x_at[j] = *place;
        *place += j ? 2 * width : plan->n;
        plan->pre_at[j] = plan->kept;
        if (layer->activation >= SILU) plan->kept += 2 * out;
        plan->g_at[j] = g_at;
        g_at += j + 1 < solve->n_layers ? 2 * out : plan->n;
        plan->x_sum[j] = slot;
        plan->g_sum[j] = g_at;
        if (NAME(is_pair)(rows, layer->taps)) {
            slot += width;
            g_at += out;
        }
        int64_t each = 2 * layer->taps * layer->fan_in + (layer->activation > LEAKY_RELU ? OF_ACTIVATION : 0);
        plan->operations += (double)solve->batch * out * each;
        plan->w_at[j] = sums;
        sums += (layer->taps * layer->fan_in + 2) * layer->fan_out;
        width = out;
    }
    if (solve->divergence) NAME(place_divergence)(plan, &slot, &g_at, &sums);
    if (!NAME(is_image)(solve)) {
        plan->slot = plan->room = slot;
        plan->g_slot = plan->g_step = g_at;
        plan->sums = sums;
    }
    plan->blocks = (solve->batch + plan->block - 1) / plan->block;
    plan->parts = smaller(plan->blocks, MOST_PARTS);
    int64_t stage_bytes = (plan->kept + plan->slot + plan->g_slot) * (int64_t)sizeof(vec), stages = smaller(GROUP, CACHE / stage_bytes);
    if (NAME(is_image)(solve)) {
        int64_t most = MOST_PARTS;
        while (most > FEWEST_PARTS && most * plan->sums > MOST_SUMS) most /= 2;
        plan->parts = smaller(plan->parts, most);
        stages = larger(stages, LEAST_GROUP_OF_IMAGES);
    }
    plan->group = larger(1, stages / solve->n_stages);
    plan->tape_block = solve->keep == KEEP_STAGES ? (solve->capacity * solve->n_stages + (solve->inside != NULL)) * plan->kept
                       : solve->keep == KEEP_STATES
                           ? (solve->n_steps + plan->group - 1) / plan->group * plan->n
                           : 0;
    return 0;
}

/* Numbers, up to whole blocks. */
static int64_t NAME(whole_block)(int64_t numbers) { return (numbers + BLOCK - 1) / BLOCK * BLOCK; }

/* The numbers of a layer's packed weights. */
static int64_t NAME(packed_size)(const Solve *solve, const Layer *layer, int back) {
    return NAME(whole_block)(NAME(is_image)(solve) ? NAME(image_size)(layer, back) : layer->taps * layer->fan_in * layer->fan_out);
}

/* Packs the weights for a forward or a backward pass. */
static int NAME(pack_weights)(Plan *plan, int back) {
    const Solve *solve = plan->solve;
    int64_t n = NAME(all_layers)(solve), numbers = 0, most = 0;
    for (int64_t j = 0; j < n; j++) {
        const Layer *layer = &solve->layers[j];
        int64_t weights = layer->taps * layer->fan_in * layer->fan_out;
        numbers += NAME(packed_size)(solve, layer, 0) + NAME(packed_size)(solve, layer, 1) + NAME(whole_block)(2 * layer->fan_out);
        most = larger(most, weights);
    }
    plan->packed = malloc(n * sizeof(Packed));
    plan->memory = aligned((numbers + most) * sizeof(T));
    if (!plan->packed || !plan->memory) return NAME(free_plan)(plan), NO_MEMORY;
    T *free_place = plan->memory;
    for (int64_t j = 0; j < n; j++) {
        const Layer *layer = &solve->layers[j];
        int64_t taps = layer->taps, k = layer->fan_in, o = layer->fan_out, tap_stride = layer->tap_stride;
        const T *weight = layer->weight;
        Packed *packed = &plan->packed[j];
        packed->forward = free_place;
        packed->back = packed->forward + NAME(packed_size)(solve, layer, 0);
        packed->bias = packed->back + NAME(packed_size)(solve, layer, 1);
        packed->time = layer->time_weight ? packed->bias + o : NULL;
        free_place = packed->bias + NAME(whole_block)(2 * o);
        int64_t in = layer->stride_in, out = layer->stride_out;
        const T *last = weight + (taps - 1) * tap_stride;
        int forward = !back || solve->keep == KEEP_STATES || NAME(is_cheap)(solve, j), image = NAME(is_image)(solve);
        int pair = !image && NAME(is_pair)(plan->rows[j], taps);
        T *room = plan->memory + numbers;
        if (image && forward) NAME(pack_image_layer)(layer, 0, packed->forward);
        if (image && back) NAME(pack_image_layer)(layer, 1, packed->back);
        if (image) forward = 0;
        if (forward && pair) NAME(pack_pair)(weight, k, o, tap_stride, in, out, room, packed->forward);
        if (forward && !pair) NAME(pack)(weight, taps, k, o, tap_stride, in, out, packed->forward);
        if (back && pair) NAME(pack_pair)(last, o, k, -tap_stride, out, in, room, packed->back);
        if (back && !pair && !image) NAME(pack)(last, taps, o, k, -tap_stride, out, in, packed->back);
        for (int64_t i = 0; layer->bias && i < o; i++) packed->bias[i] = ((const T *)layer->bias)[i * layer->bias_stride];
        for (int64_t i = 0; packed->time && i < o; i++)
            packed->time[i] = ((const T *)layer->time_weight)[i * layer->time_stride];
    }
    return 0;
}

static int64_t NAME(first_block)(const Plan *plan, int64_t part) { return part * plan->blocks / plan->parts; }

static int64_t NAME(widest)(const Solve *solve) {
    int64_t most = 0;
    for (int64_t j = 0; j < solve->n_layers; j++) most = larger(most, solve->layers[j].fan_out);
    return most;
}

/* The samples of a block, feature by feature; places without a sample get the block's last one, or
 * zero. An image is copied as it is. */
static void NAME(load)(const Plan *plan, const T *from, int64_t count, int zero, vec *to) {
    int64_t width = plan->solve->width;
    T *numbers = (T *)to;
    if (NAME(is_image)(plan->solve)) {
        memcpy(numbers, from, width * sizeof(T));
        memset(numbers + width, 0, plan->n * sizeof(vec) - width * sizeof(T));
        return;
    }
    for (int64_t i = 0; i < width; i++)
        for (int64_t s = 0; s < BLOCK; s++)
            numbers[i * BLOCK + s] = s < count ? from[s * width + i] : zero ? 0 : from[(count - 1) * width + i];
}

static void NAME(store)(const Plan *plan, const vec *from, int64_t count, T *to) {
    int64_t width = plan->solve->width;
    const T *numbers = (const T *)from;
    if (NAME(is_image)(plan->solve)) {
        memcpy(to, numbers, width * sizeof(T));
        return;
    }
    for (int64_t s = 0; s < count; s++)
        for (int64_t i = 0; i < width; i++) to[s * width + i] = numbers[i * BLOCK + s];
}

/* A step of a block: its size and the times of its ends, the same for all samples or one for
 * each. */
typedef struct {
    double h, start, end; /* of all samples; the ends as fractions of the interval */
    const double *starts, *ends; /* of each sample of the block; NULL if all have the same */
    vec sizes[2];
    int own; /* whether this is the step of one sample alone */
} Span;

static Span NAME(span)(const Solve *solve, double start, double end) {
    Span span = {(end - start) * (solve->t1 - solve->t0), start, end, NULL, NULL, {{0}, {0}}, 0};
    return span;
}

static Span NAME(span_per_sample)(const Solve *solve, const double *starts, const double *ends) {
    Span span = {0, 0, 0, starts, ends, {{0}, {0}}, 0};
    T *sizes = (T *)span.sizes;
    for (int64_t s = 0; s < BLOCK; s++) sizes[s] = (T)((ends[s] - starts[s]) * (solve->t1 - solve->t0));
    return span;
}

/* w h, for both vectors of a block */
static inline void NAME(scaled)(const Span *span, double w, vec *found) {
    const vec zero = {0};
    for (int half = 0; half < 2; half++)
        found[half] = span->starts ? span->sizes[half] * (T)w : zero + (T)(w * span->h);
}

static double NAME(at)(const Solve *solve, double theta) {
    return theta == 1 ? solve->t1 : solve->t0 + theta * (solve->t1 - solve->t0);
}

/* The times of a stage, for both vectors of a block. */
static inline void NAME(stage_time)(const Solve *solve, const Span *span, double c, vec *t) {
    const vec zero = {0};
    if (span->starts) {
        T *times = (T *)t;
        for (int64_t s = 0; s < BLOCK; s++) {
            double theta = c == 1 ? span->ends[s] : span->starts[s] + c * (span->ends[s] - span->starts[s]);
            times[s] = (T)NAME(at)(solve, theta);
        }
    } else
        t[0] = t[1] = zero + (T)NAME(at)(solve, c == 1 ? span->end : span->start + c * (span->end - span->start));
}

/* y = z + h sum_j weights[j stride] k_j, n vectors each */
static void NAME(combine)(const vec *z, const Span *span, const double *weights, int64_t stride, int64_t count, const vec *k,
                          vec *y, int64_t n) {
    if (y != z) memcpy(y, z, n * sizeof(vec));
    for (int64_t j = 0; j < count; j++) {
        if (weights[j * stride] == 0) continue;
        vec w[2];
        NAME(scaled)(span, weights[j * stride], w);
        for (int64_t i = 0; i < n; i += 2) {
            y[i] += k[j * n + i] * w[0];
            y[i + 1] += k[j * n + i + 1] * w[1];
        }
    }
}

/* The input of a layer in a stage. */
static vec *NAME(input)(const Plan *plan, int64_t j, vec *tape, vec *slot) {
    return (NAME(in_slot)(plan->solve, j) ? slot : tape) + plan->x_at[j];
}

/* What is known of the activation of a layer before the last one: see pull_activation. */
static const vec *NAME(known)(const Plan *plan, int64_t j, vec *tape, vec *slot) {
    return plan->solve->layers[j].activation >= SILU ? tape + plan->pre_at[j] : NAME(input)(plan, j + 1, tape, slot);
}

static void NAME(apply_layer)(const Plan *plan, int64_t j, const vec *t, vec *tape, vec *slot, vec *k) {
    const Layer *layer = &plan->solve->layers[j];
    const Packed *packed = &plan->packed[j];
    const vec *x = NAME(input)(plan, j, tape, slot);
    vec *after = j + 1 < plan->solve->n_layers ? NAME(input)(plan, j + 1, tape, slot) : k;
    vec *y = layer->activation >= SILU ? tape + plan->pre_at[j] : after;
    if (NAME(is_pair)(plan->rows[j], layer->taps))
        NAME(convolve_pair)(layer->fan_in, layer->fan_out, packed->forward, packed->bias, packed->time, t, x,
                            slot + plan->x_sum[j], y);
    else
        NAME(convolve)(plan->rows[j], layer->taps, layer->fan_in, layer->fan_out, packed->forward, packed->bias, packed->time, t,
                       x, y);
    if (layer->activation != IDENTITY) NAME(activate)(layer->activation, y, after, 2 * plan->rows[j] * layer->fan_out);
}

/* The field at the state at the start of a tape. */
static void NAME(evaluate)(const Plan *plan, const vec *t, vec *tape, vec *slot, vec *k) {
    if (NAME(is_image)(plan->solve)) NAME(evaluate_images)(plan, t, tape, slot, k);
    else
        for (int64_t j = 0; j < plan->solve->n_layers; j++) NAME(apply_layer)(plan, j, t, tape, slot, k);
    if (plan->solve->divergence) NAME(evaluate_divergence)(plan, tape, slot, k);
}

/* Fills a slot as it was after the evaluation that wrote this tape. */
static void NAME(restore)(const Plan *plan, const vec *t, vec *tape, vec *slot) {
    const Solve *solve = plan->solve;
    if (NAME(is_image)(plan->solve)) {
        NAME(restore_images)(plan, t, tape, slot);
        return;
    }
    for (int64_t j = 0; j < solve->n_layers; j++) {
        if (NAME(is_cheap)(solve, j - 1)) NAME(apply_layer)(plan, j - 1, t, tape, slot, NULL);
        if (NAME(is_pair)(plan->rows[j], solve->layers[j].taps)) {
            int64_t half = 2 * solve->layers[j].fan_in;
            const vec *x = NAME(input)(plan, j, tape, slot);
            for (int64_t i = 0; i < half; i++) slot[plan->x_sum[j] + i] = x[i] + x[half + i];
        }
    }
    if (solve->divergence) NAME(find_slopes)(plan, tape, slot);
}

/* The step of a number; `edges` is room for the fractions of a block's samples at both ends. */
static Span NAME(span_of)(const Solve *solve, int64_t block, int64_t number, double *edges) {
    if (!solve->per_sample) return NAME(span)(solve, solve->grid[number], solve->grid[number + 1]);
    if (NAME(is_image)(solve)) {
        const double *own = solve->grid + number * solve->batch + block;
        Span span = NAME(span)(solve, own[0], own[solve->batch]);
        span.own = 1;
        return span;
    }
    for (int64_t s = 0; s < BLOCK; s++) {
        int64_t sample = smaller(block * BLOCK + s, solve->batch - 1);
        edges[s] = solve->grid[number * solve->batch + sample];
        edges[BLOCK + s] = solve->grid[(number + 1) * solve->batch + sample];
    }
    return NAME(span_per_sample)(solve, edges, edges + BLOCK);
}

/* Whether a step moves no sample of a block because all have reached the end. */
static int NAME(stands)(const Span *span) {
    if (!span->starts) return span->own && span->start == span->end;
    for (int64_t s = 0; s < BLOCK; s++)
        if (span->starts[s] != span->ends[s]) return 0;
    return 1;
}

/* The stages of a step from z; those before `known` are known, with their tapes. The tapes and slots
 * of the stages are `on` and `off` vectors apart; 0 if each overwrites the one before. */
static void NAME(find_stages)(const Plan *plan, const Span *span, const vec *z, int64_t known, vec *k, vec *tapes, int64_t on,
                              vec *slots, int64_t off) {
    const Solve *solve = plan->solve;
    int64_t n = plan->n, stages = solve->n_stages;
    for (int64_t i = known; i < stages; i++) {
        vec *tape = tapes + i * on, t[2];
        for (int64_t m = on; m < 2 * on; m++) __builtin_prefetch(tape + m, 1);
        NAME(combine)(z, span, solve->a + i * stages, 1, i, k, tape, n);
        NAME(stage_time)(solve, span, solve->c[i], t);
        NAME(evaluate)(plan, t, tape, slots + i * off, k + i * n);
    }
}

/* The field at a state, at a fraction c of a step: one time for all samples, or one for each. */
static void NAME(field_at)(const Plan *plan, const Span *span, double c, const vec *z, vec *tape, vec *slot, vec *k) {
    vec t[2];
    memcpy(tape, z, plan->n * sizeof(vec));
    NAME(stage_time)(plan->solve, span, c, t);
    NAME(evaluate)(plan, t, tape, slot, k);
}

/* The weight of a stage, or of the field at the end (number n_stages), at a fraction x of a step. */
static double NAME(dense_weight)(const Solve *solve, int64_t stage, double x) {
    double weight = 0;
    for (int64_t i = solve->degree - 1; i >= 0; i--) weight = (weight + solve->dense[stage * solve->degree + i]) * x;
    return weight;
}

/* The state at a fraction x of a step from z, given the stages and the field at the end. */
static void NAME(interpolate)(const Plan *plan, const Span *span, double x, const vec *z, const vec *k, vec *y) {
    const Solve *solve = plan->solve;
    int64_t n = plan->n;
    memcpy(y, z, n * sizeof(vec));
    for (int64_t i = 0; i <= solve->n_stages; i++) {
        double weight = NAME(dense_weight)(solve, i, x);
        NAME(combine)(y, span, &weight, 1, 1, k + i * n, y, n);
    }
}

/* Whether a state is saved inside a step, not at its start. */
static int NAME(is_inside)(const Solve *solve, int64_t point) { return solve->inside && solve->inside[point] != 0; }

/* The number of the first point after those of a step. */
static int64_t NAME(points_until)(const Solve *solve, int64_t point, int64_t step) {
    while (point < solve->n_saved && solve->saved[point] == step) point++;
    return point;
}

static T *NAME(place_of)(const Solve *solve, const void *states, int64_t point, int64_t first) {
    return (T *)states + (point * solve->batch + first) * solve->width;
}

/* ---- forward ---- */

static void NAME(forward_block)(const Plan *plan, int64_t block, vec *scratch) {
    const Solve *solve = plan->solve;
    int64_t n = plan->n, stages = solve->n_stages, next = 0;
    int64_t first = block * plan->block, count = smaller(plan->block, solve->batch - first);
    vec *z = scratch, *y = z + n, *before = y + n, *k = before + n, *own = k + (stages + 1) * n, *slot = own + plan->kept;
    vec *tape = (vec *)solve->tape + block * plan->tape_block;
    int kept = solve->keep == KEEP_STAGES, known = 0;
    double edges[2 * BLOCK];
    NAME(load)(plan, (const T *)solve->z0 + first * solve->width, count, 0, z);
    for (int64_t number = 0;; number++) {
        for (; next < solve->n_saved && solve->saved[next] == number && !NAME(is_inside)(solve, next); next++)
            NAME(store)(plan, z, count, NAME(place_of)(solve, solve->zs, next, first));
        if (number == solve->n_steps) break;
        if (solve->keep == KEEP_STATES && number % plan->group == 0)
            memcpy(tape + number / plan->group * n, z, n * sizeof(vec));
        Span span = NAME(span_of)(solve, block, number, edges);
        if (NAME(stands)(&span)) continue;
        int64_t until = NAME(points_until)(solve, next, number);
        vec *tapes = kept ? tape + number * stages * plan->kept : own;
        NAME(find_stages)(plan, &span, z, known, k, tapes, kept ? plan->kept : 0, slot, 0);
        if (next < until) memcpy(before, z, n * sizeof(vec));
        NAME(combine)(z, &span, solve->b, 1, stages, k, z, n);
        known = next < until;
        if (!known) continue;
        /* the field at the end is the first stage of the next step */
        NAME(field_at)(plan, &span, 1, z, kept ? tapes + stages * plan->kept : own, slot, k + stages * n);
        for (; next < until; next++) {
            NAME(interpolate)(plan, &span, solve->inside[next], before, k, y);
            NAME(store)(plan, y, count, NAME(place_of)(solve, solve->zs, next, first));
        }
        memcpy(k, k + stages * n, n * sizeof(vec));
    }
    NAME(store)(plan, z, count, (T *)solve->z1 + first * solve->width);
}

static int NAME(forward_part)(void *context, int64_t part) {
    const Plan *plan = context;
    vec *scratch = aligned((plan->n * (4 + plan->solve->n_stages) + plan->kept + plan->room) * sizeof(vec));
    if (!scratch) return NO_MEMORY;
    for (int64_t block = NAME(first_block)(plan, part); block < NAME(first_block)(plan, part + 1); block++)
        NAME(forward_block)(plan, block, scratch);
    free(scratch);
    return 0;
}

/* Looks at the bits of the exponents, since a sum could overflow. */
static int NAME(is_finite)(const T *x, int64_t n) {
    const I beyond = sizeof(T) == 4 ? (I)0x7f800000 : (I)0x7ff0000000000000;
    I found = 0;
    for (int64_t i = 0; i < n; i++) {
        I bits;
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & beyond) == beyond;
    }
    return !found;
}

/* Returns FAILED if the final states are not finite; they are written nevertheless. */
static int NAME(forward)(const Solve *solve) {
    Plan plan;
    if (NAME(make_plan)(&plan, solve) || NAME(pack_weights)(&plan, 0)) return NO_MEMORY;
    if (solve->keep) expect_much(solve->tape, plan.blocks * plan.tape_block * sizeof(vec));
    int code = in_parallel(NAME(forward_part), &plan, plan.parts,
                           worth(solve->threads, plan.operations * solve->n_steps * solve->n_stages));
    NAME(free_plan)(&plan);
    if (!code && !NAME(is_finite)(solve->z1, solve->batch * solve->width)) code = FAILED;
    return code;
}

static int64_t NAME(tape_size)(const Solve *solve) {
    Plan plan;
    if (NAME(make_plan)(&plan, solve)) return -1;
    int64_t bytes = (plan.blocks * plan.tape_block + SUMS_BEYOND) * (int64_t)sizeof(vec);
    NAME(free_plan)(&plan);
    return bytes;
}

/* ---- backward ---- */

/* From the gradient of the field's value, at the place of the last layer in g_slot, to the gradient
 * of the state. */
static void NAME(pull_back)(const Plan *plan, vec *tape, vec *slot, vec *g_slot, vec *g) {
    const Solve *solve = plan->solve;
    if (NAME(is_image)(plan->solve)) {
        NAME(pull_back_images)(plan, tape, slot, g_slot, g);
        return;
    }
    if (solve->divergence) {
        NAME(pull_back_divergence)(plan, tape, slot, g_slot);
        memset(g + plan->n - 2, 0, 2 * sizeof(vec));
    }
    for (int64_t j = solve->n_layers - 1; j >= 0; j--) {
        const Layer *layer = &solve->layers[j];
        vec *above = g_slot + plan->g_at[j], *below = j ? g_slot + plan->g_at[j - 1] : g;
        const T *back = plan->packed[j].back;
        if (NAME(is_pair)(plan->rows[j], layer->taps))
            NAME(convolve_pair)(layer->fan_out, layer->fan_in, back, NULL, NULL, NULL, above, g_slot + plan->g_sum[j], below);
        else
            NAME(convolve)(plan->rows[j], layer->taps, layer->fan_out, layer->fan_in, back, NULL, NULL, NULL, above, below);
        if (j) {
            NAME(pull_activation)(solve->layers[j - 1].activation, NAME(known)(plan, j - 1, tape, slot), below, 2 * plan->rows[j] * layer->fan_in);
            if (solve->divergence) NAME(add_curvature)(plan, j - 1, tape, slot, g_slot, below);
        }
    }
}

static inline T NAME(sum)(vec x) {
    T total[VBYTES / sizeof(T)];
    memcpy(total, &x, sizeof x);
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) total[i] += total[i + half];
    return total[0];
}

/* The sums of LANES vectors, as one vector. Pairs of vectors are folded into one, with half of its
 * places for each. */
static inline __attribute__((always_inline)) vec NAME(sums)(vec *x) {
#ifdef __clang__
    vec found;
    for (int64_t i = 0; i < LANES; i++) found[i] = NAME(sum)(x[i]);
    return found;
#else
    ivec place;
    for (int64_t i = 0; i < LANES; i++) place[i] = i;
#pragma GCC unroll 4
    for (int64_t d = 1; d < LANES; d *= 2) {
        ivec odd = (place & (I)d) != 0;
        ivec left = (place & ~odd) | ((place - (I)d + (I)LANES) & odd); /* a's own places, then b's lower neighbours */
        ivec right = ((place + (I)d) & ~odd) | ((place + (I)LANES) & odd);
#pragma GCC unroll 16
        for (int64_t i = 0; i < LANES; i += 2 * d) {
            vec a = x[i], b = x[i + d];
            x[i] = __builtin_shuffle(a, b, left) + __builtin_shuffle(a, b, right);
        }
    }
    return x[0];
#endif
}

/* gradient (fan_in, fan_out) += products of inputs and gradients of outputs, over `rows` rows of
 * each slot of a group, starting at x_from and g_from; x_step: vectors from an input to that of the
 * next slot. SUMS_HIGH times SUMS_WIDE sums are computed at once; those beyond the end are not
 * used. */
static void NAME(outer_products)(const Plan *plan, int64_t fan_in, int64_t fan_out, int64_t rows, const vec *x_from,
                                 int64_t x_step, const vec *g_from, int64_t count, T *gradient) {
    for (int64_t o = 0; o < fan_out; o += SUMS_WIDE)
        for (int64_t k = 0; k < fan_in; k += SUMS_HIGH) {
            vec sum[SUMS_HIGH * SUMS_WIDE];
            const vec zero = {0};
#pragma GCC unroll 16
            for (int i = 0; i < SUMS_HIGH * SUMS_WIDE; i++) sum[i] = zero;
            for (int64_t slot = 0; slot < count; slot++) {
                const vec *x = x_from + slot * x_step + 2 * k, *g = g_from + slot * plan->g_step + 2 * o;
                for (int64_t r = 0; r < rows; r++, x += 2 * fan_in, g += 2 * fan_out) {
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++) {
                        vec right[SUMS_WIDE];
#pragma GCC unroll 8
                        for (int m = 0; m < SUMS_WIDE; m++) right[m] = g[2 * m + half];
#pragma GCC unroll 8
                        for (int i = 0; i < SUMS_HIGH; i++) {
                            vec left = x[2 * i + half];
#pragma GCC unroll 8
                            for (int m = 0; m < SUMS_WIDE; m++) sum[i * SUMS_WIDE + m] += left * right[m];
                        }
                    }
                }
            }
            T total[SUMS_HIGH * SUMS_WIDE];
            for (int64_t i = 0; i < SUMS_HIGH * SUMS_WIDE; i += LANES) {
                vec found = NAME(sums)(sum + i);
                memcpy(total + i, &found, sizeof found);
            }
            for (int64_t i = 0; i < SUMS_HIGH && k + i < fan_in; i++)
                for (int64_t m = 0; m < SUMS_WIDE && o + m < fan_out; m++)
                    gradient[(k + i) * fan_out + o + m] += total[i * SUMS_WIDE + m];
        }
}

/* Gradients of the weights (taps, fan_in, fan_out) of a layer from the slots of a group. For a
 * pair, the gradient of w1 still contains those of w0 and w2. */
static void NAME(weight_gradient)(const Plan *plan, int64_t j, vec *tapes, vec *slots, const vec *g_slots, int64_t count,
                                  T *gradient) {
    const Layer *layer = &plan->solve->layers[j];
    int64_t n_in = layer->fan_in, n_out = layer->fan_out, size = n_in * n_out;
    int64_t step = NAME(in_slot)(plan->solve, j) ? plan->slot : plan->kept;
    const vec *x = NAME(input)(plan, j, tapes, slots), *g = g_slots + plan->g_at[j];
    for (int64_t tap = 0; tap < layer->taps; tap++, gradient += size) {
        int64_t shift = tap - layer->taps / 2, from = larger(0, -shift);
        int64_t rows = plan->rows[j] - larger(shift, -shift); /* that this tap reaches */
        if (NAME(is_pair)(plan->rows[j], layer->taps) && shift == 0)
            NAME(outer_products)(plan, n_in, n_out, 1, slots + plan->x_sum[j], plan->slot, g_slots + plan->g_sum[j], count, gradient);
        else if (rows > 0)
            NAME(outer_products)(plan, n_in, n_out, rows, x + 2 * (from + shift) * n_in, step, g + 2 * from * n_out, count, gradient);
    }
}

/* Gradients of the biases and time weights of a layer; times: two vectors for each slot; `room`:
 * two vectors for each output. */
static void NAME(bias_gradient)(
    const Plan *plan, int64_t j, const vec *g_slots, int64_t count, const vec *times, vec *room, T *bias, T *time) {
    int64_t fan_out = plan->solve->layers[j].fan_out, rows = plan->rows[j];
    vec *sum = room, *weighted = room + fan_out;
    int timed = plan->packed[j].time != NULL;
    memset(room, 0, 2 * fan_out * sizeof(vec));
    for (int64_t slot = 0; slot < count; slot++, times += 2) {
        const vec *g = g_slots + slot * plan->g_step + plan->g_at[j];
        for (int64_t r = 0; r < rows; r++, g += 2 * fan_out) {
            for (int64_t o = 0; o < fan_out; o++) sum[o] += g[2 * o] + g[2 * o + 1];
            for (int64_t o = 0; timed && o < fan_out; o++) weighted[o] += g[2 * o] * times[0] + g[2 * o + 1] * times[1];
        }
    }
    for (int64_t o = 0; o < fan_out; o++) bias[o] += NAME(sum)(sum[o]);
    for (int64_t o = 0; timed && o < fan_out; o++) time[o] += NAME(sum)(weighted[o]);
}

/* value += the gradients of the states saved inside a step, each times h and the weight of a stage in
 * it; without a span, times one. `until`: the number of the first point after the step; `room`: a
 * state. Returns the number of the step's first such point. */
static int64_t NAME(add_inside)(const Plan *plan, int64_t block, int64_t step, int64_t until, int64_t stage, const Span *span,
                                vec *room, vec *value) {
    const Solve *solve = plan->solve;
    int64_t first = block * plan->block, count = smaller(plan->block, solve->batch - first), point = until;
    for (; point > 0 && solve->saved[point - 1] == step && NAME(is_inside)(solve, point - 1); point--) {
        double weight = span ? NAME(dense_weight)(solve, stage, solve->inside[point - 1]) : 1;
        if (weight == 0) continue;
        NAME(load)(plan, NAME(place_of)(solve, solve->gs, point - 1, first), count, 1, room);
        if (span) NAME(combine)(value, span, &weight, 1, 1, room, value, plan->n);
        for (int64_t m = 0; !span && m < plan->n; m++) value[m] += room[m];
    }
    return point;
}

static void NAME(backward_block)(const Plan *plan, int64_t block, vec *scratch, T *sums) {
    const Solve *solve = plan->solve;
    int64_t n = plan->n, stages = solve->n_stages, next = solve->n_saved;
    int64_t first = block * plan->block, count = smaller(plan->block, solve->batch - first), most = plan->group * stages + 1;
    int again = solve->keep == KEEP_STATES;
    vec *gradient = scratch, *pulled = gradient + n, *entering = pulled + stages * n, *k = entering + n, *z = k + stages * n;
    vec *g_slots = z + n, *times = g_slots + (most - 1) * plan->g_step + plan->g_slot, *room = times + 2 * most;
    vec *slots = room + 2 * NAME(widest)(solve), *own = slots + most * plan->slot + plan->room;
    vec *tape = (vec *)solve->tape + block * plan->tape_block;
    double edges[2 * BLOCK];
    NAME(load)(plan, (const T *)solve->g1 + first * solve->width, count, 1, gradient);
    int64_t number = solve->n_steps;
    for (;;) {
        int64_t from = number ? (number - 1) / plan->group * plan->group : 0, filled = 0;
        vec *tapes = again ? own : tape + from * stages * plan->kept;
        if (again && number) {
            memcpy(z, tape + from / plan->group * n, n * sizeof(vec));
            for (int64_t i = from; i < number; i++) {
                Span span = NAME(span_of)(solve, block, i, edges);
                if (NAME(stands)(&span)) break; /* all later steps do not move either */
                int64_t slot = (i - from) * stages;
                NAME(find_stages)(plan, &span, z, 0, k, tapes + slot * plan->kept, plan->kept, slots + slot * plan->slot, plan->slot);
                NAME(combine)(z, &span, solve->b, 1, stages, k, z, n);
            }
        }
        for (;; number--) {
            for (; next > 0 && solve->saved[next - 1] == number && !NAME(is_inside)(solve, next - 1); next--) {
                NAME(load)(plan, NAME(place_of)(solve, solve->gs, next - 1, first), count, 1, entering);
                for (int64_t i = 0; i < n; i++) gradient[i] += entering[i];
            }
            if (number == from) break;
            Span span = NAME(span_of)(solve, block, number - 1, edges), last = {0};
            if (NAME(stands)(&span)) continue;
            int64_t slots_before = (number - 1 - from) * stages, done = next;
            while (done > 0 && solve->saved[done - 1] == number - 1) done--;
            if (solve->inside && number > 1) last = NAME(span_of)(solve, block, number - 2, edges);
            /* Stage `stages` is the field at the end, which is the next step's first stage, and only of the last step
             * a stage of its own. */
            int64_t ends = number == solve->n_steps && done < next && NAME(is_inside)(solve, next - 1);
            filled = larger(filled, slots_before + stages + ends);
            for (int64_t i = stages - 1 + ends; i >= 0; i--) {
                int64_t slot = slots_before + i;
                vec *g_slot = g_slots + slot * plan->g_step, *value = g_slot + plan->g_at[solve->n_layers - 1], w[2];
                vec *on = tapes + slot * plan->kept, *off = slots + slot * plan->slot, *to = i < stages ? pulled + i * n : entering;
                NAME(stage_time)(solve, &span, i < stages ? solve->c[i] : 1, times + 2 * slot);
                if (i < stages) {
                    NAME(scaled)(&span, solve->b[i], w);
                    for (int64_t m = 0; m < n; m += 2) {
                        value[m] = gradient[m] * w[0];
                        value[m + 1] = gradient[m + 1] * w[1];
                    }
                    NAME(combine)(value, &span, solve->a + (i + 1) * stages + i, stages, stages - i - 1, pulled + (i + 1) * n,
                                  value, n);
                } else {
                    memset(value, 0, n * sizeof(vec));
                    if (again) NAME(field_at)(plan, &span, 1, z, on, off, k);
                }
                NAME(add_inside)(plan, block, number - 1, next, i, &span, entering, value);
                if (solve->inside && i == 0 && number > 1) NAME(add_inside)(plan, block, number - 2, done, stages, &last, entering, value);
                if (!again && number + i > 1) /* long tapes leave the cache: prefetch a stage */
                    for (int64_t m = 1; m <= plan->kept; m++) __builtin_prefetch(on - m);
                if (!again || NAME(is_image)(solve)) NAME(restore)(plan, times + 2 * slot, on, off);
                NAME(pull_back)(plan, on, off, g_slot, to);
                if (NAME(is_image)(solve)) NAME(image_gradients)(plan, on, off, g_slot, times + 2 * slot, sums);
                for (int64_t m = 0; i == stages && m < n; m++) gradient[m] += to[m];
            }
            for (int64_t i = 0; i < stages; i++)
                for (int64_t m = 0; m < n; m++) gradient[m] += pulled[i * n + m];
            next = NAME(add_inside)(plan, block, number - 1, next, 0, NULL, entering, gradient);
        }
        for (int64_t j = 0; filled && !NAME(is_image)(solve) && j < NAME(all_layers)(solve); j++) {
            const Layer *layer = &solve->layers[j];
            T *weight = sums + plan->w_at[j], *bias = weight + layer->taps * layer->fan_in * layer->fan_out;
            NAME(weight_gradient)(plan, j, tapes, slots, g_slots, filled, weight);
            if (layer->bias) NAME(bias_gradient)(plan, j, g_slots, filled, times, room, bias, bias + layer->fan_out);
        }
        if (number == 0) break;
    }
    NAME(store)(plan, gradient, count, (T *)solve->g0 + first * solve->width);
}

static int NAME(backward_part)(void *context, int64_t number) {
    const Plan *plan = context;
    int64_t part = plan->parts - 1 - number; /* last part first: its tape is in the cache */
    const Solve *solve = plan->solve;
    int64_t n = plan->n, most = plan->group * solve->n_stages + 1;
    int64_t vectors = n * (3 + 2 * solve->n_stages) + most * (plan->slot + plan->g_step + 2) + plan->g_slot + plan->room + 2 * NAME(widest)(solve) + SUMS_BEYOND;
    if (solve->keep == KEEP_STATES) vectors += most * plan->kept;
    vec *scratch = aligned(vectors * sizeof(vec));
    if (!scratch) return NO_MEMORY;
    T *sums = plan->part_sums + part * plan->sums;
    memset(sums, 0, plan->sums * sizeof(T));
    for (int64_t block = NAME(first_block)(plan, part); block < NAME(first_block)(plan, part + 1); block++)
        NAME(backward_block)(plan, block, scratch, sums);
    free(scratch);
    return 0;
}

static int NAME(backward)(const Solve *solve) {
    Plan plan;
    if (NAME(make_plan)(&plan, solve) || NAME(pack_weights)(&plan, 1)) return NO_MEMORY;
    plan.part_sums = aligned(plan.parts * plan.sums * sizeof(T));
    if (!plan.part_sums) return NAME(free_plan)(&plan), NO_MEMORY;
    int code = in_parallel(NAME(backward_part), &plan, plan.parts,
                           worth(solve->threads, 2 * plan.operations * solve->n_steps * solve->n_stages));
    T *total = plan.part_sums; /* those of the first part, to which the others are added */
    for (int64_t part = 1; part < plan.parts; part++)
        for (int64_t i = 0; i < plan.sums; i++) total[i] += plan.part_sums[part * plan.sums + i];
    for (int64_t j = 0; j < NAME(all_layers)(solve); j++) {
        const Layer *layer = &solve->layers[j];
        int64_t taps = layer->taps, n_in = layer->fan_in, n_out = layer->fan_out, each = n_in * n_out;
        T *weight = total + plan.w_at[j], *bias = weight + taps * each, *found = layer->weight_gradient;
        if (NAME(is_image)(solve)) {
            NAME(take_image_gradient)(solve, j, weight);
            continue;
        }
        if (NAME(is_pair)(plan.rows[j], taps))
            for (int64_t i = 0; i < each; i++) weight[each + i] -= weight[i] + weight[2 * each + i];
        for (int64_t o = 0; found && o < n_out; o++)
            for (int64_t k = 0; k < n_in; k++)
                for (int64_t tap = 0; tap < taps; tap++) *found++ = weight[tap * each + k * n_out + o];
        if (layer->bias_gradient) memcpy(layer->bias_gradient, bias, n_out * sizeof(T));
        if (layer->time_gradient) memcpy(layer->time_gradient, bias + n_out, n_out * sizeof(T));
    }
    NAME(free_plan)(&plan);
    return code;
}
