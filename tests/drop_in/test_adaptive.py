"""Adaptive calls agree with torchdiffeq to the tolerance, and obey their options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from tests.drop_in.fields import SHAPES, TIMES, Counted, CountedPair, assert_close, found, start
from trueode import SolveError, odeint
from trueode.drop_in.call import ADAPTIVE

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
# of the error: these methods underestimate theirs, or need very many steps
LOOSE = {"fehlberg2": 1e-5, "adaptive_heun": 1e-5, "bosh3": 1e-7}


def times(name: str) -> Tensor:
    return torch.tensor(TIMES[name], dtype=torch.float64)


def exact(field: Any, y0: Any, t: Tensor) -> Any:
    with torch.no_grad():
        return torchdiffeq.odeint(field, y0, t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("moving", [False, True], ids=["times", "moving times"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TIMES)
def test_states_and_gradients_agree(name: str, shape: str, moving: bool) -> None:
    field, y0 = SHAPES[shape]
    ours, theirs = (
        found(each, field(), y0(), times(name), moving, **TIGHT)
        for each in (odeint, torchdiffeq.odeint)
    )
    assert_close(ours, theirs, 1e-6)


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_method_is_accurate(method: str, name: str) -> None:
    """At all times, within a hundred tolerances."""
    tol, y0 = LOOSE.get(method, 1e-8), start(5, 2)
    with torch.no_grad():
        ours = odeint(Counted(), y0, times(name), rtol=tol, atol=tol, method=method)
    difference = (ours - exact(Counted(), y0, times(name))).abs().max()
    assert float(difference) < (1000 if method == "fehlberg2" else 100) * tol


def test_complex_states() -> None:
    y0 = torch.complex(start(4), start(4).flip(0))

    def field(t: Tensor, y: Tensor) -> Tensor:
        return 1j * y * t.cos() - 0.1 * y

    for options in (None, {"min_step": 1e-6}):
        ours = odeint(field, y0, times("equal"), **TIGHT, method="dopri5", options=options)
        torch.testing.assert_close(
            ours, torchdiffeq.odeint(field, y0, times("equal"), **TIGHT), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("name", TIMES)
def test_single_precision_with_the_default_tolerances(name: str) -> None:
    y0, t = start(5, 2, dtype=torch.float32), times(name).float()
    ours, theirs = (each(Counted(torch.float32), y0, t) for each in (odeint, torchdiffeq.odeint))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def calls(each: Any, field: Any, y0: Any, name: str, **how: Any) -> int:
    field.calls = 0
    each(field, y0, times(name), **how)
    return int(field.calls)


def test_equal_tolerances_of_components_are_one_tolerance() -> None:
    y0 = start(5, 2)
    with torch.no_grad():
        plain = odeint(Counted(), y0, times("equal"), rtol=1e-5, atol=1e-6)
        for rtol in (torch.full((5, 2), 1e-5), torch.full((2,), 1e-5), torch.tensor(1e-5), 1e-5):
            found = odeint(Counted(), y0, times("equal"), rtol=rtol, atol=torch.full((5, 1), 1e-6))
            torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-7)


def test_a_tight_tolerance_of_one_component_counts() -> None:
    def rates(t: Tensor, y: Tensor) -> Tensor:  # the first component is fast, the second slow
        return torch.stack([(20 * t).cos() * 20 * y[0], 0.1 * y[1]])

    y0, t = torch.ones(2, dtype=torch.float64), times("equal")
    errors = []
    for atol in ([1e-9, 1e-3], [1e-3, 1e-9]):
        tolerances = {"rtol": 0.0, "atol": torch.tensor(atol, dtype=torch.float64)}
        found = odeint(rates, y0, t, **tolerances)
        errors.append(float((found[:, 0] - torch.exp((20 * t).sin())).abs().max()))
    assert errors[0] < 1e-6 < 1e-4 < errors[1]


def test_tolerances_of_the_parts_of_a_tuple() -> None:
    y0 = (start(3, 2), start(3, 3))
    fine, coarse = (
        odeint(CountedPair(), y0, times("equal"), rtol=rtol, atol=(1e-10, tol))
        for rtol, tol in (((1e-10, 1e-10), 1e-10), ((1e-10, 1e-1), 1e-1))
    )
    theirs = torchdiffeq.odeint(
        CountedPair(), y0, times("equal"), rtol=(1e-10, 1e-10), atol=(1e-10, 1e-10)
    )
    for x, y, z in zip(fine, theirs, coarse, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)  # the first part needs the steps


def test_a_norm_of_ones_own() -> None:
    """The root mean square is the default; a norm that is always zero accepts every step."""
    field, y0 = Counted(), start(5, 2)
    how = {"rtol": 1e-6, "atol": 1e-6, "method": "dopri5"}

    def rms(x: Tensor) -> Tensor:
        return x.square().mean().sqrt()

    default = calls(odeint, field, y0, "equal", **how)
    assert calls(odeint, field, y0, "equal", **how, options={"norm": rms}) == default
    free = {"norm": lambda x: x.new_zeros(()), "first_step": 0.5}
    assert calls(odeint, field, y0, "equal", **how, options=free) < default


def test_a_norm_of_a_tuple_sees_its_parts() -> None:
    seen = set()

    def largest(parts: tuple[Tensor, ...]) -> Tensor:
        seen.add(tuple(part.shape for part in parts))
        return max(part.abs().max() for part in parts)

    y0 = (start(3, 2), start(3, 3))
    how: dict[str, Any] = {"method": "dopri5", "options": {"norm": largest}, **TIGHT}
    ours, theirs = (
        each(CountedPair(), y0, times("equal"), **how) for each in (odeint, torchdiffeq.odeint)
    )
    assert seen == {((3, 2), (3, 3))}
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [{"min_step": 0.25}, {"min_step": 0.25, "first_step": 0.25}, {"max_step": 0.05}],
    ids=str,
)
def test_steps_between_bounds(options: dict[str, float]) -> None:
    """The shortest step is taken whatever its error; the longest one limits the rest."""
    how = {"rtol": 1e-12, "atol": 1e-12, "method": "dopri5"}
    if "max_step" in options:
        how |= {"rtol": 1.0, "atol": 1.0}
    steps = (calls(odeint, Counted(), start(5, 2), "two", **how, options=options) - 1) / 6
    if "max_step" in options:
        assert 16 <= steps <= 18
    else:
        assert steps <= 5  # 0.8 / 0.25, and the two evaluations that choose a first step


def test_safety_and_factors_change_the_steps() -> None:
    how = {"rtol": 1e-8, "atol": 1e-8, "method": "bosh3"}
    default = calls(odeint, Counted(), start(5, 2), "two", **how)
    careful = {"safety": 0.3}
    assert calls(odeint, Counted(), start(5, 2), "two", **how, options=careful) > 1.5 * default
    same = {"safety": 0.9, "ifactor": 10.0, "dfactor": 0.2, "dtype": torch.float64}
    assert calls(odeint, Counted(), start(5, 2), "two", **how, options=same) == default


@pytest.mark.parametrize("name", ["step_t", "jump_t"])
@pytest.mark.parametrize("backward", [False, True])
def test_steps_end_at_jumps(name: str, backward: bool) -> None:
    def switched(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.37, -y, 2 * y)

    t, y0 = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), start(4)
    growth = torch.tensor([1.0, 0.13 * 2 - 0.37, 0.63 * 2 - 0.37], dtype=torch.float64).exp()
    growth[0] = 1.0
    if backward:
        t, growth = t.flip(0), (growth.flip(0) / growth[-1])
    jumps = {name: torch.tensor([0.37, 3.0], dtype=torch.float64)}
    found = odeint(switched, y0, t, rtol=1e-9, atol=1e-9, method="dopri5", options=jumps)
    torch.testing.assert_close(found, growth[:, None] * y0, rtol=1e-7, atol=1e-8)


def test_a_failed_solve_is_an_error_of_both_libraries() -> None:
    y0, t = torch.ones(2, dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    failing: list[tuple[Any, dict[str, Any], str]] = [
        (lambda t, y: y**2, {"options": {"max_num_steps": 3}}, "max_num_steps"),
        (lambda t, y: y * torch.nan, {"options": {"first_step": 0.1}}, "not finite"),
        (lambda t, y: 1e3 * y**3, {}, ""),
    ]
    for field, how, words in failing:
        for each in (odeint, torchdiffeq.odeint):
            with pytest.raises(AssertionError) as caught:
                each(field, y0, t, method="dopri5", **how)
            if each is odeint:
                assert isinstance(caught.value, SolveError)
                assert words in str(caught.value)


def test_the_shortest_step_does_not_loop_forever() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.5, torch.nan, 1.0) * y

    with pytest.raises(SolveError, match="not finite"):
        odeint(field, start(2), times("two"), method="dopri5", options={"min_step": 1e-3})


def test_options_without_effect_warn() -> None:
    for method, options in (("dopri5", {"step_size": 0.1}), ("rk4", {"first_step": 0.1})):
        for each in (odeint, torchdiffeq.odeint):
            with pytest.warns(UserWarning, match="Unexpected arguments"):
                each(Counted(), start(2), times("two"), method=method, options=options)
