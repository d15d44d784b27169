"""A plan: a base of options and axes that vary, as named runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from trueode.catalog import METHODS
from trueode.data import identity
from trueode.errors import OptionError, UsageError, nearest
from trueode.options import RESULT, Options, canonical, layered, merge
from trueode.options.yaml_text import read_yaml

KEYS = ("name", "base", "axes", "grids")
GRID_KEYS = ("name", "base", "axes")
OURS = ("name", "output_dir", "phase", "split", "resume", "overwrite")
"""Options that the sweep chooses."""
MOST = 20_000  # runs of a plan, and values of an axis
MOST_STEPS = 10**6  # of a solve: more are probably a mistake
LONGEST = 120  # characters of a name without its hash: file systems allow 255 bytes
HASH = 12


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        name: of its directory: readable, with the hash at its end.
        hash: of everything that the result depends on, options and data. It identifies the run.
        options: complete; ``name`` and ``output_dir`` have no meaning here.
        grid: name of its grid.
        axes: its values on the axes of its grid.
    """

    name: str
    hash: str
    options: Options
    grid: str
    axes: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The runs of a plan and their source.

    Attributes:
        name: of the plan, its table and its file.
        axes: names of all axes, in their order.
        runs: each once, even if grids overlap.
        source: the plan as plain values, from which it can be made again.
    """

    name: str
    axes: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    source: Mapping[str, Any]


def read_plan(
    path: str | Path, overrides: Mapping[str, Any] | None = None, cache: Path | None = None
) -> Plan:
    """The plan in a YAML file; see `make_plan`.

    Raises:
        UsageError: the file cannot be read, or its plan is impossible.
    """
    path = Path(path)
    source = read_yaml(path, "The plan")
    if not source:
        raise UsageError(f"The plan {path} is empty: it must hold `base:` and `axes:`.")
    try:
        return make_plan({"name": path.stem, **source}, overrides, cache)
    except UsageError as failure:
        raise type(failure)(f"In the plan {path}: {failure}") from None


def make_plan(
    source: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    identify: Callable[..., Mapping[str, Any]] = identity,
) -> Plan:
    """Make the runs of a plan.

    Args:
        source: ``name``; ``base``: options; ``axes``: a list of values for each option that varies;
            ``grids``: a list of ``{name, base, axes}``, each of which extends the base and axes
            above. Without ``grids`` there is one grid.
        overrides: options that override all bases; an axis of the same name gets only this value.
        cache: a file that stores hashes of data.
        identify: returns the identity of a data set, like ``trueode.data.identity``.

    Raises:
        UsageError: a key or an option is unknown or impossible; the message names the nearest key.
        DataError: the data of a run is missing.
    """
    _check_keys(source, KEYS, "the plan")
    name = str(source.get("name", "sweep"))
    if not name or name.startswith(".") or re.search(r"[/\\\0]", name):
        raise UsageError(f"The plan's name {name!r} must be the name of a folder, without / or \\.")
    top_base, top_axes = _base(source, "the plan"), _axes(source, "the plan")
    grids = source.get("grids", [{}])
    if not isinstance(grids, list) or not grids:
        raise UsageError("`grids:` of the plan must be a list of `{name, base, axes}`.")
    made: list[tuple[str, dict[str, Any], dict[str, list[Any]]]] = []
    names: dict[str, None] = dict.fromkeys(top_axes)
    above = canonical(overrides or {}, "the flags")
    for number, grid in enumerate(grids):
        where = f"grid {number + 1} of the plan"
        if not isinstance(grid, dict):
            raise UsageError(
                "`grids:` of the plan must be a list of `{name, base, axes}`, but item "
                f"{number + 1} is something else."
            )
        _check_keys(grid, GRID_KEYS, where)
        base, axes = layered(top_base, _base(grid, where)), {**top_axes, **_axes(grid, where)}
        axes |= {option: [value] for option, value in above.items() if option in axes}
        names |= dict.fromkeys(axes)
        made.append((str(grid.get("name", "")), layered(base, above), axes))
    if (planned := sum(prod(map(len, axes.values())) for _, _, axes in made)) > MOST:
        raise OptionError(
            f"The axes of the plan make {planned} runs, but at most {MOST} are possible: leave out "
            "values, or make several plans, which may share one --output_dir."
        )
    runs: dict[str, PlannedRun] = {}
    data = _Identities(identify, cache)
    for label, base, axes in made:
        for point in _points(axes):
            run = _run(label, base, point, data)
            runs.setdefault(run.hash, run)
    return Plan(name, tuple(names), tuple(runs.values()), _with(source, name, above))


def _with(source: Mapping[str, Any], name: str, above: Mapping[str, Any]) -> dict[str, Any]:
    """The plan that gives the same runs without overrides."""

    def fixed(part: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in part.items() if key in ("base", "axes") and value}
        if "axes" in kept:
            kept["axes"] = {
                option: [above[option]] if option in above else values
                for option, values in kept["axes"].items()
            }
        return kept

    made = {"name": name, **fixed(source)}
    made["base"] = layered(made.get("base", {}), above)
    if "grids" in source:
        made["grids"] = []
        for grid in source["grids"]:
            own = {key: grid[key] for key in ("name",) if key in grid} | fixed(grid)
            if "base" in own:
                own["base"] = {
                    **own["base"],
                    **{key: above[key] for key in own["base"] if key in above},
                }
            made["grids"].append(own)
    return made


def _check_keys(values: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise UsageError(
                f"Unknown key {key!r} in {where}: known are {', '.join(known)}.{hint} "
                "Options go under `base:` or `axes:`."
            )


def _base(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = part.get("base") or {}
    if not isinstance(values, dict):
        raise UsageError(f"`base:` of {where} must hold lines `option: value`.")
    found = canonical(values, f"base of {where}")
    _refuse_ours(found, where)
    return found


def _axes(part: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    values = part.get("axes") or {}
    if not isinstance(values, dict):
        raise UsageError(f"`axes:` of {where} must hold lines `option: [value, …]`.")
    for option, points in values.items():
        if not isinstance(points, list) or not points:
            raise UsageError(
                f"The axis {option} of {where} must be a list of values, as `{option}: [1, 2]`."
            )
        if len(points) > MOST:
            raise OptionError(
                f"The axis {option} of {where} has {len(points)} values, but at most {MOST} are "
                "possible."
            )
        if len({_hashable(point) for point in points}) < len(points):
            raise UsageError(f"The axis {option} of {where} has a value twice.")
    found = canonical(values, f"axes of {where}")
    _refuse_ours(found, where)
    return found


def _hashable(value: Any) -> Any:
    """A hashable value that is equal for equal values of an axis."""
    return (
        tuple(map(_hashable, value))
        if isinstance(value, list)
        else repr(value)
        if isinstance(value, dict | set)
        else value
    )


def _refuse_ours(options: Mapping[str, Any], where: str) -> None:
    for option in OURS:
        if option in options:
            raise UsageError(
                f"{option} cannot be given in {where}: the sweep chooses it for each run."
            )


def _points(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


class _Identities:
    """Identities of data, computed once for each folder."""

    def __init__(self, identify: Callable[..., Mapping[str, Any]], cache: Path | None) -> None:
        self._identify, self._cache = identify, cache
        self._known: dict[tuple[str, str], Any] = {}

    def of(self, options: Options) -> Any:
        key = (options.dataset, options.data_dir)
        if key not in self._known:
            self._known[key] = self._identify(*key, cache=self._cache)
        return self._known[key]


def _run(
    grid: str, base: Mapping[str, Any], point: Mapping[str, Any], data: _Identities
) -> PlannedRun:
    readable = (
        ",".join(filter(None, [grid, *(f"{name}={told(value)}" for name, value in point.items())]))
        or "run"
    )
    try:
        options = merge(base, point)
        _refuse_endless(options)
    except OptionError as failure:
        raise OptionError(f"The run {readable} of the plan is impossible. {failure}") from None
    digest = run_hash(options, data.of(options))
    name = re.sub(r"[^\w.=+,-]+", "_", readable)[:LONGEST]
    return PlannedRun(
        f"{name}-{digest}", digest, options, grid, {key: getattr(options, key) for key in point}
    )


def _refuse_endless(options: Options) -> None:
    """Check that solves end in reasonable time, also with the finest other solver."""
    steps = 1.0
    if options.fixed_step and not options.use_step_adaption_algo:
        length = options.t_end or 1.0
        steps = max(length / options.training_step(length), 1.0)
    fixed = any(METHODS[name].kind == "fixed" for name in options.test_solver_list)
    finest = (
        min(1.0, *options.test_factor_list) if options.evaluate_with_dif_solver and fixed else 1.0
    )
    if steps > MOST_STEPS * finest:
        raise OptionError(
            f"Solves of {steps:.4g} steps, divided by the factor {finest:g} of --test_factor_list, "
            f"take more than {MOST_STEPS} steps: take larger steps or factors."
        )


def told(value: Any) -> str:
    """The value of an option as one word."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(told, value))
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def run_hash(options: Options, data: Mapping[str, Any]) -> str:
    """A hash of everything that a run's result depends on: the data, and the options except name,
    folders, devices and logging.
    """
    values = options.model_dump(mode="json", include=set(RESULT))
    content = json.dumps({"options": values, "data": data}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:HASH]
