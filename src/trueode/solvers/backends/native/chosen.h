/* Solves that choose their steps, for the whole batch or for each sample; a part of kernel.h. */

/* A trial step from z; k[0], the field there, is known. It leaves all stages in `k` (the last one of a method that is FSAL is the
 * field at the end), the state at the end in `after`, the estimate of the error in `error`; tapes and `slot` are room for the
 * stages, `on` vectors from a tape to the next. */
static void NAME(trial)(const Plan *plan, const Chosen *chosen, const Span *span, const vec *z, vec *k, vec *tapes, int64_t on,
                        vec *slot, vec *after, vec *error) {
    int64_t n = 2 * plan->solve->width, stages = chosen->n_stages;
    const vec zero = {0};
    for (int64_t i = 1; i < stages; i++) {
        vec *tape = tapes + i * on, t[2];
        NAME(combine)(z, span, chosen->a + i * stages, 1, i, k, tape, n);
        if (i == stages - 1 && chosen->fsal) memcpy(after, tape, n * sizeof(vec));
        NAME(stage_time)(plan->solve, span, chosen->c[i], t);
        NAME(evaluate)(plan, t, tape, slot, k + i * n);
    }
    if (!chosen->fsal) NAME(combine)(z, span, chosen->b, 1, stages, k, after, n);
    for (int64_t m = 0; m < n; m++) error[m] = zero;
    NAME(combine)(error, span, chosen->error, 1, stages, k, error, n);
}

static inline vec NAME(size)(vec x) { return NAME(choose)(x < 0, -x, x); }

/* Adds up, for each sample of a block, (x / scale)^2, scale = atol + rtol max(|z|, |after|); sums: two vectors. */
static void NAME(add_squares)(const Chosen *chosen, const vec *x, const vec *z, const vec *after, int64_t n, vec *sums) {
    const vec zero = {0};
    const T tiny = sizeof(T) == 4 ? 0x1p-126 : 0x1p-1022;
    sums[0] = sums[1] = zero;
    for (int64_t m = 0; m < n; m++) {
        vec a = NAME(size)(z[m]), b = NAME(size)(after[m]), scale = NAME(choose)(a < b, b, a) * (T)chosen->rtol + (T)chosen->atol;
        if (chosen->atol == 0) scale = NAME(choose)(scale < tiny, zero + tiny, scale);
        vec q = x[m] / scale;
        sums[m % 2] += q * q;
    }
}

/* The field at one time, or at one for each sample. */
static void NAME(field_at)(const Plan *plan, const Span *span, double c, const vec *z, vec *tape, vec *slot, vec *k) {
    vec t[2];
    memcpy(tape, z, 2 * plan->solve->width * sizeof(vec));
    NAME(stage_time)(plan->solve, span, c, t);
    NAME(evaluate)(plan, t, tape, slot, k);
}

/* Steps of the whole batch: the parts of the batch do a piece of work each, then the caller decides. */
typedef struct {
    Plan plan;
    const Chosen *chosen;
    int piece;
    int64_t number; /* of the step */
    Span span;
    vec *z, *first, *after, *end; /* states of all blocks, one after the other */
    double *norms;                /* sums of squares of each part */
} Together;

static int NAME(together_part)(void *context, int64_t part) {
    Together *all = context;
    const Plan *plan = &all->plan;
    const Solve *solve = plan->solve;
    const Chosen *chosen = all->chosen;
    int64_t n = 2 * solve->width, width = solve->width, stages = chosen->n_stages;
    vec *k = aligned((n * (stages + 1) + plan->kept + plan->slot) * sizeof(vec)), sums[2];
    if (!k) return NO_MEMORY;
    vec *error = k + stages * n, *own = error + n, *slot = own + plan->kept;
    double *norms = all->norms + 3 * part;
    norms[0] = norms[1] = 0;
    for (int64_t block = NAME(first_block)(plan, part); block < NAME(first_block)(plan, part + 1); block++) {
        int64_t first = block * BLOCK, count = smaller(BLOCK, solve->batch - first);
        vec *z = all->z + block * n, *start = all->first + block * n, *after = all->after + block * n;
        const T *each = (const T *)sums;
        /* The last stage of a method that is FSAL comes to lie where the first one of the next step has its place. */
        int kept = solve->keep == KEEP_STAGES;
        vec *tape = kept ? (vec *)solve->tape + block * plan->tape_block + all->number * solve->n_stages * plan->kept : own;
        if (all->piece == START) {
            NAME(load)((const T *)solve->z0 + first * width, width, count, 0, z);
            NAME(field_at)(plan, &all->span, 0, z, tape, slot, start);
            NAME(add_squares)(chosen, z, z, z, n, sums);
            for (int64_t s = 0; s < count; s++) norms[0] += each[s];
            NAME(add_squares)(chosen, start, z, z, n, sums);
        } else if (all->piece == FIRST) {
            NAME(field_at)(plan, &all->span, 0, z, tape, slot, start);
            continue;
        } else if (all->piece == PROBE) {
            const double whole = 1;
            NAME(combine)(z, &all->span, &whole, 1, 1, start, after, n);
            NAME(field_at)(plan, &all->span, 1, after, own, slot, k);
            for (int64_t m = 0; m < n; m++) k[m] -= start[m];
            NAME(add_squares)(chosen, k, z, z, n, sums);
        } else {
            memcpy(k, start, n * sizeof(vec));
            NAME(trial)(plan, chosen, &all->span, z, k, tape, kept ? plan->kept : 0, slot, after, error);
            memcpy(all->end + block * n, k + (stages - 1) * n, n * sizeof(vec));
            NAME(add_squares)(chosen, error, z, after, n, sums);
        }
        for (int64_t s = 0; s < count; s++) norms[1] += each[s];
    }
    free(k);
    return 0;
}

/* Lets all parts do a piece of work; the root mean squares that come of it go to norm[0] and norm[1]. */
static int NAME(together)(Together *all, int piece, Span span, double *norm) {
    all->piece = piece;
    all->span = span;
    int code = in_parallel(NAME(together_part), all, all->plan.parts, all->plan.solve->threads);
    norm[0] = norm[1] = 0;
    for (int64_t part = 0; part < all->plan.parts; part++)
        for (int i = 0; i < 2; i++) norm[i] += all->norms[3 * part + i];
    for (int i = 0; i < 2; i++) norm[i] = sqrt(norm[i] / (all->plan.solve->batch * all->plan.solve->width));
    return code;
}

static int NAME(choose_together)(Chosen *chosen) {
    Solve *solve = &chosen->solve;
    Together all = {.chosen = chosen};
    int code = NAME(make_plan)(&all.plan, solve) || NAME(pack_weights)(&all.plan, 0) ? NO_MEMORY : SUCCESS;
    if (code) return code;
    int64_t n = 2 * solve->width, vectors = all.plan.blocks * n;
    double length = fabs(solve->t1 - solve->t0), theta = 0, dtheta, norm[2], ratio;
    Trace *trace = make_trace(1);
    vec *states = aligned(4 * vectors * sizeof(vec));
    all.norms = malloc(3 * all.plan.parts * sizeof(double));
    code = NO_MEMORY;
    if (!trace || !states || !all.norms) goto done;
    all.z = states, all.first = states + vectors, all.after = all.first + vectors, all.end = all.after + vectors;
    chosen->calls = 1;
    if ((code = NAME(together)(&all, START, NAME(span)(solve, 0, 0), norm))) goto done;
    if (chosen->first_step > 0)
        dtheta = chosen->first_step / length < 1 ? chosen->first_step / length : 1;
    else {
        double d0 = norm[0], d1 = norm[1], h0 = trial_step(d0, d1), fraction = h0 / length < 1 ? h0 / length : 1;
        chosen->calls++;
        code = FAILED;
        if (!isfinite(d0) || !isfinite(d1)) goto done;
        if ((code = NAME(together)(&all, PROBE, NAME(span)(solve, 0, fraction), norm))) goto done;
        double size = fraction * length, step = starting_step(h0, d1, norm[1] / (size > DBL_MIN ? size : DBL_MIN), chosen->error_order);
        dtheta = step / length < 1 ? step / length : 1;
    }
    while (theta < 1) {
        Column *column = &trace->columns[0];
        code = FAILED;
        if (column->n + chosen->rejected[0] >= chosen->max_steps || !(dtheta > 10 * ulp(theta)) || !isfinite(dtheta)) goto done;
        code = NO_MEMORY;
        all.number = column->n;
        if (column->n + 1 >= solve->capacity) solve->keep = smaller(solve->keep, KEEP_STATES); /* the tape is full */
        if (solve->keep && column->n % all.plan.group == 0 && !keep_state(column, column->n / all.plan.group, all.z, vectors * sizeof(vec))) goto done;
        double target = theta + 1.0001 * dtheta >= 1 ? 1 : theta + dtheta;
        if ((code = NAME(together)(&all, TRIAL, NAME(span)(solve, theta, target), norm))) goto done;
        chosen->calls += chosen->n_stages - 1;
        ratio = norm[1];
        dtheta = (target - theta) * step_factor(ratio, chosen->error_order);
        if (!(ratio <= 1)) {
            chosen->rejected[0]++;
            continue;
        }
        theta = target;
        if (!append(column, theta, ratio)) { code = NO_MEMORY; goto done; }
        vec *before = all.z;
        all.z = all.after, all.after = before;
        all.number++;
        if (chosen->fsal) {
            vec *start = all.first;
            all.first = all.end, all.end = start;
        } else if (theta < 1) {
            chosen->calls++;
            if ((code = NAME(together)(&all, FIRST, NAME(span)(solve, theta, theta), norm))) goto done;
        }
    }
    code = SUCCESS;
    for (int64_t block = 0; block < all.plan.blocks; block++)
        NAME(store)(all.z + block * n, solve->width, smaller(BLOCK, solve->batch - block * BLOCK),
                    (T *)solve->z1 + block * BLOCK * solve->width);
    chosen->accepted[0] = chosen->n_rows = trace->columns[0].n;
    chosen->trace = trace;
    trace = NULL;
done:
    if (trace) free_trace(trace);
    free(states);
    free(all.norms);
    NAME(free_plan)(&all.plan);
    return code;
}

/* Steps of each sample by itself. */
typedef struct {
    Plan plan;
    const Chosen *chosen;
    Trace *trace;
} Apart;

static int NAME(apart_block)(const Apart *apart, int64_t block, vec *scratch) {
    const Plan *plan = &apart->plan;
    const Solve *solve = plan->solve;
    const Chosen *chosen = apart->chosen;
    int64_t n = 2 * solve->width, width = solve->width, stages = chosen->n_stages;
    int64_t first = block * BLOCK, count = smaller(BLOCK, solve->batch - first);
    vec *z = scratch, *k = z + n, *after = k + stages * n, *error = after + n, *tape = error + n, *slot = tape + plan->kept;
    vec sums[2], chosen_lanes[2];
    const T *each = (const T *)sums;
    I *lanes = (I *)chosen_lanes;
    double length = fabs(solve->t1 - solve->t0), theta[BLOCK], target[BLOCK], dtheta[BLOCK], h0[BLOCK], d1[BLOCK];
    int64_t going = count;
    int known = 1;
    NAME(load)((const T *)solve->z0 + first * width, width, count, 0, z);
    for (int64_t s = 0; s < BLOCK; s++) theta[s] = target[s] = s < count ? 0 : 1, dtheta[s] = 0;
    Span span = NAME(span)(solve, 0, 0);
    NAME(field_at)(plan, &span, 0, z, tape, slot, k);
    if (chosen->first_step > 0)
        for (int64_t s = 0; s < count; s++) dtheta[s] = chosen->first_step / length < 1 ? chosen->first_step / length : 1;
    else {
        NAME(add_squares)(chosen, z, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) h0[s] = sqrt((double)each[s] / width);
        NAME(add_squares)(chosen, k, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) {
            d1[s] = sqrt((double)each[s] / width);
            if (!isfinite(h0[s]) || !isfinite(d1[s])) return FAILED;
            h0[s] = trial_step(h0[s], d1[s]);
            target[s] = h0[s] / length < 1 ? h0[s] / length : 1;
        }
        const double whole = 1;
        span = NAME(span_each)(solve, theta, target);
        NAME(combine)(z, &span, &whole, 1, 1, k, after, n);
        NAME(field_at)(plan, &span, 1, after, tape, slot, error);
        for (int64_t m = 0; m < n; m++) error[m] -= k[m];
        NAME(add_squares)(chosen, error, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) {
            double d2 = sqrt((double)each[s] / width) / (target[s] * length);
            double step = starting_step(h0[s], d1[s], d2, chosen->error_order);
            dtheta[s] = step / length < 1 ? step / length : 1;
        }
    }
    while (going) {
        for (int64_t s = 0; s < count; s++) {
            Column *column = &apart->trace->columns[first + s];
            target[s] = theta[s];
            if (theta[s] == 1) continue;
            int64_t tried = column->n + chosen->rejected[first + s];
            if (tried >= chosen->max_steps || !(dtheta[s] > 10 * DBL_EPSILON * theta[s]) || !isfinite(dtheta[s])) return FAILED;
            if (solve->keep && column->n % plan->group == 0 && column->n / plan->group == column->kept) {
                T *state = add_state(column, width * sizeof(T));
                if (!state) return NO_MEMORY;
                for (int64_t i = 0; i < width; i++) state[i] = ((const T *)z)[i * BLOCK + s];
            }
            target[s] = theta[s] + 1.0001 * dtheta[s] >= 1 ? 1 : theta[s] + dtheta[s];
        }
        span = NAME(span_each)(solve, theta, target);
        if (!known) NAME(field_at)(plan, &span, 0, z, tape, slot, k);
        NAME(trial)(plan, chosen, &span, z, k, tape, 0, slot, after, error);
        NAME(add_squares)(chosen, error, z, after, n, sums);
        for (int64_t s = 0; s < BLOCK; s++) {
            lanes[s] = 0;
            if (s >= count || theta[s] == 1) continue;
            double ratio = sqrt((double)each[s] / width);
            dtheta[s] = (target[s] - theta[s]) * step_factor(ratio, chosen->error_order);
            if (!(ratio <= 1)) {
                chosen->rejected[first + s]++;
                continue;
            }
            lanes[s] = -1;
            theta[s] = target[s];
            if (!append(&apart->trace->columns[first + s], theta[s], ratio)) return NO_MEMORY;
            going -= theta[s] == 1;
        }
        for (int64_t m = 0; m < n; m++) {
            ivec accepted = (ivec)chosen_lanes[m % 2];
            z[m] = NAME(choose)(accepted, after[m], z[m]);
            if (chosen->fsal) k[m] = NAME(choose)(accepted, k[(stages - 1) * n + m], k[m]);
        }
        known = chosen->fsal;
    }
    NAME(store)(z, width, count, (T *)solve->z1 + first * width);
    return SUCCESS;
}

static int NAME(apart_part)(void *context, int64_t part) {
    const Apart *apart = context;
    const Plan *plan = &apart->plan;
    int code = SUCCESS;
    vec *scratch = aligned((2 * plan->solve->width * (apart->chosen->n_stages + 3) + plan->kept + plan->slot) * sizeof(vec));
    if (!scratch) return NO_MEMORY;
    for (int64_t block = NAME(first_block)(plan, part); !code && block < NAME(first_block)(plan, part + 1); block++)
        code = NAME(apart_block)(apart, block, scratch);
    free(scratch);
    return code;
}

static int NAME(choose_apart)(Chosen *chosen) {
    const Solve *solve = &chosen->solve;
    Apart apart = {.chosen = chosen};
    int code = NAME(make_plan)(&apart.plan, solve) || NAME(pack_weights)(&apart.plan, 0) ? NO_MEMORY : SUCCESS;
    if (code) return code;
    apart.trace = make_trace(solve->batch);
    code = apart.trace ? in_parallel(NAME(apart_part), &apart, apart.plan.parts, solve->threads) : NO_MEMORY;
    int64_t most = 0, tries = 0;
    for (int64_t s = 0; !code && s < solve->batch; s++) {
        chosen->accepted[s] = apart.trace->columns[s].n;
        most = larger(most, chosen->accepted[s]);
        tries = larger(tries, chosen->accepted[s] + chosen->rejected[s]);
    }
    chosen->n_rows = most;
    chosen->calls = 1 + (chosen->first_step <= 0) + tries * (chosen->n_stages - chosen->fsal) - !chosen->fsal;
    chosen->trace = apart.trace;
    if (code && apart.trace) free_trace(apart.trace), chosen->trace = NULL;
    NAME(free_plan)(&apart.plan);
    return code;
}

static int NAME(choose_steps)(Chosen *chosen) {
    return chosen->solve.each ? NAME(choose_apart)(chosen) : NAME(choose_together)(chosen);
}

/* Writes the steps that were taken, (n_rows + 1) and (n_rows), or with a column for each sample, and the states that the
 * backward pass starts from, where a tape is given; the trace is gone then. */
static int NAME(take)(Chosen *chosen, double *grid, double *errors, void *tape) {
    const Solve *solve = &chosen->solve;
    Trace *trace = chosen->trace;
    Plan plan;
    int64_t columns = solve->each ? solve->batch : 1, rows = chosen->n_rows, n = 2 * solve->width;
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
        int64_t groups = (rows + plan.group - 1) / plan.group;
        for (int64_t block = 0; block < plan.blocks; block++)
            for (int64_t g = 0; g < groups; g++) {
                vec *to = (vec *)tape + block * plan.tape_block + g * n;
                if (!solve->each) {
                    memcpy(to, (const vec *)trace->columns[0].states[g] + block * n, n * sizeof(vec));
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
