/* Adaptive solves with separate steps for each sample; a part of kernel.h. */

typedef struct {
    Plan plan;
    const AdaptiveSolve *adaptive;
    Trace *trace;
} PerSample;

static int NAME(per_sample_block)(const PerSample *all, int64_t block, vec *scratch) {
    const Plan *plan = &all->plan;
    const Solve *solve = plan->solve;
    const AdaptiveSolve *adaptive = all->adaptive;
    int64_t n = 2 * solve->width, width = solve->width, stages = adaptive->n_stages;
    int64_t first = block * BLOCK, count = smaller(BLOCK, solve->batch - first);
    vec *z = scratch, *k = z + n, *after = k + stages * n, *error = after + n, *tape = error + n, *slot = tape + plan->kept;
    vec sums[2], selected[2];
    const T *each = (const T *)sums;
    I *lanes = (I *)selected;
    double length = fabs(solve->t1 - solve->t0), limit = step_limit(adaptive->max_step, length);
    double theta[BLOCK], target[BLOCK], dtheta[BLOCK], h0[BLOCK], d1[BLOCK];
    int64_t going = count;
    int known = 1;
    NAME(load)(plan, (const T *)solve->z0 + first * width, count, 0, z);
    for (int64_t s = 0; s < BLOCK; s++) theta[s] = target[s] = s < count ? 0 : 1, dtheta[s] = 0;
    Span span = NAME(span)(solve, 0, 0);
    NAME(field_at)(plan, &span, 0, z, tape, slot, k);
    if (adaptive->first_step > 0)
        for (int64_t s = 0; s < count; s++) dtheta[s] = adaptive->first_step / length < 1 ? adaptive->first_step / length : 1;
    else {
        NAME(add_squares)(adaptive, z, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) h0[s] = sqrt((double)each[s] / width);
        NAME(add_squares)(adaptive, k, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) {
            d1[s] = sqrt((double)each[s] / width);
            if (!isfinite(h0[s]) || !isfinite(d1[s])) return FAILED;
            h0[s] = trial_step(h0[s], d1[s]);
            target[s] = h0[s] / length < 1 ? h0[s] / length : 1;
        }
        const double whole = 1;
        span = NAME(span_per_sample)(solve, theta, target);
        NAME(combine)(z, &span, &whole, 1, 1, k, after, n);
        NAME(field_at)(plan, &span, 1, after, tape, slot, error);
        for (int64_t m = 0; m < n; m++) error[m] -= k[m];
        NAME(add_squares)(adaptive, error, z, z, n, sums);
        for (int64_t s = 0; s < count; s++) {
            double d2 = sqrt((double)each[s] / width) / (target[s] * length);
            double step = starting_step(h0[s], d1[s], d2, adaptive->error_order);
            dtheta[s] = step / length < 1 ? step / length : 1;
        }
    }
    while (going) {
        for (int64_t s = 0; s < count; s++) {
            Column *column = &all->trace->columns[first + s];
            target[s] = theta[s];
            if (theta[s] == 1) continue;
            if (dtheta[s] > limit) dtheta[s] = limit;
            int64_t tried = column->n + adaptive->rejected[first + s];
            if (tried >= adaptive->max_steps || !(dtheta[s] > 10 * DBL_EPSILON * theta[s]) || !isfinite(dtheta[s])) return FAILED;
            if (solve->keep && column->n % plan->group == 0 && column->n / plan->group == column->kept) {
                T *state = add_state(column, width * sizeof(T));
                if (!state) return NO_MEMORY;
                for (int64_t i = 0; i < width; i++) state[i] = ((const T *)z)[i * BLOCK + s];
            }
            target[s] = step_end(theta[s], dtheta[s], limit);
        }
        span = NAME(span_per_sample)(solve, theta, target);
        if (!known) NAME(field_at)(plan, &span, 0, z, tape, slot, k);
        NAME(trial)(plan, adaptive, &span, z, k, tape, 0, slot, after, error);
        NAME(add_squares)(adaptive, error, z, after, n, sums);
        for (int64_t s = 0; s < BLOCK; s++) {
            lanes[s] = 0;
            if (s >= count || theta[s] == 1) continue;
            double ratio = sqrt((double)each[s] / width);
            dtheta[s] = (target[s] - theta[s]) * step_factor(ratio, adaptive->error_order);
            if (!(ratio <= 1)) {
                adaptive->rejected[first + s]++;
                continue;
            }
            lanes[s] = -1;
            theta[s] = target[s];
            if (!append(&all->trace->columns[first + s], theta[s], ratio)) return NO_MEMORY;
            going -= theta[s] == 1;
        }
        for (int64_t m = 0; m < n; m++) {
            ivec accepted = (ivec)selected[m % 2];
            z[m] = NAME(select)(accepted, after[m], z[m]);
            if (adaptive->fsal) k[m] = NAME(select)(accepted, k[(stages - 1) * n + m], k[m]);
        }
        known = adaptive->fsal;
    }
    NAME(store)(plan, z, count, (T *)solve->z1 + first * width);
    return SUCCESS;
}

static int NAME(per_sample_part)(void *context, int64_t part) {
    const PerSample *all = context;
    const Plan *plan = &all->plan;
    int code = SUCCESS;
    vec *scratch = aligned((2 * plan->solve->width * (all->adaptive->n_stages + 3) + plan->kept + plan->slot) * sizeof(vec));
    if (!scratch) return NO_MEMORY;
    for (int64_t block = NAME(first_block)(plan, part); !code && block < NAME(first_block)(plan, part + 1); block++)
        code = NAME(per_sample_block)(all, block, scratch);
    free(scratch);
    return code;
}

/* Images: each is a batch of its own. */
static int NAME(per_image_part)(void *context, int64_t part) {
    const PerSample *all = context;
    int code = SUCCESS;
    for (int64_t sample = NAME(first_block)(&all->plan, part); !code && sample < NAME(first_block)(&all->plan, part + 1); sample++) {
        AdaptiveSolve own = *all->adaptive;
        own.solve.batch = own.solve.threads = 1;
        own.solve.z0 = (const T *)own.solve.z0 + sample * own.solve.width;
        own.solve.z1 = (T *)own.solve.z1 + sample * own.solve.width;
        own.accepted += sample;
        own.rejected += sample;
        Plan plan = all->plan;
        plan.solve = &own.solve;
        plan.blocks = plan.parts = 1;
        code = NAME(run_batch)(&plan, &own);
        if (code == SUCCESS || code == EXHAUSTED) {
            all->trace->columns[sample] = ((Trace *)own.trace)->columns[0];
            free(own.trace);
        }
        if (code == EXHAUSTED) code = FAILED;
    }
    return code;
}

static int NAME(adaptive_per_sample)(AdaptiveSolve *adaptive) {
    const Solve *solve = &adaptive->solve;
    PerSample all = {.adaptive = adaptive};
    int code = NAME(make_plan)(&all.plan, solve) || NAME(pack_weights)(&all.plan, 0) ? NO_MEMORY : SUCCESS;
    if (code) return code;
    all.trace = make_trace(solve->batch);
    code = all.trace ? in_parallel(NAME(is_image)(solve) ? NAME(per_image_part) : NAME(per_sample_part), &all, all.plan.parts, solve->threads) : NO_MEMORY;
    int64_t most = 0, tries = 0;
    for (int64_t s = 0; !code && s < solve->batch; s++) {
        adaptive->accepted[s] = all.trace->columns[s].n;
        most = larger(most, adaptive->accepted[s]);
        tries = larger(tries, adaptive->accepted[s] + adaptive->rejected[s]);
    }
    adaptive->n_rows = most;
    adaptive->calls = 1 + (adaptive->first_step <= 0) + tries * (adaptive->n_stages - adaptive->fsal) - !adaptive->fsal;
    adaptive->trace = all.trace;
    if (code && all.trace) free_trace(all.trace), adaptive->trace = NULL;
    NAME(free_plan)(&all.plan);
    return code;
}
