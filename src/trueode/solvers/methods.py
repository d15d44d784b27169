"""The methods as data, each with its source."""

from __future__ import annotations

from trueode.catalog import METHODS
from trueode.errors import UsageError, nearest
from trueode.solvers.tableau import ButcherTableau

EULER = ButcherTableau(
    "euler", 1, ((),), (1.0,), source="Euler, Institutionum calculi integralis I, 1768"
)

MIDPOINT = ButcherTableau(
    "midpoint",
    2,
    ((), (1 / 2,)),
    (0.0, 1.0),
    source="Runge 1895; Hairer, Nørsett & Wanner I, eq. II.1.4",
)

HEUN2 = ButcherTableau(
    "heun2",
    2,
    ((), (1.0,)),
    (1 / 2, 1 / 2),
    source="explicit trapezoidal rule; Hairer, Nørsett & Wanner I, eq. II.1.3",
)

RK4 = ButcherTableau(
    "rk4",
    4,
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    source="Kutta 1901, the classical method; Hairer, Nørsett & Wanner I, Table II.1.2, left",
)

RK4_38 = ButcherTableau(
    "rk4_38",
    4,
    ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    source="Kutta 1901, the 3/8 rule (the rk4 of torchdiffeq); "
    "Hairer, Nørsett & Wanner I, Table II.1.2, right",
)

FEHLBERG2 = ButcherTableau(
    "fehlberg2",
    2,
    ((), (1 / 2,), (1 / 256, 255 / 256)),
    (1 / 512, 255 / 256, 1 / 512),
    embedded=(1 / 256, 255 / 256, 0.0),
    embedded_order=1,
    source="Fehlberg, NASA TR R-315, 1969: RK1(2)",
)

BOSH3 = ButcherTableau(
    "bosh3",
    3,
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    embedded_order=2,
    source="Bogacki & Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2, 1989",
)

DOPRI5 = ButcherTableau(
    "dopri5",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    embedded_order=4,
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    source="Dormand & Prince, J. Comp. Appl. Math. 6, 1980; "
    "dense output: Shampine, Math. Comp. 46, 1986",
)


def _tsit5_dense() -> tuple[tuple[float, ...], ...]:
    """Expand the factored weights of the paper's interpolant into powers theta, theta² … theta⁴."""

    def quadratic(scale: float, linear: float, constant: float) -> tuple[float, ...]:
        # scale theta² (theta² - linear theta + constant)
        return 0.0, scale * constant, -scale * linear, scale

    def roots(scale: float, r: float, s: float) -> tuple[float, ...]:
        # scale theta² (theta - r)(theta - s)
        return quadratic(scale, r + s, r * s)

    s, r, p, q = -1.0530884977290216, 1.3299890189751412, 1.4364028541716351, 0.7139816917074209
    return (
        (
            -s * r * q,
            s * (q + r * p),
            -s * (p + r),
            s,
        ),  # scale theta (theta - r)(theta² - p theta + q)
        quadratic(0.1017, 2.1966568338249754, 1.2949852507374631),
        quadratic(2.490627285651252793, 2.38535645472061657, 1.57803468208092486),
        roots(-16.54810288924490272, 1.21712927295533244, 0.61620406037800089),
        roots(47.37952196281928122, 1.203071208372362603, 0.658047292653547382),
        roots(-34.87065786149660974, 1.2, 2 / 3),
        roots(2.5, 1.0, 0.6),
    )


_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
_TSIT5_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)

TSIT5 = ButcherTableau(
    "tsit5",
    5,
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_B[:-1],
    ),
    _TSIT5_B,
    embedded=tuple(b - e for b, e in zip(_TSIT5_B, _TSIT5_ERROR, strict=True)),
    embedded_order=4,
    dense=_tsit5_dense(),
    source="Tsitouras, Runge-Kutta pairs of order 5(4), Comput. Math. Appl. 62, 2011",
)

TABLEAUS: dict[str, ButcherTableau] = {
    method.name: method
    for method in (EULER, MIDPOINT, HEUN2, RK4, RK4_38, FEHLBERG2, BOSH3, DOPRI5, TSIT5)
}


def get_tableau(method: str | ButcherTableau) -> ButcherTableau:
    """Return the tableau of a method given by name, or the tableau itself.

    Raises:
        UsageError: the name is unknown.
    """
    if isinstance(method, ButcherTableau):
        return method
    if not isinstance(method, str) or method not in TABLEAUS:
        raise UsageError(
            f"Unknown method {method!r}; choose from {', '.join(METHODS)}."
            f"{nearest(str(method), METHODS)}"
        )
    return TABLEAUS[method]
