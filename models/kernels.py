"""What runs on CUDA in Triton's language: the streaming step of the LSTM, and the loop over time of every cell.

It has no types but the arrays'; `cuda_step` and `cuda_loop` call it. A name in capitals is a constant that a kernel is
compiled for. With TRITON_INTERPRET=1 in the environment all of this runs on the CPU, for tests; what the interpreter
lets pass and the compiler does not, the compiler's own test finds, which needs no device either.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEAD = tl.constexpr(16)  # columns of the head's product: the least that tensor cores take


@triton.jit
def sigmoid(x):
    """Without an exponential that could overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """The same: Triton has it only from CUDA's library, which the interpreter lacks."""
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x >= 0, 1.0 - e, e - 1.0) / (1.0 + e)


@triton.jit
def _gate(below, h, weights, biases, HIDDEN: tl.constexpr):
    """One gate's sum `(rows, HIDDEN)`; `weights` has 4 * HIDDEN columns: those for `below`, then those for `h`."""
    WIDTH: tl.constexpr = below.shape[1]
    unit = tl.arange(0, HIDDEN)
    ih = tl.load(weights + tl.arange(0, WIDTH)[:, None] * 4 * HIDDEN + unit[None, :])
    hh = tl.load(weights + (WIDTH + unit[:, None]) * 4 * HIDDEN + unit[None, :])
    return tl.dot(h, hh, acc=tl.dot(below, ih)) + tl.load(biases + unit)[None, :]


@triton.jit
def step(
    state, slots, inputs, count, weights, biases, head, head_bias, output,
    LAYERS: tl.constexpr, INPUT: tl.constexpr, PADDED: tl.constexpr, HIDDEN: tl.constexpr,
    RESIDUAL: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS of the `count` readings: moves their rows of the state on and writes the head's outputs."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_reading = row < tl.load(count)
    here = is_reading[:, None]
    unit, column = tl.arange(0, HIDDEN), tl.arange(0, PADDED)
    slot = tl.load(slots + row, mask=is_reading, other=0).to(tl.int64)  # a byte's address may be beyond 2^31
    places = state + slot[:, None] * (2 * LAYERS * HIDDEN) + unit[None, :]
    is_input = here & (column < INPUT)[None, :]
    x = tl.load(inputs + row[:, None] * INPUT + column[None, :], mask=is_input, other=0.0).to(tl.float16)
    below = x
    for k in tl.static_range(LAYERS):
        h = tl.load(places + 2 * k * HIDDEN, mask=here, other=0.0)
        c = tl.load(places + (2 * k + 1) * HIDDEN, mask=here, other=0.0).to(tl.float32)
        w = weights + (0 if k == 0 else PADDED + (2 * k - 1) * HIDDEN) * 4 * HIDDEN
        b = biases + k * 4 * HIDDEN
        i = sigmoid(_gate(below, h, w, b, HIDDEN))
        f = sigmoid(_gate(below, h, w + HIDDEN, b + HIDDEN, HIDDEN))
        g = tanh(_gate(below, h, w + 2 * HIDDEN, b + 2 * HIDDEN, HIDDEN))
        o = sigmoid(_gate(below, h, w + 3 * HIDDEN, b + 3 * HIDDEN, HIDDEN))
        c = f * c + i * g
        h = (o * tanh(c)).to(tl.float16)
        tl.store(places + 2 * k * HIDDEN, h, mask=here)
        tl.store(places + (2 * k + 1) * HIDDEN, c.to(tl.float16), mask=here)
        below = h + below if RESIDUAL and k > 0 else h
    out = tl.arange(0, HEAD)
    of_hidden = tl.load(head + unit[:, None] * HEAD + out[None, :])
    of_inputs = tl.load(head + (HIDDEN + column[:, None]) * HEAD + out[None, :])
    told = tl.dot(x, of_inputs, acc=tl.dot(below, of_hidden)) + tl.load(head_bias + out)[None, :]
    tl.store(output + row[:, None] * OUTPUTS + out[None, :], told, mask=here & (out < OUTPUTS)[None, :])


# --- The loop over time ---


@triton.jit
def _block(weights, k: tl.constexpr, HIDDEN: tl.constexpr):
    """The k-th block of `weight_hh`, turned: from what was, down, to what is to be, to the right."""
    unit = tl.arange(0, HIDDEN)
    return tl.load(weights + (k * HIDDEN + unit[None, :]) * HIDDEN + unit[:, None])


@triton.jit
def _peephole(weights, k: tl.constexpr, HIDDEN: tl.constexpr, SUM: tl.constexpr):
    return tl.load(weights + k * HIDDEN + tl.arange(0, HIDDEN))[None, :].to(SUM)


@triton.jit
def _product(a, b, total, SUM: tl.constexpr):
    return tl.dot(a.to(b.dtype), b, acc=total, input_precision="ieee", out_dtype=SUM)


@triton.jit
def _from_gates(total, i, f, o, weights, k: tl.constexpr, HIDDEN: tl.constexpr, SUM: tl.constexpr):
    """`total` with what gate k sees of all three gates one step before. The weights come from the cache each time."""
    unit = tl.arange(0, HIDDEN)
    places = weights + (k * HIDDEN + unit[None, :]) * 3 * HIDDEN + unit[:, None]
    total = _product(i, tl.load(places), total, SUM)
    total = _product(f, tl.load(places + HIDDEN), total, SUM)
    return _product(o, tl.load(places + 2 * HIDDEN), total, SUM)


@triton.jit
def _to_gate(d_i, d_f, d_o, weights, k: tl.constexpr, HIDDEN: tl.constexpr, SUM: tl.constexpr):
    """The gradient of gate k one step before."""
    unit = tl.arange(0, HIDDEN)
    places = weights + unit[:, None] * 3 * HIDDEN + k * HIDDEN + unit[None, :]
    total = tl.zeros(d_i.shape, SUM)
    total = _product(d_i, tl.load(places), total, SUM)
    total = _product(d_f, tl.load(places + HIDDEN * 3 * HIDDEN), total, SUM)
    return _product(d_o, tl.load(places + 2 * HIDDEN * 3 * HIDDEN), total, SUM)


# In the kernels AT_I, AT_F, AT_G and AT_O are the numbers of the blocks in the weights' rows, -1 for one that is not
# there. The gates are packed in the same order without g, which is before o: they are AT_I, AT_F and AT_O - 1.


@triton.jit
def lstm_forward(
    x, h_0, c_0, gates_0, weight_hh, weight_ch, weight_gh, hs, cs, zs, time, batch,
    AT_I: tl.constexpr, AT_F: tl.constexpr, AT_G: tl.constexpr, AT_O: tl.constexpr, COUPLED: tl.constexpr,
    TANH_IN: tl.constexpr, TANH_OUT: tl.constexpr, PEEPHOLES: tl.constexpr, RECURRENT: tl.constexpr,
    BLOCKS: tl.constexpr, HIDDEN: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """From `x` `(time, batch, BLOCKS * HIDDEN)` to h, c and what the gates and g were, `zs`, as `x`, of each step."""
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HIDDEN)
    here = (row < batch)[:, None]
    at = row[:, None] * HIDDEN + unit[None, :]
    wide = row[:, None] * (BLOCKS * HIDDEN) + unit[None, :]
    w_g = _block(weight_hh, AT_G, HIDDEN)
    if AT_I >= 0:
        w_i = _block(weight_hh, AT_I, HIDDEN)
    if AT_F >= 0:
        w_f = _block(weight_hh, AT_F, HIDDEN)
    if AT_O >= 0:
        w_o = _block(weight_hh, AT_O, HIDDEN)
    if PEEPHOLES:
        if AT_I >= 0:
            p_i = _peephole(weight_ch, AT_I, HIDDEN, SUM)
        if AT_F >= 0:
            p_f = _peephole(weight_ch, AT_F, HIDDEN, SUM)
        if AT_O >= 0:
            p_o = _peephole(weight_ch, AT_O - 1, HIDDEN, SUM)
    h = tl.load(h_0 + at, mask=here, other=0.0)
    c = tl.load(c_0 + at, mask=here, other=0.0).to(SUM)
    if RECURRENT:
        gates = gates_0 + row[:, None] * (3 * HIDDEN) + unit[None, :]
        was_i = tl.load(gates, mask=here, other=0.0)
        was_f = tl.load(gates + HIDDEN, mask=here, other=0.0)
        was_o = tl.load(gates + 2 * HIDDEN, mask=here, other=0.0)
    for _ in range(time):
        g = _product(h, w_g, tl.load(x + wide + AT_G * HIDDEN, mask=here, other=0.0).to(SUM), SUM)
        if TANH_IN:
            g = tanh(g)
        tl.store(zs + wide + AT_G * HIDDEN, g.to(h.dtype), mask=here)
        if AT_I >= 0:
            i = _product(h, w_i, tl.load(x + wide + AT_I * HIDDEN, mask=here, other=0.0).to(SUM), SUM)
            if PEEPHOLES:
                i += p_i * c
            if RECURRENT:
                i = _from_gates(i, was_i, was_f, was_o, weight_gh, AT_I, HIDDEN, SUM)
            i = sigmoid(i)
            tl.store(zs + wide + AT_I * HIDDEN, i.to(h.dtype), mask=here)
            stored = i * g
        else:
            stored = g
        if AT_F >= 0:
            f = _product(h, w_f, tl.load(x + wide + AT_F * HIDDEN, mask=here, other=0.0).to(SUM), SUM)
            if PEEPHOLES:
                f += p_f * c
            if RECURRENT:
                f = _from_gates(f, was_i, was_f, was_o, weight_gh, AT_F, HIDDEN, SUM)
            f = sigmoid(f)
            tl.store(zs + wide + AT_F * HIDDEN, f.to(h.dtype), mask=here)
            c = f * c + stored
        elif COUPLED:
            c = (1.0 - i) * c + stored
        else:
            c = c + stored
        shown = c
        if TANH_OUT:
            shown = tanh(c)
        if AT_O >= 0:
            o = _product(h, w_o, tl.load(x + wide + AT_O * HIDDEN, mask=here, other=0.0).to(SUM), SUM)
            if PEEPHOLES:
                o += p_o * c
            if RECURRENT:
                o = _from_gates(o, was_i, was_f, was_o, weight_gh, AT_O - 1, HIDDEN, SUM)
                was_i, was_f = i.to(h.dtype), f.to(h.dtype)
            o = sigmoid(o)
            if RECURRENT:
                was_o = o.to(h.dtype)
            tl.store(zs + wide + AT_O * HIDDEN, o.to(h.dtype), mask=here)
            shown = o * shown
        h = shown.to(h.dtype)
        tl.store(hs + at, h, mask=here)
        tl.store(cs + at, c.to(h.dtype), mask=here)
        x += batch * (BLOCKS * HIDDEN)
        zs += batch * (BLOCKS * HIDDEN)
        hs += batch * HIDDEN
        cs += batch * HIDDEN


@triton.jit
def lstm_backward(
    dhs, dc_last, dgates_last, weight_hh, weight_ch, weight_gh, cs, zs, dzs, dh_0, dc_0, dgates_0, time, batch,
    AT_I: tl.constexpr, AT_F: tl.constexpr, AT_G: tl.constexpr, AT_O: tl.constexpr, COUPLED: tl.constexpr,
    TANH_IN: tl.constexpr, TANH_OUT: tl.constexpr, PEEPHOLES: tl.constexpr, RECURRENT: tl.constexpr,
    BLOCKS: tl.constexpr, HIDDEN: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The gradient of each step's sums, `dzs`, and of the first state. `dhs`, `cs`, `zs`, `dzs`: at the last step."""
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HIDDEN)
    here = (row < batch)[:, None]
    at = row[:, None] * HIDDEN + unit[None, :]
    wide = row[:, None] * (BLOCKS * HIDDEN) + unit[None, :]
    turned = unit[:, None] * HIDDEN + unit[None, :]  # a block as it lies: from what is, down, to what was
    w_g = tl.load(weight_hh + AT_G * HIDDEN * HIDDEN + turned)
    if AT_I >= 0:
        w_i = tl.load(weight_hh + AT_I * HIDDEN * HIDDEN + turned)
    if AT_F >= 0:
        w_f = tl.load(weight_hh + AT_F * HIDDEN * HIDDEN + turned)
    if AT_O >= 0:
        w_o = tl.load(weight_hh + AT_O * HIDDEN * HIDDEN + turned)
    if PEEPHOLES:
        if AT_I >= 0:
            p_i = _peephole(weight_ch, AT_I, HIDDEN, SUM)
        if AT_F >= 0:
            p_f = _peephole(weight_ch, AT_F, HIDDEN, SUM)
        if AT_O >= 0:
            p_o = _peephole(weight_ch, AT_O - 1, HIDDEN, SUM)
    dh = tl.zeros((ROWS, HIDDEN), SUM)
    dc = tl.load(dc_last + at, mask=here, other=0.0).to(SUM)
    if RECURRENT:
        gates = row[:, None] * (3 * HIDDEN) + unit[None, :]
        from_i = tl.load(dgates_last + gates, mask=here, other=0.0).to(SUM)
        from_f = tl.load(dgates_last + gates + HIDDEN, mask=here, other=0.0).to(SUM)
        from_o = tl.load(dgates_last + gates + 2 * HIDDEN, mask=here, other=0.0).to(SUM)
    for _ in range(time):
        dh += tl.load(dhs + at, mask=here, other=0.0).to(SUM)
        c = tl.load(cs + at, mask=here, other=0.0).to(SUM)
        cs -= batch * HIDDEN
        was_c = tl.load(cs + at, mask=here, other=0.0).to(SUM)
        g = tl.load(zs + wide + AT_G * HIDDEN, mask=here, other=0.0).to(SUM)
        shown = c
        if TANH_OUT:
            shown = tanh(c)
        if AT_O >= 0:
            o = tl.load(zs + wide + AT_O * HIDDEN, mask=here, other=0.0).to(SUM)
            d_o = dh * shown
            if RECURRENT:
                d_o += from_o
            d_o *= o * (1.0 - o)
            tl.store(dzs + wide + AT_O * HIDDEN, d_o.to(w_g.dtype), mask=here)
            d_shown = dh * o
        else:
            d_shown = dh
        if TANH_OUT:
            d_shown *= 1.0 - shown * shown
        dc += d_shown
        if PEEPHOLES and AT_O >= 0:
            dc += d_o * p_o
        if AT_I >= 0:
            i = tl.load(zs + wide + AT_I * HIDDEN, mask=here, other=0.0).to(SUM)
            d_g = dc * i
            d_i = dc * g
            if COUPLED:
                d_i -= dc * was_c
            if RECURRENT:
                d_i += from_i
            d_i *= i * (1.0 - i)
            tl.store(dzs + wide + AT_I * HIDDEN, d_i.to(w_g.dtype), mask=here)
        else:
            d_g = dc
        if TANH_IN:
            d_g *= 1.0 - g * g
        tl.store(dzs + wide + AT_G * HIDDEN, d_g.to(w_g.dtype), mask=here)
        dh = _product(d_g, w_g, tl.zeros((ROWS, HIDDEN), SUM), SUM)
        if AT_F >= 0:
            f = tl.load(zs + wide + AT_F * HIDDEN, mask=here, other=0.0).to(SUM)
            d_f = dc * was_c
            if RECURRENT:
                d_f += from_f
            d_f *= f * (1.0 - f)
            tl.store(dzs + wide + AT_F * HIDDEN, d_f.to(w_g.dtype), mask=here)
            dh = _product(d_f, w_f, dh, SUM)
            dc = dc * f
            if PEEPHOLES:
                dc += d_f * p_f
        elif COUPLED:
            dc = dc * (1.0 - i)
        if AT_I >= 0:
            dh = _product(d_i, w_i, dh, SUM)
            if PEEPHOLES:
                dc += d_i * p_i
        if AT_O >= 0:
            dh = _product(d_o, w_o, dh, SUM)
        if RECURRENT:
            from_i = _to_gate(d_i, d_f, d_o, weight_gh, 0, HIDDEN, SUM)
            from_f = _to_gate(d_i, d_f, d_o, weight_gh, 1, HIDDEN, SUM)
            from_o = _to_gate(d_i, d_f, d_o, weight_gh, 2, HIDDEN, SUM)
        dhs -= batch * HIDDEN
        zs -= batch * (BLOCKS * HIDDEN)
        dzs -= batch * (BLOCKS * HIDDEN)
    tl.store(dh_0 + at, dh.to(w_g.dtype), mask=here)
    tl.store(dc_0 + at, dc.to(w_g.dtype), mask=here)
    if RECURRENT:
        tl.store(dgates_0 + gates, from_i.to(w_g.dtype), mask=here)
        tl.store(dgates_0 + gates + HIDDEN, from_f.to(w_g.dtype), mask=here)
        tl.store(dgates_0 + gates + 2 * HIDDEN, from_o.to(w_g.dtype), mask=here)


@triton.jit
def gru_forward(
    x, h_0, weight_hh, bias_n, hs, zs, time, batch, HIDDEN: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr
):
    """From `x` `(time, batch, 3 * HIDDEN)` to h and to r, z, n and n's part from h, `zs`, of each step."""
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HIDDEN)
    here = (row < batch)[:, None]
    at = row[:, None] * HIDDEN + unit[None, :]
    w_r, w_z, w_n = _block(weight_hh, 0, HIDDEN), _block(weight_hh, 1, HIDDEN), _block(weight_hh, 2, HIDDEN)
    b_n = tl.load(bias_n + unit)[None, :].to(SUM)
    below, kept = x + row[:, None] * (3 * HIDDEN) + unit[None, :], zs + row[:, None] * (4 * HIDDEN) + unit[None, :]
    h = tl.load(h_0 + at, mask=here, other=0.0).to(SUM)
    for _ in range(time):
        r = sigmoid(_product(h, w_r, tl.load(below, mask=here, other=0.0).to(SUM), SUM))
        z = sigmoid(_product(h, w_z, tl.load(below + HIDDEN, mask=here, other=0.0).to(SUM), SUM))
        h_n = _product(h, w_n, tl.zeros((ROWS, HIDDEN), SUM), SUM) + b_n
        n = tanh(tl.load(below + 2 * HIDDEN, mask=here, other=0.0).to(SUM) + r * h_n)
        h = z * h + (1.0 - z) * n
        tl.store(kept, r.to(w_r.dtype), mask=here)
        tl.store(kept + HIDDEN, z.to(w_r.dtype), mask=here)
        tl.store(kept + 2 * HIDDEN, n.to(w_r.dtype), mask=here)
        tl.store(kept + 3 * HIDDEN, h_n.to(w_r.dtype), mask=here)
        tl.store(hs + at, h.to(w_r.dtype), mask=here)
        below += batch * (3 * HIDDEN)
        kept += batch * (4 * HIDDEN)
        hs += batch * HIDDEN


@triton.jit
def gru_backward(
    dhs, weight_hh, hs, zs, dzs, dh_0, time, batch, HIDDEN: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr
):
    """The gradient of the sums of r, z and n and of n's part from h, `dzs`, as `zs`, and of the first state.

    `dhs`, `zs`, `dzs`: at the last step; `hs`: one before it.
    """
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, HIDDEN)
    here = (row < batch)[:, None]
    at = row[:, None] * HIDDEN + unit[None, :]
    wide = row[:, None] * (4 * HIDDEN) + unit[None, :]
    turned = unit[:, None] * HIDDEN + unit[None, :]
    w_r, w_z = tl.load(weight_hh + turned), tl.load(weight_hh + HIDDEN * HIDDEN + turned)
    w_n = tl.load(weight_hh + 2 * HIDDEN * HIDDEN + turned)
    dh = tl.zeros((ROWS, HIDDEN), SUM)
    for _ in range(time):
        dh += tl.load(dhs + at, mask=here, other=0.0).to(SUM)
        h = tl.load(hs + at, mask=here, other=0.0).to(SUM)
        r = tl.load(zs + wide, mask=here, other=0.0).to(SUM)
        z = tl.load(zs + wide + HIDDEN, mask=here, other=0.0).to(SUM)
        n = tl.load(zs + wide + 2 * HIDDEN, mask=here, other=0.0).to(SUM)
        h_n = tl.load(zs + wide + 3 * HIDDEN, mask=here, other=0.0).to(SUM)
        d_z = dh * (h - n) * z * (1.0 - z)
        d_n = dh * (1.0 - z) * (1.0 - n * n)
        d_r = d_n * h_n * r * (1.0 - r)
        d_h_n = d_n * r
        tl.store(dzs + wide, d_r.to(w_r.dtype), mask=here)
        tl.store(dzs + wide + HIDDEN, d_z.to(w_r.dtype), mask=here)
        tl.store(dzs + wide + 2 * HIDDEN, d_n.to(w_r.dtype), mask=here)
        tl.store(dzs + wide + 3 * HIDDEN, d_h_n.to(w_r.dtype), mask=here)
        dh = _product(d_h_n, w_n, _product(d_z, w_z, _product(d_r, w_r, dh * z, SUM), SUM), SUM)
        dhs -= batch * HIDDEN
        hs -= batch * HIDDEN
        zs -= batch * (4 * HIDDEN)
        dzs -= batch * (4 * HIDDEN)
    tl.store(dh_0 + at, dh.to(w_r.dtype), mask=here)
