"""Activations and their derivatives, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

# 1 / n!, highest first, for exp; 1 / (2 n + 1), highest first, for artanh: for single and double
_EXP = tl.constexpr((1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2))
_EXP_DOUBLE = tl.constexpr(
    (1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320)
)
_ARTANH = tl.constexpr((1 / 9, 1 / 7, 1 / 5, 1 / 3))
_ARTANH_DOUBLE = tl.constexpr((1 / 21, 1 / 19, 1 / 17, 1 / 15, 1 / 13, 1 / 11))


@triton.jit
def _extended(p: tl.tensor, x: tl.tensor, TERMS: tl.constexpr) -> tl.tensor:
    """The polynomial that begins with ``p`` and ends with the given terms, at ``x``."""
    for i in tl.static_range(len(TERMS.value)):
        p = p * x + TERMS[i]
    return p


@triton.jit
def _exp_parts(x: tl.tensor) -> tl.tuple:
    """``scale`` and ``p`` with ``exp(x) = scale (1 + p)``, ``p`` accurate also for small ``x``, as
    in the kernel for processors.
    """
    DOUBLE: tl.constexpr = x.dtype == tl.float64
    LOW: tl.constexpr = -708 if DOUBLE else -87
    HIGH: tl.constexpr = 709 if DOUBLE else 88
    x = tl.where(x < LOW, LOW, tl.where(x > HIGH, HIGH, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    if DOUBLE:
        r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10
        scale = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
        p = _extended(tl.zeros_like(x), r, _EXP_DOUBLE)
    else:
        r = x - n * 0.693145751953125 - n * 1.4286068203094172e-6
        scale = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        p = tl.zeros_like(x)
    return scale, _extended(p, r, _EXP) * r * r + r


@triton.jit
def _exp(x: tl.tensor) -> tl.tensor:
    scale, p = _exp_parts(x)
    return scale * p + scale


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1 / (1 + _exp(-x))


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """``expm1(2 x) / (expm1(2 x) + 2)``."""
    scale, p = _exp_parts(2 * tl.where(x > 20, 20, x))
    e = scale * p + (scale - 1)
    return e / (e + 2)


@triton.jit
def _softplus(x: tl.tensor) -> tl.tensor:
    """``max(x, 0) + log(1 + u)``, ``u = exp(-|x|)``, with ``log(1 + u) = 2 artanh(u / (2 + u))``,
    and half of ``1 + u`` if it is large. Beyond 20 the result is ``x``, as in PyTorch.
    """
    u = _exp(-tl.abs(x))
    large = u > 0.41421356237309503
    s = tl.where(large, (u - 1) / (u + 3), u / (u + 2))
    q = s * s
    p = tl.zeros_like(x)
    if x.dtype == tl.float64:
        p = _extended(p, q, _ARTANH_DOUBLE)
    p = 2 * (s * q * _extended(p, q, _ARTANH) + s) + tl.where(large, q * 0 + 0.69314718055994531, 0)
    return tl.where(x > 20, x, tl.where(x < 0, 0, x) + p)


@triton.jit
def activated(x: tl.tensor, NAME: tl.constexpr) -> tl.tuple:
    """An activation and its derivative."""
    one = tl.full(x.shape, 1, x.dtype)
    if NAME == "identity":
        value, slope = x, one
    elif NAME == "relu":
        value, slope = tl.where(x < 0, 0, x), tl.where(x <= 0, 0, one)
    elif NAME == "lrelu":
        slope = tl.where(x > 0, one, one * 0.01)
        value = x * slope
    elif NAME == "sigmoid":
        value = _sigmoid(x)
        slope = value * (1 - value)
    elif NAME == "tanh":
        value = _tanh(x)
        slope = 1 - value * value
    elif NAME == "silu":
        s = _sigmoid(x)
        value, slope = x * s, s * (1 + x * (1 - s))
    elif NAME == "softplus":
        value, slope = _softplus(x), tl.where(x > 20, one, _sigmoid(x))
    elif NAME == "gelu":
        normal = 0.5 * (1 + tl.erf(x * 0.70710678118654752))
        value, slope = x * normal, normal + x * _exp(-0.5 * x * x) * 0.39894228040143268
    else:
        tl.static_assert(NAME == "cube")
        value, slope = x * x * x, 3 * x * x
    return value, slope
