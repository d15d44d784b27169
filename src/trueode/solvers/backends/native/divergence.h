/* States with one more number l, l' = -div f of the layers' field f; a part of kernel.h.
 *
 * Let s1 and s2 be the slopes act' of the hidden units of a sample. With one hidden layer, the
 * divergence is c s1, c_j = sum over i of W2_ij W1_ji; with two, it is s2 (C s1), C_kj = W2_kj (W1 W3)_jk.
 * So one row or matrix, the coupling, which the caller computes and whose gradient it distributes, is
 * one more layer. Its input s1 lies in the slot, followed by s2 (ones, if there is one hidden layer);
 * its output m is on the tape. The gradients of m, s1 and s2 are side by side. */

static void NAME(place_divergence)(Plan *plan, int64_t *slot, int64_t *g_at, int64_t *sums) {
    const Layer *coupling = &plan->solve->layers[plan->solve->n_layers];
    int64_t j = plan->solve->n_layers, in = coupling->fan_in, out = coupling->fan_out;
    plan->rows[j] = 1;
    plan->x_at[j] = *slot;
    plan->pre_at[j] = plan->kept;
    plan->g_at[j] = *g_at;
    plan->w_at[j] = *sums;
    *slot += 2 * (in + out);
    plan->kept += 2 * out;
    *g_at += 2 * (out + in + out);
    *sums += (in + 2) * out;
    plan->operations += 2.0 * plan->solve->batch * in * out;
}

/* The slopes of a hidden layer in a slot. */
static int64_t NAME(slope_at)(const Plan *plan, int64_t j) {
    return plan->x_at[plan->solve->n_layers] + (j ? 2 * plan->solve->layers[0].fan_out : 0);
}

static void NAME(find_slopes)(const Plan *plan, vec *tape, vec *slot) {
    const Solve *solve = plan->solve;
    const vec one = 1 - (vec){0};
    for (int64_t j = 0; j < 2; j++) {
        int64_t n = 2 * (j ? solve->layers[solve->n_layers].fan_out : solve->layers[0].fan_out);
        vec *slope = slot + NAME(slope_at)(plan, j);
        for (int64_t i = 0; i < n; i++) slope[i] = one;
        if (j + 1 < solve->n_layers) NAME(pull_activation)(solve->layers[j].activation, NAME(known)(plan, j, tape, slot), slope, n);
    }
}

static void NAME(evaluate_divergence)(const Plan *plan, vec *tape, vec *slot, vec *k) {
    int64_t j = plan->solve->n_layers, in = plan->solve->layers[j].fan_in, out = plan->solve->layers[j].fan_out;
    vec *m = tape + plan->pre_at[j], *last = k + plan->n - 2;
    NAME(find_slopes)(plan, tape, slot);
    const vec *s1 = slot + NAME(slope_at)(plan, 0), *s2 = slot + NAME(slope_at)(plan, 1);
    NAME(product)(in, 0, in, out, plan->packed[j].forward, NULL, NULL, NULL, NULL, s1, m);
    last[0] = last[1] = (vec){0};
    for (int64_t i = 0; i < out; i++) {
        last[0] -= m[2 * i] * s2[2 * i];
        last[1] -= m[2 * i + 1] * s2[2 * i + 1];
    }
}

/* The gradients of m and of the slopes, from that of l'. */
static void NAME(pull_back_divergence)(const Plan *plan, vec *tape, vec *slot, vec *g_slot) {
    int64_t j = plan->solve->n_layers, in = plan->solve->layers[j].fan_in, out = plan->solve->layers[j].fan_out;
    const vec *last = g_slot + plan->g_at[j - 1] + plan->n - 2, *m = tape + plan->pre_at[j], *s2 = slot + NAME(slope_at)(plan, 1);
    vec *g = g_slot + plan->g_at[j], *g1 = g + 2 * out, *g2 = g1 + 2 * in;
    for (int64_t i = 0; i < 2 * out; i++) {
        g[i] = -last[i % 2] * s2[i];
        g2[i] = -last[i % 2] * m[i];
    }
    NAME(product)(out, 0, out, in, plan->packed[j].back, NULL, NULL, NULL, NULL, g, g1);
}

/* Adds what the slopes of a hidden layer contribute to the gradient of its activation's input. */
static void NAME(add_curvature)(const Plan *plan, int64_t j, vec *tape, vec *slot, const vec *g_slot, vec *g) {
    const Solve *solve = plan->solve;
    const Layer *coupling = &solve->layers[solve->n_layers];
    const vec *slopes = g_slot + plan->g_at[solve->n_layers] + 2 * (coupling->fan_out + (j ? coupling->fan_in : 0));
    NAME(pull_slope)(solve->layers[j].activation, NAME(known)(plan, j, tape, slot), slot + NAME(slope_at)(plan, j), slopes, g,
                     2 * solve->layers[j].fan_out);
}
