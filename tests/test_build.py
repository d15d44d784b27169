"""From options to the parts of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueode.adaptation import (
    Evidence,
    Extrapolated,
    FidelityRule,
    PaperStepRule,
    PaperToleranceRule,
    Progress,
)
from trueode.build import (
    FLOORS,
    Shape,
    build_batches,
    build_data,
    build_model,
    build_optimizer,
    build_rule,
    build_run,
    shape_of,
    training_solver,
)
from trueode.catalog import METHODS
from trueode.distributed import Ranks
from trueode.errors import OptionError, UsageError
from trueode.models import NeuralODE
from trueode.options import Options, make_options
from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep

SIGNAL = Shape("classification", (1, 2), 2, 1.0)
IMAGE = Shape("classification", (3, 8, 8), 10, 1.0)
SERIES = Shape("timeseries", (1, 2), 2, 10.0)
ALONE = Ranks(0, 1, torch.device("cpu"))


def opt(**values: Any) -> Options:
    return make_options({"ch_residual_block": 4, **values})


def for_images(**values: Any) -> Options:
    return opt(dataset="mnist", network="odenet", **values)


def for_series(**values: Any) -> Options:
    return opt(dataset="pendulum", network="linear_odenet", step_size=0.25, **values)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def equal(one: NeuralODE, other: NeuralODE) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# weights


@pytest.mark.parametrize("init_type", ["kaiming", "normal", "xavier", "orthogonal"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("upstream", [0, 5])
def test_weights_depend_on_the_seed_alone(init_type: str, precision: str, upstream: int) -> None:
    how = {"init_type": init_type, "precision": precision, "upstream_channels": upstream}
    models = []
    for state in (0, 1):
        torch.manual_seed(state)
        models.append(build_model(opt(random_seed=3, **how), SIGNAL))
    assert equal(*models)
    torch.manual_seed(0)
    other = weights(build_model(opt(random_seed=4, **how), SIGNAL))
    for name, weight in weights(models[0]).items():
        assert weight.dtype == getattr(torch, precision)
        assert torch.equal(weight, other[name]) == name.endswith("bias"), name


@pytest.mark.parametrize(
    "how", [{"solver": "dopri5"}, {"n_steps": 8}, {"lr": 1.0}, {"autodif": "adjoint"}], ids=str
)
def test_weights_do_not_depend_on_the_solver(how: dict[str, Any]) -> None:
    assert equal(build_model(opt(), SIGNAL), build_model(opt(**how), SIGNAL))


# the layers around the ODE block


@pytest.mark.parametrize(
    ("options", "shape", "kind"), [(opt, SIGNAL, nn.Conv1d), (for_images, IMAGE, nn.Conv2d)]
)
def test_upstream_lifts_the_channels(options: Any, shape: Shape, kind: type[nn.Module]) -> None:
    plain = build_model(options(), shape)
    assert plain.upstream is None
    model = build_model(options(upstream_channels=6), shape)
    assert type(model.upstream) is kind
    x = torch.randn(2, *shape.sample)
    assert model.upstream(x).shape == (2, 6, *shape.sample[1:])
    assert model(x).shape == plain(x).shape == (2, shape.n_outputs)


@pytest.mark.parametrize(
    ("upstream", "downstream"), [(0, "auto"), (0, "linear"), (0, "none"), (6, "auto")]
)
def test_a_time_series_has_outputs_of_the_shape_of_its_samples(
    upstream: int, downstream: str
) -> None:
    model = build_model(for_series(upstream_channels=upstream, downstream=downstream), SERIES)
    assert (model.downstream is None) == (downstream != "linear" and not upstream)
    x = torch.randn(3, *SERIES.sample)
    assert model(x).shape == x.shape
    assert model(x, save_at=[1.0, 10.0]).shape == (2, *x.shape)


def test_no_downstream_layer_where_the_numbers_do_not_fit() -> None:
    with pytest.raises(OptionError, match=r"--downstream none.*12 numbers.*has 2.*linear"):
        build_model(for_series(upstream_channels=6, downstream="none"), SERIES)
    arrays = opt(dataset="arrays", downstream="none", task="regression")
    with pytest.raises(OptionError, match=r"--downstream none.*2 numbers.*has 3"):
        build_model(arrays, Shape("regression", (1, 2), 3, 1.0))
    assert build_model(arrays, Shape("regression", (1, 2), 2, 1.0))(torch.randn(4, 1, 2)).shape == (
        4,
        2,
    )
    with pytest.raises(OptionError, match="--downstream none"):  # the data has labels
        build_model(opt(dataset="arrays", downstream="none"), SIGNAL)


def test_a_network_that_does_not_fit_the_data() -> None:
    with pytest.raises(UsageError, match="odenet"):
        build_model(opt(dataset="arrays", network="odenet"), SIGNAL)


# solver and gradient


def test_fixed_steps() -> None:
    assert build_model(opt(), SIGNAL).solver == FixedStep("euler", step_size=1.0, max_steps=500)
    assert training_solver(opt(solver="rk4", step_size=0.25, max_steps=7), 1.0) == FixedStep(
        "rk4", step_size=0.25, max_steps=7
    )


@pytest.mark.parametrize("t_start", [-1.0, 2019.1])
def test_the_block_starts_where_the_data_does(t_start: float) -> None:
    shape = Shape("timeseries", (1, 2), 2, t_start + 0.8, t_start)
    model = build_model(opt(solver="rk4", n_steps=8), shape)
    assert model.t == (t_start, t_start + 0.8)
    assert isinstance(model.solver, FixedStep)
    assert model.solver.count(shape.length) == 8


@pytest.mark.parametrize("n", [1, 3, 7, 49, 490, 499])
@pytest.mark.parametrize("t_end", [0.1, 1.0, 2.0, 10.0])
def test_a_number_of_steps_is_that_number_of_steps(n: int, t_end: float) -> None:
    solver = training_solver(opt(n_steps=n), t_end)
    assert isinstance(solver, FixedStep)
    assert solver.count(t_end) == n
    model = build_model(opt(n_steps=n, t_end=t_end), Shape("classification", (1, 2), 2, t_end))
    _, solution = model(torch.randn(2, 1, 2), return_solution=True)
    assert solution.nfe == n


@pytest.mark.parametrize("method", ["fehlberg2", "bosh3", "dopri5", "tsit5"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_tolerances(method: str, per_sample: bool) -> None:
    how = {"solver": method, "per_sample": per_sample, "tol": 1e-3, "initial_tol": 1e-2}
    assert training_solver(opt(**how), 1.0) == Adaptive(method, 1e-3, 1e-3, per_sample=per_sample)
    adapting = training_solver(opt(**how, use_step_adaption_algo=True), 1.0)
    assert adapting == Adaptive(method, 1e-2, 1e-2, per_sample=per_sample)


def test_gradients() -> None:
    found = [
        build_model(opt(autodif=name), SIGNAL).gradient
        for name in ("naive", "checkpoint", "adjoint")
    ]
    assert found == [Backprop(), Checkpoint(), Adjoint()]
    assert build_model(opt(adjoint=True), SIGNAL).gradient == Adjoint()


# the end of time


def test_the_end_of_time(tmp_path: Path) -> None:
    series = build_data(for_series(data_dir=str(tmp_path)))
    assert shape_of(for_series(), series) == SERIES
    assert shape_of(for_series(t_end=12.0), series).t_end == 12.0
    late = replace(series, t_start=8.0)
    assert shape_of(opt(n_steps=4), late) == replace(SERIES, t_start=8.0)
    with pytest.raises(
        OptionError, match=r"--step_size 2\.5 is longer than the interval \[8, 10\].*at most 2\."
    ):
        shape_of(opt(dataset="pendulum", network="linear_odenet", step_size=2.5), late)
    ended = replace(series, t_start=-2.0, t_end=0.0)
    assert shape_of(for_series(), ended).length == 2
    with pytest.raises(OptionError, match=r"--t_end 9 lies before.*10"):
        shape_of(for_series(t_end=9.0), series)
    spheres = build_data(opt(data_dir=str(tmp_path)))
    assert shape_of(opt(), spheres) == SIGNAL
    assert shape_of(opt(t_end=0.5, n_steps=2), spheres).t_end == 0.5


def test_a_step_longer_than_the_time_series(tmp_path: Path) -> None:
    series = build_data(for_series(data_dir=str(tmp_path)))
    with pytest.raises(OptionError, match=r"--step_size 11 .*\[0, 10\]"):
        shape_of(opt(dataset="pendulum", network="linear_odenet", step_size=11), series)
    with pytest.raises(OptionError, match=r"--step_size 0.01 takes 1000 steps.*--max_steps 500"):
        shape_of(opt(dataset="pendulum", network="linear_odenet", step_size=0.01), series)
    assert (
        shape_of(opt(dataset="pendulum", network="linear_odenet", step_size=10), series).t_end == 10
    )
    adaptive = opt(dataset="pendulum", network="linear_odenet", step_size=11, solver="dopri5")
    assert shape_of(adaptive, series).t_end == 10  # it has no such step


# data


def test_data_of_a_seed_in_a_precision(tmp_path: Path) -> None:
    one, again, other = (
        build_data(opt(data_dir=str(tmp_path), random_seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one.train.x, again.train.x)
    assert not torch.equal(one.train.x, other.train.x)
    assert one.train.x.dtype == torch.float32
    assert (
        build_data(opt(data_dir=str(tmp_path), precision="float64")).train.x.dtype == torch.float64
    )


def test_batches(tmp_path: Path) -> None:
    options = opt(data_dir=str(tmp_path), batch_size=300)
    dataset = build_data(options)

    def first(options: Options, ranks: Ranks = ALONE) -> Tensor:
        batch, whole = next(build_batches(options, dataset, ranks).from_iteration(0))
        assert whole == 300
        return batch.x

    x = first(options)
    assert torch.equal(x, first(options))
    assert not torch.equal(x, first(opt(batch_size=300, random_seed=1)))
    assert torch.equal(first(opt(batch_size=300, serial_batches=True)), dataset.train.x[:300])
    parts = [first(options, Ranks(rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert [len(part) for part in parts] == [150, 150]
    assert torch.equal(torch.cat(parts), x)


# optimiser


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_the_first_step_is_that_of_the_formula(name: str, decay: float, precision: str) -> None:
    """From zero moments, with g including the decay.

    sgd moves by lr g, adam by lr g / (|g| + eps), rmsprop by lr g / (|g| / 10 + eps).
    """
    options = opt(optimizer=name, lr=0.03, weight_decay=decay, precision=precision)
    model = build_model(options, SIGNAL)
    optimizer = build_optimizer(options, model)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(4, 1, 2, dtype=before[0].dtype)).square().sum().backward()
    gradients = [p.grad + decay * p.detach() for p in model.parameters()]
    optimizer.step()
    for p, was, g in zip(model.parameters(), before, gradients, strict=True):
        scale = {"sgd": 1, "adam": g.abs() + 1e-8, "rmsprop": (0.01 * g.square()).sqrt() + 1e-8}[
            name
        ]
        torch.testing.assert_close(p.detach(), was - 0.03 * g / scale, rtol=1e-4, atol=1e-6)


# adaptation


def rule_of(tmp_path: Path, **values: Any) -> Any:
    options = opt(data_dir=str(tmp_path), use_step_adaption_algo=True, batch_size=16, **values)
    dataset = build_data(options)
    shape = shape_of(options, dataset)
    model = build_model(options, shape)
    return build_rule(options, model, shape, build_batches(options, dataset, ALONE), ALONE)[
        0
    ], model


def test_no_rule_unless_asked_for(tmp_path: Path) -> None:
    dataset = build_data(opt(data_dir=str(tmp_path)))
    model = build_model(opt(), SIGNAL)
    assert build_rule(opt(), model, SIGNAL, build_batches(opt(), dataset, ALONE), ALONE) == (
        None,
        0.0,
    )


@pytest.mark.parametrize("upstream", [0, 5])
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "rk4", "rk4_38"])
def test_fixed_steps_are_adapted_by_the_step_rule(
    tmp_path: Path, method: str, upstream: int
) -> None:
    rule, _ = rule_of(tmp_path, solver=method, max_steps=50, upstream_channels=upstream)
    assert isinstance(rule, PaperStepRule)
    assert rule.solver.name == method
    assert rule.solver.max_steps == 50
    assert 1 / 50 <= rule.solver.step_size <= 1
    again, _ = rule_of(tmp_path, solver=method, max_steps=50, upstream_channels=upstream)
    assert again.solver == rule.solver


def test_the_step_rule_knows_the_interval(tmp_path: Path) -> None:
    for most in (1, 3):
        rule, _ = rule_of(tmp_path, dataset="pendulum", network="linear_odenet", max_steps=most)
        assert 10 / most <= rule.solver.step_size <= 10


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("method", ["fehlberg2", "dopri5"])
def test_tolerances_are_adapted_by_the_tolerance_rule(
    tmp_path: Path, method: str, precision: str
) -> None:
    rule, model = rule_of(
        tmp_path, solver=method, initial_tol=1e-4, per_sample=True, precision=precision
    )
    assert isinstance(rule, PaperToleranceRule)
    assert rule.solver == model.solver == Adaptive(method, 1e-4, 1e-4, per_sample=True)
    assert FLOORS[precision] > np.finfo(precision).eps / 10


def test_the_threshold_reaches_the_rule(tmp_path: Path) -> None:
    """A difference between two thresholds makes only one rule refine."""
    from trueode.adaptation.rule import Evidence, Progress

    for method in ("euler", "dopri5"):
        moved = []
        for threshold in (0.01, 0.5):
            rule, _ = rule_of(tmp_path, solver=method, threshold=threshold)
            before = rule.solver
            after = rule.propose(lambda one, other: Evidence(0.1, 1, 2), Progress(50, 100))
            size = "step_size" if method == "euler" else "rtol"
            moved.append(getattr(after, size) / getattr(before, size))
        assert moved[0] == 0.5
        assert moved[1] >= 1


FIDELITY = {"adaption_algo": "fidelity"}


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_without_a_penalty_the_fidelity_rule_starts_cold(tmp_path: Path, method: str) -> None:
    rule, _ = rule_of(tmp_path, solver=method, penalty=0, **FIDELITY)
    assert isinstance(rule, FidelityRule)
    cost = {"euler": 8, "midpoint": 4, "heun2": 4, "heun3": 2, "rk4": 2, "rk4_38": 2, "auto": 2}
    if method in cost:
        assert rule.solver == FixedStep("rk4" if method == "auto" else method, n_steps=cost[method])
    else:
        assert rule.solver == Adaptive(method, 3e-3, 3e-3)
    most, _ = rule_of(tmp_path, solver=method, max_steps=1, **FIDELITY)
    assert method not in cost or most.solver.n_steps == 1


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "auto", "dopri5"])
def test_with_its_penalty_the_fidelity_rule_starts_finer_and_stays_above_the_cold(
    tmp_path: Path, method: str
) -> None:
    rule, _ = rule_of(tmp_path, solver=method, **FIDELITY)
    cost = {"euler": 12, "midpoint": 6, "rk4": 3, "auto": 3}
    if method not in cost:
        assert rule.solver == Adaptive(method, 3e-3, 3e-3)
        return
    assert rule.solver.n_steps == cost[method]
    for _ in range(400):
        rule.propose(lambda one, other: Evidence(0.0, cost_of(one), cost_of(other)), Progress(1, 9))
    assert rule.solver.n_steps * rule.solver.tableau.advancing_stages == 8


@pytest.mark.parametrize("penalty", [None, 0.0, 0.5])
def test_with_a_penalty_the_first_solver_is_accurate_for_the_new_model(
    tmp_path: Path, penalty: float | None
) -> None:
    """The pendulum moves for ten seconds: two or three steps are far too few."""
    _, trainer = build_run(
        opt(
            data_dir=str(tmp_path), dataset="pendulum", network="linear_odenet", act="tanh",
            solver="rk4", use_step_adaption_algo=True, penalty=penalty, **FIDELITY,
        ),
        ALONE,
    )  # fmt: skip
    state = trainer.state
    if penalty == 0:
        assert (state.solver.n_steps, state.evaluations) == (2, 0.0)
        return
    assert state.solver == state.rule.solver
    assert state.solver.n_steps > 8
    tried = [3, 6, 12, 24]
    tried = [n for n in tried if n <= state.solver.n_steps] + [state.solver.n_steps]
    assert state.evaluations >= 64 * 4 * 4 * sum(set(tried)), "each try costs 4 N and 12 N"


def cost_of(solver: FixedStep | Adaptive | Extrapolated) -> float:
    """Field evaluations; dopri5 is never cheaper."""
    if isinstance(solver, Extrapolated):
        return cost_of(solver.solver) + cost_of(solver.finer)
    if isinstance(solver, Adaptive):
        return 100.0
    return float(solver.n_steps * solver.tableau.advancing_stages)


def test_the_wanted_fidelity_reaches_target_and_certificate(tmp_path: Path) -> None:
    for fidelity, finer in ((0.01, True), (0.1, False)):
        rule, _ = rule_of(tmp_path, solver="rk4", fidelity=fidelity, penalty=0, **FIDELITY)
        before = rule.solver
        assert (
            rule.propose(lambda one, other: Evidence(0.05, 1, 2), Progress(50, 100)) != before
        ) == finer
        assert rule.signal.target == pytest.approx(0.7 * fidelity)


def test_what_is_kept_from_training(tmp_path: Path) -> None:
    for niter, size in ((3000, 2400), (500, 500), (10_000, 8000), (20_000, 8000)):
        options = opt(
            data_dir=str(tmp_path), use_step_adaption_algo=True, solver="rk4", fidelity=0.02,
            niter=niter, **FIDELITY,
        )  # fmt: skip
        _, trainer = build_run(options, ALONE)
        assert trainer.checks.unseen is not None
        assert trainer.checks.unseen.size == size
    assert (trainer.checks.on, trainer.checks.interval) == ("held_out", options.adaption_interval)
    assert len(trainer.dataset.train) == 2000
    _, paper = build_run(opt(data_dir=str(tmp_path), use_step_adaption_algo=True), ALONE)
    assert paper.checks.unseen is None
    assert paper.checks.on == "batch"
