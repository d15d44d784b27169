"""The certificate: its error rate, its text, and how attempts share the level."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from trueode.adaptation import Certificate, Certifier
from trueode.adaptation.certificate import ATTEMPTS
from trueode.evaluation import Flips, Status, clopper_pearson, get_task, level_of, samples_for
from trueode.evaluation.likelihood import Likelihood
from trueode.solvers import FixedStep

RK4 = FixedStep("rk4", n_steps=5)


def judge(certifier: Certifier, flips: int, n: int = 1000, **more: Any) -> Certificate | None:
    return certifier.judge(Flips(n, flips, **more), RK4)


@pytest.mark.parametrize("rate", [0.010001, 0.012, 0.02])
@pytest.mark.parametrize("n", [400, 1000])
def test_wrong_models_pass_at_most_five_times_in_a_hundred(rate: float, n: int) -> None:
    """4000 models above the certified 1 % of flips, with up to four attempts each."""
    random, passed = np.random.default_rng(round(1e6 * rate) + n), 0
    for counts in random.binomial(n, rate, (4_000, ATTEMPTS)):
        certifier = Certifier(0.01)
        answers = (judge(certifier, int(count), n) for count in counts)
        passed += any(answer is not None and answer.certified for answer in answers)
    assert passed <= 0.05 * 4_000


def test_good_models_pass() -> None:
    random = np.random.default_rng(0)
    passed = [
        judge(Certifier(0.01), int(count)) is not None
        for count in random.binomial(1000, 0.001, 1000)
    ]
    assert np.mean(passed) > 0.95


def test_attempts_share_five_per_cent() -> None:
    assert sum(level_of(k) for k in range(1, 100)) <= 0.05
    certifier = Certifier(0.01)
    for number in range(1, ATTEMPTS + 1):
        assert certifier.number == number
        assert judge(certifier, 50) is None
    levels = [attempt.level for attempt in certifier.attempts]
    assert levels == [0.025, 0.0125, 0.00625, 0.003125]
    for attempt in certifier.attempts:
        assert attempt.upper == clopper_pearson(50, 1000, 1 - attempt.level)[1]


def test_it_decides_by_the_bound() -> None:
    allowed = max(k for k in range(100) if clopper_pearson(k, 1000, 0.975)[1] <= 0.01)
    certificate = judge(Certifier(0.01), allowed)
    assert certificate is not None
    assert certificate.status is Status.ODE
    assert judge(Certifier(0.01), allowed + 1) is None


def test_it_tells_the_numbers() -> None:
    certifier = Certifier(0.01, source="noise")
    judge(certifier, 50)
    certificate = judge(certifier, 1)
    assert certificate is not None
    for words in (
        "certified: this model is an ODE",
        "rk4 x 5",
        "1 of 1000",
        "(noise)",
        "0.636 %",
        "98.8 %",
        "attempt 2",
    ):
        assert words in certificate.sentence


@pytest.mark.parametrize("fidelity", [0.001, 0.01, 0.2])
def test_too_few_inputs_are_refused_with_the_number_that_is_needed(fidelity: float) -> None:
    needed = samples_for(fidelity, 0.975)
    assert (
        clopper_pearson(0, needed, 0.975)[1] <= fidelity < clopper_pearson(0, needed - 1, 0.975)[1]
    )
    assert Certifier(fidelity).refuse(needed) is None
    refused = Certifier(fidelity).refuse(needed - 1)
    assert refused is not None
    assert (refused.status, refused.decision.needed, refused.attempts) == (
        Status.INCONCLUSIVE,
        needed,
        (),
    )
    assert f"at least {needed} inputs" in refused.sentence
    assert f"there are {needed - 1}" in refused.sentence


@pytest.mark.parametrize("attempt", [1, ATTEMPTS])
@pytest.mark.parametrize("fidelity", [0.002, 0.01, 0.2])
@pytest.mark.parametrize("name", ["classification", "regression", "timeseries", "density"])
def test_an_attempt_needs_the_fewest_inputs_with_which_it_can_pass(
    name: str, fidelity: float, attempt: int
) -> None:
    """With one input less, not even an exact solver passes."""
    task = get_task(name)

    def exact(n: int) -> Flips:
        same = Likelihood(n, *[0.0] * 8, bit=1.0, absolute=0.0) if name == "density" else None
        return Flips(n, likelihood=same)

    def certifier() -> Certifier:
        made = Certifier(fidelity, task=task)
        for _ in range(attempt - 1):
            assert made.judge(Flips(1000, blown_up=900), RK4) is None
        return made

    needed = certifier().needed
    for n, passes in ((needed - 1, False), (needed, True)):
        assert (certifier().refuse(n) is None) is passes
        assert (certifier().judge(exact(n), RK4) is not None) is passes


def test_constant_outputs_are_not_certified() -> None:
    certificate = judge(Certifier(0.01), 0, constant=True)
    assert certificate is not None
    assert certificate.status is Status.INCONCLUSIVE
    assert "absolute=" in certificate.sentence


def test_a_model_that_fails_is_said_to_fail() -> None:
    certifier = Certifier(0.01)
    judge(certifier, 30)
    certificate = certifier.give_up("that was all")
    assert certificate.status is Status.SOLVER_DEPENDENT
    assert "not certified: 30 of 1000" in certificate.sentence
    assert certificate.sentence.endswith("that was all")


def test_unresolved_inputs_prevent_a_certificate_and_are_no_evidence_against_one() -> None:
    certifier = Certifier(0.01)
    assert judge(certifier, 0, unresolved=30, trouble="stiff") is None
    certificate = certifier.give_up("that was all")
    assert certificate.status is Status.INCONCLUSIVE
    assert "30 are unresolved" in certificate.sentence
    assert judge(Certifier(0.01), 0, blown_up=30) is None


def test_plain_values_and_back() -> None:
    certifier = Certifier(0.01)
    judge(certifier, 30, share=0.03)
    certificate = judge(certifier, 0, share=0.0)
    assert certificate is not None
    assert Certificate.from_dict(json.loads(json.dumps(certificate.to_dict()))) == certificate
