"""The cascade's rules and lenience against Google's notebook, whose formulas tests/support/notebook.py has a second time."""

from __future__ import annotations

from functools import partial
from itertools import product

import notebook
import numpy as np
import pytest
from exact import courses
from rules import TEMPERATURES, compared_with_notebook, notebook_alphas, pairs_of_rows

import speccascade_local as sc
from speccascade_local.decoding.verify import Draft, verify
from speccascade_local.rules import registry
from speccascade_local.rules.evidence import Evidence
from speccascade_local.rules.registry import target_probs
from speccascade_local.rules.rule import Decision
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler


def random_rows(n: int, width: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([0.5, 2, 6]) * rng.normal(size=(2, width)) for _ in range(n)]


def log(probs: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log2(probs) * np.log(2)


@pytest.fixture(scope="module")
def demo_rows() -> list[np.ndarray]:
    with sc.load(n_threads=1) as runtime:
        prompts = [runtime.chat_ids([{"role": "user", "content": text}]) for text in ("Who is Ada Lovelace?", "What is 7 * 8?")]
        return list(pairs_of_rows(runtime, prompts, max_tokens=16))


@pytest.mark.parametrize("name", [*notebook.RULES, "lenience"])
def test_targets_decisions_coins_and_residuals_are_the_notebooks_on_random_rows(name):
    found = compared_with_notebook(name, [*random_rows(60, 3), *random_rows(60, 40, 1)], TEMPERATURES)
    compared = len(TEMPERATURES) - (name == "lenience")  # which differs at temperature 0, on purpose
    assert found["comparisons"] == 120 * compared * len(notebook_alphas(name))
    assert found["largest_difference"] < 1e-12
    assert found["other_decisions"] == 0


@pytest.mark.parametrize("name", [*notebook.RULES, "lenience"])
def test_targets_decisions_coins_and_residuals_are_the_notebooks_on_rows_of_two_models(name, demo_rows):
    found = compared_with_notebook(name, demo_rows, TEMPERATURES)
    assert found["largest_difference"] < 1e-12
    assert found["other_decisions"] == 0


@pytest.mark.parametrize("name", notebook.RULES)
def test_a_rule_that_deferred_at_a_tie_would_be_found(name):
    drafter, expert, alpha = TIES[name]
    just_below = target_probs(f"{name}:{alpha - 2**-30}", drafter, expert)[0]
    assert np.abs(just_below - notebook.target(name, alpha, notebook.Place.of(drafter, expert, 1.0))).max() > 0.1


@pytest.mark.parametrize("name", [*notebook.RULES, "lenience"])
def test_a_rule_that_reads_the_wrong_model_is_found(name, monkeypatch):
    wrong = {
        "drafter_doubt": lambda evidence: evidence.expert.plain.doubt,
        "drafter_max": lambda evidence: evidence.expert.plain.max,
        "expert_max": lambda evidence: evidence.drafter.plain.max,
        "drafter_plain": lambda evidence: evidence.expert.plain.probs,
        "expert_plain": lambda evidence: evidence.drafter.plain.probs,
    }
    if name == "lenience":
        wrong = {"drafter_probs": lambda evidence: evidence.expert.probs(evidence.sampler)}
    for attribute, read in wrong.items():
        monkeypatch.setattr(Evidence, attribute, property(read))
    found = compared_with_notebook(name, random_rows(60, 8), TEMPERATURES)
    assert found["largest_difference"] > 0.01
    assert found["other_decisions"] > 0 or name == "lenience"


QUARTERS, HALVES, THIRD = log([0.25] * 4), log([0.5, 0.5, 0, 0]), log([0.5, 0.25, 0.25, 0])
#: Rows whose probabilities are exact in binary, and the alpha at which two sides of the rule's comparison are equal.
TIES = {
    "chow": (QUARTERS, HALVES, 0.75),
    "diff": (QUARTERS, HALVES, 0.25),
    "opt": (QUARTERS, HALVES, 0.5),
    "token_v1": (QUARTERS, HALVES, 0.25),
    "token_v2": (HALVES, THIRD, 0.25),
    "token_v3": (HALVES, THIRD, 0.5),
}


@pytest.mark.parametrize("name", notebook.RULES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_tie_keeps_the_draft_as_in_the_notebook(name, temperature):
    drafter, expert, alpha = TIES[name]
    if name == "opt" and temperature == 0:
        expert, alpha = log([0.25, 0.5, 0.25, 0]), 0.25  # another favorite, so TV is 1
    place = notebook.Place.of(drafter, expert, temperature)
    kept = notebook.trusted(name, alpha, place)
    assert kept[int(np.argmax(drafter))]
    evidence = Evidence(Rows.of(drafter[None]), Rows.of(expert[None]), Sampler(temperature))
    decision = Decision(registry.parse(f"{name}:{alpha}"), evidence)
    possible = np.isfinite(expert)  # the package defers what the expert rules out altogether
    np.testing.assert_array_equal(~decision.deferred[0] & possible, kept & possible)


def test_between_two_equal_favourites_both_take_the_first_at_temperature_0():
    place = notebook.Place.of(HALVES, HALVES, 0.0)
    assert place.small.tolist() == Sampler(0).probs(HALVES).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", [*notebook.RULES, "lenience"])
def test_the_executor_emits_what_the_notebooks_coin_and_residual_give(name):
    """Every outcome of the real rejection test, with its exact probability."""
    for (drafter, expert), temperature, alpha in product(random_rows(4, 4), (0.0, 1.0, 1.7), notebook_alphas(name)[::3]):
        if name == "lenience" and temperature == 0:
            continue  # differs on purpose, see below
        rule, sampler = registry.parse(f"{name}:{alpha}"), Sampler(temperature)
        rows = [Rows.of(row[None]) for row in (drafter, expert)]
        place = notebook.Place.of(drafter, expert, temperature)
        out = np.zeros(4)
        for x in np.flatnonzero(place.small):
            for chance, verdict in courses(partial(verify, Draft([int(x)], [rows[0]]), rows[1], rule, sampler)):
                out[verdict.token_ids[0]] += place.small[x] * chance
        wanted = place.large if name == "lenience" else notebook.target(name, alpha, place)
        kept = notebook.lossy_coin(alpha, place, 1e-300) if name == "lenience" else notebook.coin(wanted, place.small)
        expected = notebook.emitted(kept, notebook.residual(wanted, place.small), place.small)
        np.testing.assert_allclose(out, expected, atol=1e-12)


# ------------------------------------------------------------------------------------ where it differs, on purpose


def test_at_temperature_0_lenience_is_that_of_the_appendix_and_the_notebooks_is_strict():
    lenient = 0
    for (drafter, expert), alpha in product(random_rows(100, 6), (0.0, 0.3, 0.7, 1.0)):
        place = notebook.Place.of(drafter, expert, 0.0)
        kept = notebook.lossy_coin(alpha, place)
        theirs = notebook.emitted(kept, notebook.residual(place.large, place.small), place.small)
        np.testing.assert_array_equal(theirs, place.large)
        drafted = int(drafter.argmax())
        stands = alpha > 0 and place.raw_large[drafted] >= (1 - alpha) * place.raw_large.max()
        ours = target_probs(f"lenience:{alpha}", drafter, expert, temperature=0)[0]
        np.testing.assert_array_equal(ours, place.small if stands else place.large)
        lenient += stands and drafted != int(expert.argmax())
    assert lenient > 20


def test_the_notebook_calls_token_v3_at_0_standard_and_its_formula_like_ours_is_not():
    drafter, expert = log([0.5, 0.25, 0.25]), log([0.5, 0.125, 0.375])
    place = notebook.Place.of(drafter, expert, 1.0)
    theirs = notebook.target("token_v3", 0.0, place)
    np.testing.assert_allclose(target_probs("token_v3:0", drafter, expert)[0], theirs, atol=1e-15)
    assert np.abs(theirs - place.large).max() > 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_notebooks_guard_against_dividing_by_zero_moves_no_more_than_itself_per_token(alpha):
    drafter, expert = np.array([0.0, -30.0, -28.0, -1.0]), np.array([0.0, -60.0, -27.0, -0.5])
    place = notebook.Place.of(drafter, expert, 1.0)
    left = notebook.residual(place.large, place.small)
    one, other = (
        notebook.emitted(notebook.lossy_coin(alpha, place, least), left, place.small) for least in (notebook.LEAST, np.finfo(float).tiny)
    )
    assert 0 < np.abs(one - other).max() < 4 * notebook.LEAST
    np.testing.assert_allclose(target_probs(f"lenience:{alpha}", drafter, expert)[0], other, atol=1e-15)
