"""The kernel between two steps of the flow: velocity, Euler step, input of the first layer."""

from __future__ import annotations

import triton
import triton.language as tl

from pi05_ros.backends.cuda.triton.primitives import pdl_trigger, pdl_wait, store_quantized


@triton.jit(do_not_specialize=["step", "steps", "dt"])
def euler_step(
    x_ptr,
    state_ptr,
    out_w_ptr,
    out_b_ptr,
    final_ptr,
    in_w_ptr,
    in_b_ptr,
    next_scale_ptr,
    mod_stride,
    frozen_ptr,
    mirror_ptr,
    mirror_scale_ptr,
    ss_ptr,
    amax_ptr,
    source_ptr,
    result_ptr,
    target_ptr,
    weight_ptr,
    clock_ptr,
    step,
    steps,
    dt,
    D: tl.constexpr,
    A: tl.constexpr,
    CHUNK: tl.constexpr,
    BM: tl.constexpr,
    PARTS: tl.constexpr,
    IMAGE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    GUIDED: tl.constexpr,
    PDL: tl.constexpr,
    MONITOR: tl.constexpr,
):
    """End of step `step` and start of the next, one program per action row.

    final adaRMS -> action_out -> Euler step on the FP32 state ``[BM, A]`` -> action_in -> x,
    mirror and row sum for layer 0. FIRST has only the second half (state = source: the noise),
    LAST only the first (result = state). Frozen rows keep their state.
    GUIDED (real-time chunking, LeRobot's form without the Jacobian): the estimate of the clean
    chunk is pulled towards target ``[BM, A]`` by weight ``[BM]``; clock ``[steps, 2]`` holds the
    flow time and the gain of each step.
    """
    m = tl.program_id(0)
    action = tl.arange(0, A)
    c = tl.arange(0, CHUNK)
    mirror_scale = tl.load(mirror_scale_ptr)
    pdl_wait(PDL)
    pdl_trigger(PDL)
    frozen = m < tl.load(frozen_ptr)
    if FIRST:
        state = tl.load(source_ptr + m * A + action)
    else:
        square = tl.zeros((CHUNK,), dtype=tl.float32)
        for i in tl.static_range(D // CHUNK):
            x = tl.load(x_ptr + m * D + i * CHUNK + c)
            square += x * x
        r = tl.rsqrt(tl.sum(square, axis=0) / D + 1e-6)
        final = final_ptr + tl.where(frozen, steps, step) * mod_stride
        velocity = tl.load(out_b_ptr + action)
        for i in tl.static_range(D // CHUNK):
            col = i * CHUNK + c
            y = tl.load(x_ptr + m * D + col) * r * tl.load(final + col) + tl.load(final + D + col)
            w = tl.load(out_w_ptr + action[:, None] * D + col[None, :])
            velocity += tl.sum(w * y[None, :], axis=1)
        state = tl.load(state_ptr + m * A + action)
        if GUIDED:
            time = tl.load(clock_ptr + 2 * step)
            gain = tl.load(clock_ptr + 2 * step + 1)
            clean = state - time * velocity
            pull = tl.load(weight_ptr + m) * (tl.load(target_ptr + m * A + action) - clean)
            velocity -= gain * pull
        state = tl.where(frozen, state, state - dt * velocity)
    if LAST:
        tl.store(result_ptr + m * A + action, state)
    else:
        tl.store(state_ptr + m * A + action, state)
        scale = next_scale_ptr + tl.where(frozen, steps, step + 1) * mod_stride
        total = 0.0
        for i in tl.static_range(D // CHUNK):
            col = i * CHUNK + c
            w = tl.load(in_w_ptr + action[:, None] * D + col[None, :])
            x = tl.sum(w * state[:, None], axis=0) + tl.load(in_b_ptr + col)
            tl.store(x_ptr + m * D + col, x)
            total += tl.sum(x * x, axis=0)
            mirror = x * tl.load(scale + col)
            if IMAGE:  # activation_offset of hopper/headers/layout.cuh
                place = (col // 128) * 8192 + m * 128 + ((col % 128) ^ ((m % 8) * 16))
            else:
                place = m * D + col
            store_quantized(mirror_ptr + place, mirror, col < D, mirror_scale, amax_ptr, MONITOR)
        part = tl.arange(0, triton.next_power_of_2(PARTS))
        tl.store(ss_ptr + part * BM + m, tl.where(part == 0, total, 0.0), mask=part < PARTS)
