/* Adaptive solves: shared functions, and solves with the same steps for the whole batch; a part of
 * kernel.h. Solves with separate steps for each sample are in per_sample.h. */

/* A trial step from z, given k[0], the field there. Writes all stages to `k` (the last stage of an
 * FSAL method is the field at the end), the state at the end to `after`, and the error estimate to
 * `error`. Tapes and `slot` are room for the stages; tapes are `on` vectors apart. */
static void NAME(trial)(const Plan *plan, const AdaptiveSolve *adaptive, const Span *span, const vec *z, vec *k, vec *tapes, int64_t on,
                        vec *slot, vec *after, vec *error) {
    int64_t n = plan->n, stages = adaptive->n_stages;
    const vec zero = {0};
    for (int64_t i = 1; i < stages; i++) {
        vec *tape = tapes + i * on, t[2];
        NAME(combine)(z, span, adaptive->a + i * stages, 1, i, k, tape, n);
        if (i == stages - 1 && adaptive->fsal) memcpy(after, tape, n * sizeof(vec));
        NAME(stage_time)(plan->solve, span, adaptive->c[i], t);
        NAME(evaluate)(plan, t, tape, slot, k + i * n);
    }
    if (!adaptive->fsal) NAME(combine)(z, span, adaptive->b, 1, stages, k, after, n);
    for (int64_t m = 0; m < n; m++) error[m] = zero;
    NAME(combine)(error, span, adaptive->error, 1, stages, k, error, n);
}

static inline vec NAME(size)(vec x) { return NAME(select)(x < 0, -x, x); }

/* Sums (x / scale)^2 for each sample of a block, scale = atol + rtol max(|z|, |after|); sums: two
 * vectors. */
static void NAME(add_squares)(const AdaptiveSolve *adaptive, const vec *x, const vec *z, const vec *after, int64_t n, vec *sums) {
    const vec zero = {0};
    const T tiny = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;
    sums[0] = sums[1] = zero;
    for (int64_t m = 0; m < n; m++) {
        vec a = NAME(size)(z[m]), b = NAME(size)(after[m]), scale = NAME(select)(a < b, b, a) * (T)adaptive->rtol + (T)adaptive->atol;
        if (adaptive->atol == 0) scale = NAME(select)(scale < tiny, zero + tiny, scale);
        vec q = x[m] / scale;
        sums[m % 2] += q * q;
    }
}

/* Steps of the whole batch: each part does a piece of work, then the caller decides. */
typedef struct {
    Plan plan;
    const AdaptiveSolve *adaptive;
    int piece;
    int64_t number; /* of the step */
    int64_t from, until; /* the points inside the step */
    Span span;
    vec *z, *first, *after, *end; /* states of all blocks, one after the other */
    double *norms;                /* sums of squares of each part */
} WholeBatch;

static int NAME(batch_part)(void *context, int64_t part) {
    WholeBatch *all = context;
    const Plan *plan = &all->plan;
    const Solve *solve = plan->solve;
    const AdaptiveSolve *adaptive = all->adaptive;
    int64_t n = plan->n, stages = adaptive->n_stages;
    vec *k = aligned((n * (stages + 1) + plan->kept + plan->room) * sizeof(vec)), sums[2];
    if (!k) return NO_MEMORY;
    vec *error = k + stages * n, *own = error + n, *slot = own + plan->kept;
    double *norms = all->norms + 3 * part;
    norms[0] = norms[1] = 0;
    for (int64_t block = NAME(first_block)(plan, part); block < NAME(first_block)(plan, part + 1); block++) {
        int64_t first = block * plan->block, count = smaller(plan->block, solve->batch - first);
        int64_t lanes = NAME(is_image)(plan->solve) ? BLOCK : count; /* that hold numbers */
        vec *z = all->z + block * n, *start = all->first + block * n, *after = all->after + block * n;
        const T *each = (const T *)sums;
        /* The last stage of an FSAL method goes to the place of the next step's first stage. */
        int kept = solve->keep == KEEP_STAGES;
        vec *tape = kept ? (vec *)solve->tape + block * plan->tape_block + all->number * solve->n_stages * plan->kept : own;
        if (all->piece == START) {
            NAME(load)(plan, (const T *)solve->z0 + first * solve->width, count, 0, z);
            NAME(field_at)(plan, &all->span, 0, z, tape, slot, start);
            NAME(add_squares)(adaptive, z, z, z, n, sums);
            for (int64_t s = 0; s < lanes; s++) norms[0] += each[s];
            NAME(add_squares)(adaptive, start, z, z, n, sums);
        } else if (all->piece == FIRST) {
            NAME(field_at)(plan, &all->span, 0, z, tape, slot, start);
            continue;
        } else if (all->piece == PROBE) {
            const double whole = 1;
            NAME(combine)(z, &all->span, &whole, 1, 1, start, after, n);
            NAME(field_at)(plan, &all->span, 1, after, own, slot, k);
            for (int64_t m = 0; m < n; m++) k[m] -= start[m];
            NAME(add_squares)(adaptive, k, z, z, n, sums);
        } else {
            memcpy(k, start, n * sizeof(vec));
            NAME(trial)(plan, adaptive, &all->span, z, k, tape, kept ? plan->kept : 0, slot, after, error);
            memcpy(all->end + block * n, k + (stages - 1) * n, n * sizeof(vec));
            NAME(add_squares)(adaptive, error, z, after, n, sums);
            for (int64_t point = all->from; point < all->until; point++) { /* computed again if the step is rejected */
                NAME(interpolate)(plan, &all->span, solve->inside[point], z, k, error);
                NAME(store)(plan, error, count, NAME(place_of)(solve, solve->zs, point, first));
            }
        }
        for (int64_t s = 0; s < lanes; s++) norms[1] += each[s];
    }
    free(k);
    return 0;
}

/* Lets all parts do a piece of work; writes the resulting root mean squares to norm. */
static int NAME(batch_piece)(WholeBatch *all, int piece, Span span, double *norm) {
    all->piece = piece;
    all->span = span;
    double evaluations = piece == TRIAL ? all->adaptive->n_stages - 1 : 1;
    int64_t threads = worth(all->plan.solve->threads, evaluations * all->plan.operations);
    int code = in_parallel(NAME(batch_part), all, all->plan.parts, threads);
    norm[0] = norm[1] = 0;
    for (int64_t part = 0; part < all->plan.parts; part++)
        for (int i = 0; i < 2; i++) norm[i] += all->norms[3 * part + i];
    for (int i = 0; i < 2; i++) norm[i] = sqrt(norm[i] / (all->plan.solve->batch * all->plan.solve->width));
    return code;
}

/* Finds the points inside a step, with the tolerance of saving.py. */
static void NAME(look_inside)(WholeBatch *all, double theta, double target) {
    const Solve *solve = all->plan.solve;
    const double *points = all->adaptive->points;
    for (all->until = all->from; all->until < solve->n_saved && points[all->until] < target - all->adaptive->slack; all->until++) {
        double x = (points[all->until] - theta) / (target - theta);
        solve->saved[all->until] = all->number;
        solve->inside[all->until] = x < 0 ? 0 : x > 1 ? 1 : x;
    }
}

/* Saves the state for all points at a fraction, the start of the step of this number. */
static void NAME(save_here)(WholeBatch *all, double theta) {
    const Solve *solve = all->plan.solve;
    int64_t n = all->plan.n, each = all->plan.block;
    for (; all->from < solve->n_saved && all->adaptive->points[all->from] <= theta + all->adaptive->slack; all->from++) {
        solve->saved[all->from] = all->number;
        solve->inside[all->from] = 0;
        for (int64_t block = 0; block < all->plan.blocks; block++)
            NAME(store)(&all->plan, all->z + block * n, smaller(each, solve->batch - block * each),
                        NAME(place_of)(solve, solve->zs, all->from, block * each));
    }
}

/* Solves with a plan that is made. */
static int NAME(run_batch)(const Plan *plan, AdaptiveSolve *adaptive) {
    Solve *solve = &adaptive->solve;
    WholeBatch all = {.plan = *plan, .adaptive = adaptive};
    int code;
    int64_t n = all.plan.n, vectors = all.plan.blocks * n, each = all.plan.block;
    double length = fabs(solve->t1 - solve->t0), limit = step_limit(adaptive->max_step, length), theta = 0, dtheta, norm[2], ratio;
    Trace *trace = make_trace(1);
    vec *states = aligned(4 * vectors * sizeof(vec));
    all.norms = malloc(3 * all.plan.parts * sizeof(double));
    code = NO_MEMORY;
    if (!trace || !states || !all.norms) goto done;
    all.z = states, all.first = states + vectors, all.after = all.first + vectors, all.end = all.after + vectors;
    adaptive->calls = 1;
    if ((code = NAME(batch_piece)(&all, START, NAME(span)(solve, 0, 0), norm))) goto done;
    if (adaptive->first_step > 0)
        dtheta = adaptive->first_step / length < 1 ? adaptive->first_step / length : 1;
    else {
        double d0 = norm[0], d1 = norm[1], h0 = trial_step(d0, d1), fraction = h0 / length < 1 ? h0 / length : 1;
        adaptive->calls++;
        code = FAILED;
        if (!isfinite(d0) || !isfinite(d1)) goto done;
        if ((code = NAME(batch_piece)(&all, PROBE, NAME(span)(solve, 0, fraction), norm))) goto done;
        double size = fraction * length, step = starting_step(h0, d1, norm[1] / (size > DBL_MIN ? size : DBL_MIN), adaptive->error_order);
        dtheta = step / length < 1 ? step / length : 1;
    }
    NAME(save_here)(&all, 0);
    while (theta < 1) {
        Column *column = &trace->columns[0];
        if (dtheta > limit) dtheta = limit;
        if (column->n + adaptive->rejected[0] >= adaptive->max_steps) break;
        code = FAILED;
        if (!(dtheta > 10 * ulp(theta)) || !isfinite(dtheta)) goto done;
        code = NO_MEMORY;
        all.number = column->n;
        if (column->n + 1 >= solve->capacity) solve->keep = smaller(solve->keep, KEEP_STATES); /* the tape is full */
        if (solve->keep && column->n % all.plan.group == 0 && !keep_state(column, column->n / all.plan.group, all.z, vectors * sizeof(vec))) goto done;
        double target = step_end(theta, dtheta, limit);
        NAME(look_inside)(&all, theta, target);
        if ((code = NAME(batch_piece)(&all, TRIAL, NAME(span)(solve, theta, target), norm))) goto done;
        adaptive->calls += adaptive->n_stages - 1;
        ratio = norm[1];
        dtheta = (target - theta) * step_factor(ratio, adaptive->error_order);
        if (!(ratio <= 1)) {
            adaptive->rejected[0]++;
            continue;
        }
        theta = target;
        if (!append(column, theta, ratio)) { code = NO_MEMORY; goto done; }
        vec *before = all.z;
        all.z = all.after, all.after = before;
        all.number++;
        all.from = all.until;
        NAME(save_here)(&all, theta);
        if (adaptive->fsal) {
            vec *start = all.first;
            all.first = all.end, all.end = start;
        } else if (theta < 1) {
            adaptive->calls++;
            if ((code = NAME(batch_piece)(&all, FIRST, NAME(span)(solve, theta, theta), norm))) goto done;
        }
    }
    code = theta < 1 ? EXHAUSTED : SUCCESS;
    adaptive->next_step = dtheta;
    for (int64_t block = 0; block < all.plan.blocks; block++)
        NAME(store)(&all.plan, all.z + block * n, smaller(each, solve->batch - block * each),
                    (T *)solve->z1 + block * each * solve->width);
    adaptive->accepted[0] = adaptive->n_rows = trace->columns[0].n;
    adaptive->trace = trace;
    trace = NULL;
done:
    if (trace) free_trace(trace);
    free(states);
    free(all.norms);
    return code;
}

static int NAME(adaptive_batch)(AdaptiveSolve *adaptive) {
    Plan plan;
    int code = NAME(make_plan)(&plan, &adaptive->solve) || NAME(pack_weights)(&plan, 0) ? NO_MEMORY : SUCCESS;
    if (code) return code;
    code = NAME(run_batch)(&plan, adaptive);
    NAME(free_plan)(&plan);
    return code;
}

static int NAME(adaptive_per_sample)(AdaptiveSolve *adaptive); /* in per_sample.h */

static int NAME(solve_adaptive)(AdaptiveSolve *adaptive) {
    return adaptive->solve.per_sample ? NAME(adaptive_per_sample)(adaptive) : NAME(adaptive_batch)(adaptive);
}

/* Writes the steps taken, (n_rows + 1) and (n_rows), or with a column for each sample, and, if a
 * tape is given, the states from which the backward pass starts. Frees the trace. */
static int NAME(take)(AdaptiveSolve *adaptive, double *grid, double *errors, void *tape) {
    const Solve *solve = &adaptive->solve;
    Trace *trace = adaptive->trace;
    Plan plan;
    int64_t columns = solve->per_sample ? solve->batch : 1, rows = adaptive->n_rows, n;
    for (int64_t s = 0; s < columns; s++) {
        const Column *column = &trace->columns[s];
        grid[s] = 0;
        for (int64_t i = 0; i < rows; i++) {
            grid[(i + 1) * columns + s] = i < column->n ? column->grid[i] : 1;
            errors[i * columns + s] = i < column->n ? column->errors[i] : NAN;
        }
    }
    if (tape) {
        Solve replay = *solve;
        replay.n_steps = rows;
        replay.keep = KEEP_STATES;
        int code = NAME(make_plan)(&plan, &replay);
        if (code) return free_trace(trace), code;
        n = plan.n;
        int64_t groups = (rows + plan.group - 1) / plan.group;
        for (int64_t block = 0; block < plan.blocks; block++)
            for (int64_t g = 0; g < groups; g++) {
                vec *to = (vec *)tape + block * plan.tape_block + g * n;
                if (!solve->per_sample) {
                    memcpy(to, (const vec *)trace->columns[0].states[g] + block * n, n * sizeof(vec));
                    continue;
                }
                if (NAME(is_image)(plan.solve)) {
                    const Column *column = &trace->columns[block];
                    if (g < column->kept)
                        memcpy(to, column->states[g], n * sizeof(vec));
                    else
                        NAME(load)(&plan, (const T *)solve->z1 + block * solve->width, 1, 0, to);
                    continue;
                }
                for (int64_t s = 0; s < BLOCK; s++) {
                    int64_t sample = smaller(block * BLOCK + s, solve->batch - 1);
                    const Column *column = &trace->columns[sample];
                    const T *state = g < column->kept ? column->states[g] : (const T *)solve->z1 + sample * solve->width;
                    for (int64_t i = 0; i < solve->width; i++) ((T *)to)[i * BLOCK + s] = state[i];
                }
            }
        NAME(free_plan)(&plan);
    }
    free_trace(trace);
    return SUCCESS;
}
