"""Tableaux: conditions of order, and refusal of inconsistent ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueode.errors import UsageError
from trueode.solvers import TABLEAUS, ButcherTableau, get_tableau


@pytest.mark.parametrize("tableau", TABLEAUS.values(), ids=lambda t: t.name)
def test_order_is_not_understated(tableau: ButcherTableau) -> None:
    """The conditions of the next order fail (checked up to order 4)."""
    if tableau.order < 4:
        with pytest.raises(ValueError, match=f"claims order {tableau.order + 1}"):
            ButcherTableau("wrong", tableau.order + 1, tableau.a, tableau.b)


@given(st.floats(0.01, 10), st.floats(-1, 1))
def test_second_order_family(alpha: float, off: float) -> None:
    """Exactly the family a21 = alpha, b = (1 - 1/(2 alpha), 1/(2 alpha)) has order 2."""
    b2 = 1 / (2 * alpha)
    assert ButcherTableau("ralston", 2, ((), (alpha,)), (1 - b2, b2)).stages == 2
    if abs(off) * alpha > 1e-6:
        with pytest.raises(ValueError, match="claims order 2"):
            ButcherTableau("wrong", 2, ((), (alpha,)), (1 - b2 - off, b2 + off))


def test_inconsistent_weights() -> None:
    with pytest.raises(ValueError, match="sum b"):
        ButcherTableau("wrong", 1, ((),), (0.5,))
    with pytest.raises(ValueError, match="Only explicit"):
        ButcherTableau("implicit", 1, ((1.0,),), (1.0,))
    with pytest.raises(ValueError, match="`embedded` has 1 weights for 2 stages"):
        ButcherTableau("wrong", 2, ((), (1.0,)), (0.5, 0.5), embedded=(1.0,), embedded_order=1)
    with pytest.raises(ValueError, match="dense weights"):
        ButcherTableau("wrong", 1, ((),), (1.0,), dense=((0.5,),))


def test_first_same_as_last() -> None:
    assert {name for name, tableau in TABLEAUS.items() if tableau.fsal} == {
        "bosh3",
        "dopri5",
        "tsit5",
        "dopri8",
    }


def test_error_weights_sum_to_zero() -> None:
    for tableau in TABLEAUS.values():
        if tableau.embedded is None:
            with pytest.raises(ValueError, match="no error estimate"):
                _ = tableau.error_weights
        else:
            assert abs(sum(tableau.error_weights)) < 1e-12


def test_dense_weights_have_order_three_everywhere() -> None:
    """Σ b(theta) c^(q-1) = theta^q / q for q = 1, 2, 3 (Hairer, Nørsett & Wanner I, II.6.9)."""
    for tableau in TABLEAUS.values():
        if tableau.dense is None:
            continue
        for theta in (0.1, 0.37, 0.8, 1.0):
            b = [sum(x * theta ** (j + 1) for j, x in enumerate(row)) for row in tableau.dense]
            for q in (1, 2, 3):
                total = sum(w * c ** (q - 1) for w, c in zip(b, tableau.c, strict=True))
                assert abs(total - theta**q / q) < 1e-9


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'midpoint'"):
        get_tableau("midpiont")
    assert get_tableau(TABLEAUS["rk4"]) is TABLEAUS["rk4"]
