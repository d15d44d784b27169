"""Options: one schema, read from defaults, a file and flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.errors import OptionError
from trueode.options import (
    Options,
    describe,
    dump_yaml,
    load_options,
    make_options,
    merge,
    read_file,
)

IMAGES = "--dataset mnist --network odenet"
FIDELITY = "--use_step_adaption_algo true --adaption_algo fidelity"


def load(text: str) -> Options:
    return load_options(text.split())[0]


valid = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text("abcXYZ_-. 'ü#:", min_size=1, max_size=12).filter(
            lambda s: s.strip(". ") == s and s != ""
        ),
        "random_seed": st.integers(0, 2**32 - 1),
        "step_size": st.floats(0.01, 1.0),
        "lr": st.floats(1e-12, 10),
        "tol": st.floats(1e-14, 1.0),
        "use_gpu": st.booleans(),
        "adjoint": st.booleans(),
        "torch_threads": st.none() | st.integers(1, 64),
        "test_solver_list": st.lists(
            st.sampled_from(["euler", "rk4", "dopri5"]), min_size=1, max_size=4
        ),
        "test_factor_list": st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4),
        "niter": st.integers(1, 10**9),
        "act": st.sampled_from(["relu", "gelu"]),
    },
)


@settings(deadline=None)
@given(valid)
def test_a_dump_reads_back_as_the_same_options(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    options = make_options(values)
    path = tmp_path_factory.getbasetemp() / "options.yaml"
    for comments in (True, False):
        path.write_text(dump_yaml(options, comments=comments), encoding="utf-8")
        assert make_options(read_file(path)) == options


@given(valid)
def test_flags_read_as_values(values: dict[str, object]) -> None:
    words = []
    for name, value in values.items():
        words.append(f"--{name}")
        words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    if str(values.get("name", "")).startswith("-"):
        return  # argparse takes it for a flag
    options, given_names = load_options(words)
    assert options == make_options(values)
    assert given_names == frozenset(values)


def test_defaults_are_the_documented_ones() -> None:
    options = Options()
    assert (options.name, options.dataset, options.network) == (
        "neural_ode",
        "concentric_sphere2",
        "simple_odenet",
    )
    assert (options.adjoint, options.autodif, options.tol, options.step_size) == (
        False,
        "naive",
        1e-8,
        1.0,
    )
    assert (options.solver, options.ch_residual_block, options.act) == ("euler", 32, "relu")
    assert (options.init_type, options.init_variance, options.niter, options.batch_size) == (
        "kaiming",
        0.02,
        3000,
        128,
    )
    assert (options.lr, options.optimizer, options.weight_decay) == (1e-4, "adam", 0)
    assert (options.gpu_ids, options.num_threads, options.max_steps) == ("0", 2, 500)
    assert (options.threshold, options.initial_tol, options.adaption_interval) == (0.1, 1e-6, 50)
    assert options.test_factor_list == (0.5, 1, 2)
    assert options.test_solver_list == ("euler", "midpoint", "rk4")
    assert (options.model_checkpoint_freq, options.random_seed, options.adaption_algo) == (
        500,
        0,
        "paper",
    )


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("evaluate_text_acc", "evaluate_test_acc"),
        ("evaluate_with_different_solver", "evaluate_with_dif_solver"),
        ("use_step_adaptation", "use_step_adaption_algo"),
    ],
)
def test_all_spellings_of_the_documents(flag: str, name: str, tmp_path: Path) -> None:
    for spelling in (flag, name):
        assert getattr(load(f"--{spelling} true"), name) is True
        (tmp_path / "o.yaml").write_text(f"{spelling}: true\n")
        assert getattr(load(f"--options_file {tmp_path / 'o.yaml'}"), name) is True


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("--use_gpu", True),
        ("--use_gpu true", True),
        ("--use_gpu false", False),
        ("--use_gpu no", False),
    ],
)
def test_booleans_as_people_write_them(text: str, value: bool) -> None:
    assert load(text).use_gpu is value


def test_adjoint_and_autodif_are_synonyms() -> None:
    for text in (
        "--adjoint true",
        "--adjoint",
        "--autodif adjoint",
        "--adjoint true --autodif adjoint",
    ):
        assert (load(text).autodif, load(text).adjoint) == ("adjoint", True)
    assert load("--adjoint false").autodif == "naive"
    assert load("--adjoint false --autodif checkpoint").autodif == "checkpoint"
    for text in (
        "--adjoint true --autodif checkpoint",
        "--adjoint false --autodif adjoint",
        "--adjoint --autodif naive",
    ):
        with pytest.raises(OptionError, match="contradicts"):
            load(text)


def test_a_step_and_a_number_of_steps_contradict_each_other() -> None:
    """Also if one of them is a default."""
    for text in ("--step_size 1.0 --n_steps 4", "--n_steps 4 --step_size 0.5"):
        with pytest.raises(OptionError, match="contradict"):
            load(f"--solver rk4 {text}")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1e-3\nsolver: rk4\nstep_size: 0.25\nadjoint: true\n")
    assert load(f"--options_file {path}").lr == 1e-3
    options, given_names = load_options(
        ["--options_file", str(path), "--lr", "0.5", "--n_steps", "8", "--autodif", "naive"]
    )
    assert (options.lr, options.solver, options.n_steps, options.step_size) == (0.5, "rk4", 8, 1.0)
    assert (options.autodif, options.adjoint) == ("naive", False)
    assert {"lr", "solver", "n_steps"} <= given_names
    complete = dump_yaml(options)
    path.write_text(complete)
    assert load(f"--options_file {path}") == options


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("--step_sise 0.1", ["--step_sise", "'step_size'"]),
        ("--evaluate_tst_acc true", ["--evaluate_tst_acc", "evaluate_test_acc"]),
        ("--solver rk5", ["--solver", "rk5", "Did you mean 'rk4'"]),
        ("--dataset minst", ["--dataset", "Did you mean 'mnist'"]),
        ("--test_solver_list euler rk44", ["--test_solver_list", "rk44", "Did you mean"]),
        ("--test_factor_list 1 x", ["--test_factor_list", "x", "numbers"]),
        ("--test_factor_list 1 -1", ["--test_factor_list", "positive"]),
        ("--test_factor_list 1 1e-20", ["--test_factor_list", "from 0.0001"]),
        ("--step_size 1e-320", ["--step_size", "between 1e-30 and 1e+30"]),
        ("--weight_decay 1e300", ["--weight_decay", "between 1e-30 and 1e+30"]),
        ("--batch_size 1e19", ["--batch_size", "at most 4294967295"]),
        ("--name a\x1b[31m", ["--name a\\x1b[31m", "text"]),
        ("--step_size -1", ["--step_size", "-1", "above 0"]),
        ("--fidelity 2", ["--fidelity", "2", "of at least 0.0001 and below 1"]),
        ("--fidelity 0.1", ["--fidelity 0.1", "--use_step_adaption_algo true"]),
        (f"{FIDELITY} --n_steps 3", ["--n_steps 3", "leave it out"]),
        (f"{FIDELITY} --solver dopri5 --tol 0.1", ["--tol 0.1", "leave it out"]),
        ("--adaption_algo fidelity", ["--adaption_algo fidelity", "--use_step_adaption_algo true"]),
        ("--solver auto", ["--solver auto", "--adaption_algo fidelity"]),
        (
            "--solver auto --use_step_adaption_algo true",
            ["--solver auto", "--adaption_algo fidelity"],
        ),
        (
            "--use_step_adaption_algo true --check_on noise",
            ["--check_on noise", "--adaption_algo fidelity"],
        ),
        (
            f"{FIDELITY} --threshold 0.2",
            ["--threshold 0.2", "--adaption_algo paper", "leave one of them out"],
        ),
        (
            f"{FIDELITY} --solver dopri5 --initial_tol 0.1",
            ["--initial_tol 0.1", "--adaption_algo paper"],
        ),
        ("--step_size small", ["--step_size", "small", "number"]),
        ("--lr nan", ["--lr", "nan"]),
        ("--lr inf", ["--lr", "inf"]),
        ("--niter 2.5", ["--niter", "2.5", "whole number"]),
        ("--niter 0", ["--niter", "at least 1"]),
        ("--use_gpu perhaps", ["--use_gpu", "perhaps", "true or false"]),
        ("--niter true", ["--niter", "true"]),
        ("--step_size", ["--step_size", "expected one argument"]),
        ("rk4", ["rk4", "--name value"]),
        ("--network odenet", ["--network odenet", "concentric_sphere2", "simple_odenet"]),
        ("--dataset mnist", ["--network simple_odenet", "mnist", "odenet"]),
        ("--use_step_adaptation true --initial_tol 1e-3", ["--initial_tol", "euler", "dopri5"]),
        ("--step_size 0.001", ["--step_size 0.001", "1000 steps", "--max_steps 500"]),
        ("--n_steps 501", ["--n_steps 501", "--max_steps 500"]),
        ("--step_size 2", ["--step_size 2", "interval"]),
        ("--step_size 0.5 --t_end 0.25", ["--step_size 0.5", "0.25"]),
        ("--step_size 0.5 --n_steps 2", ["--n_steps 2", "--step_size 0.5"]),
        ("--solver dopri5 --n_steps 2", ["--n_steps", "dopri5", "--tol"]),
        ("--per_sample true", ["--per_sample", "euler"]),
        ("--precision bf16", ["--precision bf16", "--network odenet", "leave it out"]),
        (
            f"{IMAGES} --precision bf16 --solver dopri5",
            ["--precision bf16", "dopri5", "rounding", "euler"],
        ),
        ("--precision tf32", ["--precision tf32", "--use_gpu true", "float32"]),
        (
            "--precision tf32 --use_gpu true --solver tsit5",
            ["--precision tf32", "tsit5", "rounding", "euler"],
        ),
        (
            f"{IMAGES} --precision bf16 {FIDELITY} --solver auto",
            ["--precision bf16", "auto", "euler"],
        ),
        ("--task regression", ["--task regression", "concentric_sphere2"]),
        ("--downstream none", ["--downstream none", "classification"]),
        ("--dataset moons --network simple_odenet", ["simple_odenet", "linear_odenet"]),
        ("--dataset moons --act relu", ["--act relu", "softplus"]),
        ("--dataset moons --downstream linear", ["--downstream linear", "Leave it out"]),
        ("--dataset rings --upstream_channels 3", ["--upstream_channels 3", "Leave it out"]),
        ("--dataset moons --task classification", ["--task classification", "density"]),
        ("--dataset mnist --network odenet --task density", ["--task density", "moons", "arrays"]),
        ("--dataset moons --n_steps 4 --solver dopri5", ["--n_steps", "dopri5", "--tol"]),
        ("--trace hutchinson", ["--trace hutchinson", "--task density"]),
        ("--dataset moons --trace skilling", ["--trace skilling", "exact, hutchinson"]),
        ("--resume true --overwrite true", ["--resume", "--overwrite"]),
        ("--name a/b", ["--name", "a/b"]),
        ("--options_file /does/not/exist.yaml", ["--options_file", "/does/not/exist.yaml"]),
    ],
)
def test_bad_requests_name_option_value_and_what_is_allowed(text: str, parts: list[str]) -> None:
    with pytest.raises(OptionError) as failure:
        load(text)
    message = str(failure.value)
    assert failure.value.exit_code == 2
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "content", ["step_sise: 1", "- a\n- b", "a: [", "lr: fast", "niter: true", "lr: .nan"]
)
def test_bad_files(content: str, tmp_path: Path) -> None:
    path = tmp_path / "o.yaml"
    path.write_text(content)
    with pytest.raises(OptionError):
        load(f"--options_file {path}")


def test_a_step_that_fits_is_allowed() -> None:
    assert load("--step_size 1").training_step(1.0) == 1.0
    assert load("--n_steps 500").training_step(2.0) == 2.0 / 500
    assert load("--step_size 0.015625 --max_steps 64").step_size == 1 / 64
    assert (
        load("--dataset pendulum --network linear_odenet --step_size 5").step_size == 5
    )  # the data determines the end
    with pytest.raises(OptionError, match="longer than the interval"):
        load("--dataset pendulum --network linear_odenet --step_size 50").check_times(10.0)


def test_densities_have_defaults_of_their_own() -> None:
    usual = load("--dataset moons")
    assert (usual.network, usual.act, usual.time_dependent) == ("linear_odenet", "tanh", True)
    assert usual.model_copy(update={"task": "density"}) == load("--dataset moons --task density")
    assert load("--dataset arrays --task density").network == "linear_odenet"
    assert load("--dataset arrays").network == Options().network
    own = load("--dataset moons --solver euler --n_steps 2 --ch_residual_block 8")
    assert (own.solver, own.n_steps, own.ch_residual_block) == ("euler", 2, 8)
    assert own.training_step(1.0) == 0.5
    assert load(f"--dataset moons {FIDELITY} --solver auto").certifies
    assert make_options(own.model_dump()) == own


def test_whole_numbers_may_be_written_as_1e3() -> None:
    assert load("--niter 1e3").niter == 1000


def test_options_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Options().lr = 1.0


def test_merge_replaces_what_a_file_said_of_the_same_thing() -> None:
    assert merge({"step_size": 0.25}, {"n_steps": 8}).n_steps == 8
    assert merge({"autodif": "checkpoint"}, {"adjoint": True}).autodif == "adjoint"


def test_every_option_is_described() -> None:
    items = describe()
    assert {item.name for item in items} == set(Options.model_fields)
    assert all(item.text and item.expected and item.group for item in items)


def test_flags_give_the_options_again() -> None:
    words = [
        "--use_gpu",
        "true",
        "--gpu_ids",
        "0,1",
        "--test_solver_list",
        "euler",
        "rk4",
        "--tol",
        "1e-3",
        "--torch_threads",
        "none",
        "--name",
        "x",
    ]
    options, given = load_options(words)
    assert load_options(options.flags(given)) == (options, given)


def test_two_spellings_with_two_values_contradict_each_other(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("evaluate_text_acc: true\nevaluate_test_acc: false\n")
    with pytest.raises(OptionError, match="two values"):
        read_file(path)
    path.write_text("evaluate_text_acc: true\nevaluate_test_acc: true\n")
    assert read_file(path) == {"evaluate_test_acc": True}


def test_auto_starts_with_rk4() -> None:
    options = load(f"{FIDELITY} --solver auto")
    assert (options.method, options.fixed_step, options.certifies) == ("rk4", True, True)
    assert not load("--use_step_adaption_algo true").certifies
    assert load(f"{FIDELITY} --solver auto --per_sample true").per_sample, (
        "dopri5 is among the methods"
    )


@pytest.mark.parametrize("name", ["test_solver_list", "test_factor_list"])
def test_an_empty_list_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(OptionError) as failure:
        make_options({name: []})
    assert f"--{name}" in str(failure.value)
