"""Calibrated routing: the fit, the threshold, the file, the picture."""

from __future__ import annotations

import json
import re
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from calibration import simulated
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from speccascade_local.bench.calibrate import FEWEST_ANSWERS, Outcome, fit, require_ready
from speccascade_local.bench.charts import save_reliability_diagram
from speccascade_local.bench.intervals import wilson
from speccascade_local.common.errors import CatalogError, SettingError
from speccascade_local.common.files import fingerprint
from speccascade_local.rules.calibrated import Calibrated, Calibration
from speccascade_local.rules.registry import parse
from speccascade_local.rules.routes import Signals

#: As it comes about, 1 minus a mean margin: then the one can be computed from the other and back.
uncertainties = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1)).map(lambda margin: 1 - margin)
outcomes = st.lists(
    st.builds(Outcome, uncertainties, st.booleans(), st.booleans()),
    min_size=FEWEST_ANSWERS,
    max_size=FEWEST_ANSWERS + 30,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With two files that stand for models."""
    path = tmp_path_factory.mktemp("pair")
    for name in ("drafter", "expert", "other"):
        (path / f"{name}.gguf").write_bytes(name.encode() * 1000)
    return path


@pytest.fixture(scope="module")
def pair(folder) -> dict[str, Path]:
    return {role: folder / f"{role}.gguf" for role in ("drafter", "expert")}


def plausible(n: int = 200, seed: int = 0) -> list[Outcome]:
    """The drafter is wrong as often as it is unsure; the expert nearly never."""
    rng = np.random.default_rng(seed)
    return [Outcome(float(u), bool(rng.random() > u), bool(rng.random() > 0.04)) for u in rng.beta(0.6, 1.2, size=n)]


@pytest.fixture(scope="module")
def calibration(pair) -> Calibration:
    return fit(plausible(), **pair)


def margins(uncertainty: float) -> Signals:
    """Signals of an answer of one token."""
    return Signals(np.zeros(1), np.array([1 - uncertainty]))


def thirds(found: list[Outcome], seed: int) -> list[list[Outcome]]:
    """The split as it is documented: a shuffle with the seed, then a third to fit, one to choose by and one to measure."""
    order = np.random.default_rng(seed).permutation(len(found))
    return [[found[i] for i in part] for part in np.array_split(order, 3)]


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


# --------------------------------------------------------------------------- the fit


@given(outcomes, st.integers(0, 3))
def test_the_fit_never_decreases_and_stays_a_probability(pair, found, seed):
    calibration = fit(found, **pair, seed=seed)
    errors = [calibration.error_at(u) for u in np.linspace(-0.5, 1.5, 101)]
    assert errors == sorted(errors)
    assert 0 <= errors[0] <= errors[-1] <= 1


@given(outcomes, st.integers(0, 3))
def test_the_fit_is_the_monotone_curve_that_is_closest_to_the_observed_errors(pair, found, seed):
    """Against the min-max formula of isotonic regression, at the uncertainties of the fitted third."""
    fitted, _, _ = thirds(found, seed)
    levels = sorted({row.uncertainty for row in fitted})
    assume(all(b - a > 1e-6 for a, b in pairwise(levels)))
    wrong = [[not row.drafter_right for row in fitted if row.uncertainty == level] for level in levels]
    calibration = fit(found, **pair, seed=seed)
    for i, level in enumerate(levels):
        means = [[share(list(chain(*wrong[a : b + 1]))) for b in range(i, len(levels))] for a in range(i + 1)]
        assert calibration.error_at(level) == pytest.approx(max(map(min, means)), abs=1e-6)


@given(outcomes, st.one_of(st.none(), st.floats(0, 1)), st.integers(0, 3))
def test_the_threshold_is_the_largest_whose_cascade_reaches_the_target_on_the_second_third(pair, folder, found, target, seed):
    """By trying them all, and what it says through the route as it is used, from the saved file, on the last third."""
    fitted, choosing, measuring = thirds(found, seed)
    wanted = share([row.expert_right for row in choosing]) if target is None else target
    curve = fit(found, **pair, target=0.0, seed=seed)

    def accuracy(threshold: float) -> float:
        return share([row.drafter_right if curve.error_at(row.uncertainty) <= threshold else row.expert_right for row in choosing])

    candidates = [-1.0, 1.0, *(curve.error_at(row.uncertainty) for row in choosing)]
    reaching = [threshold for threshold in candidates if accuracy(threshold) >= wanted]
    if not reaching:
        with pytest.raises(SettingError, match="no threshold reaches"):
            fit(found, **pair, target=target, seed=seed)
        return
    calibration = fit(found, **pair, target=target, seed=seed)
    assert calibration.threshold == max(reaching)
    assert calibration.target_accuracy == wanted
    assert calibration.expert_accuracy == share([row.expert_right for row in measuring])
    assert calibration.drafter_accuracy == share([row.drafter_right for row in measuring])
    assert (calibration.calibrated_on, calibration.chosen_on) == (len(fitted), len(choosing))
    assert calibration.validation == [(curve.error_at(row.uncertainty), not row.drafter_right) for row in measuring]
    calibration.save(folder / "tried.json")
    route = Calibrated(str(folder / "tried.json"))
    kept = [route.score(margins(row.uncertainty)) >= route.threshold for row in measuring]
    assert share(kept) == calibration.kept
    assert share([row.drafter_right if k else row.expert_right for k, row in zip(kept, measuring)]) == calibration.accuracy
    low, high = calibration.accuracy_interval
    assert 0 <= low <= calibration.accuracy <= high <= 1
    assert high - low > 0.1, "a share of 20 to 30 answers is never sure"


@pytest.mark.slow
@pytest.mark.parametrize(("n", "trials"), [(60, 4000), (200, 1500), (474, 600)])
def test_the_accuracy_and_the_share_that_it_says_are_what_new_questions_get(n, trials):
    found = simulated(n, None, trials)
    assert abs(found.bias) <= 0.3
    assert abs(found.kept_bias) <= 1
    assert found.covered >= 93


def test_errors_too_small_for_a_difference_from_1_count_as_none_in_the_fit_and_in_the_route(calibration, tmp_path):
    tiny = calibration.model_copy(update={"uncertainty": [0.0, 1.0], "error": [0.0, 1e-17], "threshold": 0.0})
    tiny.save(tmp_path / "tiny.json")
    route = Calibrated(str(tmp_path / "tiny.json"))
    for uncertainty in (0.0, 0.5, 1.0):
        assert (tiny.error_at(uncertainty) <= tiny.threshold) == (route.score(margins(uncertainty)) >= route.threshold)


def test_the_same_seed_splits_alike_and_another_one_otherwise(pair, calibration):
    assert fit(plausible(), **pair) == calibration
    assert fit(plausible(), **pair, seed=1).validation != calibration.validation


@pytest.mark.parametrize(
    ("found", "target", "message"),
    [
        ([Outcome(0.1, True, True)] * (FEWEST_ANSWERS - 1), None, "59 judged answers are too few.*at least 60"),
        ([Outcome(0.1, True, True)] * 20, None, "20 judged answers are too few"),
        ([], None, "0 judged answers are too few"),
        ([Outcome(0.1, False, False)] * 60, 0.5, r"no threshold reaches an accuracy of 0\.500 on the 20 .*expert alone is right in 0\.000"),
        ([Outcome(0.1, True, True)] * 60, 1.5, "target accuracy is 1.5; it must be between 0 and 1"),
        ([Outcome(0.1, True, True)] * 60, float("nan"), "target accuracy is nan"),
        ([Outcome(0.1, True, True)] * 60, "high", "target accuracy is 'high'"),
    ],
    ids=["too few", "twenty", "none", "unreachable", "above 1", "nan", "text"],
)
def test_what_cannot_be_calibrated_is_refused_with_the_numbers(pair, found, target, message):
    with pytest.raises(SettingError, match=message):
        fit(found, **pair, target=target)


def test_an_expert_that_is_never_better_leaves_everything_to_the_drafter_and_the_other_way_round(pair):
    easy, hopeless = ([Outcome(u, right, not right) for u in np.linspace(0, 1, 90).tolist()] for right in (True, False))
    assert (fit(easy, **pair, target=1.0).threshold, fit(easy, **pair, target=1.0).kept) == (1.0, 1.0)
    assert fit(hopeless, **pair, target=1.0).kept == 0


# --------------------------------------------------------------------------- the file


@given(outcomes, st.integers(0, 3))
def test_a_saved_calibration_is_read_back_equal(pair, folder, found, seed):
    calibration = fit(found, **pair, target=0.0, seed=seed)
    calibration.save(folder / "saved.json")
    assert Calibration.load(folder / "saved.json") == calibration


def test_a_calibration_is_a_rule_by_its_path(calibration, tmp_path, monkeypatch):
    calibration.save(tmp_path / "cal.json")
    rule = parse(f"calibrated:{tmp_path / 'cal.json'}")
    assert isinstance(rule, Calibrated)
    assert (rule.calibration, rule.threshold) == (calibration, 1 - calibration.threshold)
    assert parse(str(rule)) == rule
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("calibrated:~/cal.json").calibration == calibration
    monkeypatch.chdir(tmp_path)
    assert parse("calibrated:cal.json").calibration == calibration


def test_a_file_of_an_earlier_version_routes_as_it_did(calibration, tmp_path):
    old = {key: value for key, value in calibration.model_dump().items() if key not in ("accuracy_interval", "chosen_on")}
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    route, now = Calibrated(str(tmp_path / "old.json")), calibration
    assert (route.calibration.threshold, route.calibration.accuracy_interval) == (now.threshold, None)
    assert [route.calibration.error_at(u) for u in (0.0, 0.3, 1.0)] == [now.error_at(u) for u in (0.0, 0.3, 1.0)]


def changed(**fields):
    return lambda data: json.dumps(data | fields)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: json.dumps(data)[:-9], "the whole file: invalid JSON"),
        (lambda data: "", "the whole file: invalid JSON"),
        (lambda data: "[]", "the whole file: this must be a mapping"),
        (changed(nosuch=1), "nosuch: this key is not known"),
        (lambda data: json.dumps({key: value for key, value in data.items() if key != "threshold"}), "threshold: this key is missing"),
        (changed(threshold="0.3"), "threshold: input should be a valid number"),
        (changed(threshold=float("nan")), "threshold: input should be"),
        (changed(threshold=1.5), "threshold: input should be less than or equal to 1"),
        (changed(uncertainty=[0.5, 0.1], error=[0.0, 1.0]), "the whole file: uncertainty and error must not decrease"),
        (changed(uncertainty=[0.1, 0.5], error=[1.0, 0.0]), "the whole file: uncertainty and error must not decrease"),
        (changed(uncertainty=[0.1, 0.5], error=[0.0]), "the same number of knots"),
        (changed(uncertainty=[], error=[]), "at least one"),
        (changed(uncertainty=[0.1, 1.5], error=[0.0, 1.0]), r"uncertainty\.1: input should be less than or equal to 1"),
        (changed(validation=[]), "validation: list should have at least 1 item"),
    ],
)
def test_a_broken_calibration_is_refused_with_its_file_and_key(calibration, tmp_path, spoil, message):
    path = tmp_path / "cal.json"
    path.write_text(spoil(calibration.model_dump()), encoding="utf-8")
    for load in (Calibration.load, lambda path: parse(f"calibrated:{path}")):
        with pytest.raises(CatalogError, match=re.escape(str(path)) + ": not a calibration: .*" + message) as caught:
            load(path)
        assert "make a new one with 'speccascade calibrate'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("uncertainty", [7] * 1_000_000, "uncertainty.0: input should be less than or equal to 1"),
        ("uncertainty", [0.5] * 300_000, "uncertainty: list should have at most 200000 items"),
        ("validation", [7] * 1_000_000, "validation.0: "),
        ("drafter", 7, "drafter: "),
        ("drafter", "a" * (17 << 20), "larger than 16 MiB"),
    ],
)
def test_a_calibration_of_ill_will_is_refused_in_few_words(calibration, tmp_path, name, value, message):
    path = tmp_path / "cal.json"
    path.write_text(json.dumps(calibration.model_dump() | {name: value}))
    tracemalloc.start()
    with pytest.raises(CatalogError) as refused:
        Calibration.load(path)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 400 + len(str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_a_calibration_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / "cal.json").write_text("[" * 100_000)
    with pytest.raises(CatalogError, match="not a calibration"):
        Calibration.load(tmp_path / "cal.json")


def test_a_file_that_cannot_be_read_or_written_is_named(calibration, tmp_path):
    (tmp_path / "latin").write_bytes(b"\xff")
    for name, message in (
        ("none", "cannot be read .*No such file"),
        (".", "cannot be read .*directory"),
        ("latin", "not UTF-8 text"),
        ("a\0b", "cannot be read .*null byte"),
    ):
        with pytest.raises(CatalogError, match=re.escape(str(tmp_path / name)) + f": {message}"):
            Calibration.load(tmp_path / name)
    with pytest.raises(CatalogError, match=re.escape(str(tmp_path / "no" / "cal.json")) + ": cannot be written"):
        calibration.save(tmp_path / "no" / "cal.json")


# --------------------------------------------------------------------------- whose calibration


def test_a_calibration_of_another_pair_is_refused_and_says_which_model_is_another(calibration, folder, pair, tmp_path):
    calibration.save(tmp_path / "cal.json")
    rule = Calibrated(str(tmp_path / "cal.json"))
    rule.check_pair(**pair)
    for role in ("drafter", "expert"):
        with pytest.raises(SettingError, match=rf"cal\.json: this calibration is for another pair: its {role} is not other\.gguf"):
            rule.check_pair(**pair | {role: folder / "other.gguf"})
    with pytest.raises(SettingError, match="its drafter is not"):
        rule.check_pair(drafter=pair["expert"], expert=pair["drafter"])
    with pytest.raises(SettingError, match=r"gone\.gguf: cannot be read"):
        rule.check_pair(**pair | {"expert": folder / "gone.gguf"})


def test_a_runtime_refuses_a_calibration_of_another_pair_before_it_evaluates_anything(demo, calibration, tmp_path):
    calibration.save(tmp_path / "cal.json")
    demo.reset()
    with pytest.raises(SettingError, match="for another pair"):
        demo.stream([1, 2], rule=f"calibrated:{tmp_path / 'cal.json'}")
    assert demo._drafter.tokens == []


def test_a_fingerprint_depends_on_size_beginning_and_end(tmp_path):
    mib = 1 << 20
    contents = {
        "empty": b"",
        "short": b"x",
        "long": bytes(3 * mib),
        "longer": bytes(3 * mib + 1),
        "other first byte": b"x" + bytes(3 * mib - 1),
        "other end of the beginning": bytes(mib - 1) + b"x" + bytes(2 * mib),
        "other beginning of the end": bytes(2 * mib) + b"x" + bytes(mib - 1),
        "other last byte": bytes(3 * mib - 1) + b"x",
    }
    found = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found[name] = fingerprint(tmp_path / name)
    assert len(set(found.values())) == len(contents)
    (tmp_path / "copy").write_bytes(contents["long"])
    assert fingerprint(tmp_path / "copy") == found["long"]


# --------------------------------------------------------------------------- the extra, and what is refused early


def test_without_scikit_learn_fitting_is_refused_with_the_extra_and_using_works(pair, calibration, tmp_path, monkeypatch):
    calibration.save(tmp_path / "cal.json")
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    for attempt in (lambda: fit(plausible(), **pair), lambda: require_ready(60, None, tmp_path / "out.json", None)):
        with pytest.raises(SettingError, match=r"needs scikit-learn; .*pip install 'speccascade-local\[calibrate\]'"):
            attempt()
    assert parse(f"calibrated:{tmp_path / 'cal.json'}").score(margins(0.1)) == 1 - calibration.error_at(0.1)


def test_without_matplotlib_drawing_is_refused_with_the_extra(calibration, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    require_ready(60, None, tmp_path / "out.json", None)
    for attempt in (
        lambda: save_reliability_diagram(tmp_path / "a.png", calibration),
        lambda: require_ready(60, None, tmp_path / "out.json", tmp_path / "a.png"),
    ):
        with pytest.raises(SettingError, match=r"needs matplotlib; .*pip install 'speccascade-local\[calibrate\]'"):
            attempt()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": 59}, "59 judged answers are too few"),
        ({"target": 2}, "target accuracy is 2"),
        ({"picture": "x.jpg"}, r"x\.jpg.*must end with \.png or \.svg"),
        ({"picture": "none/x.png"}, r"none/x\.png: cannot be written \(its folder does not exist"),
        ({"out": "none/x.json"}, r"none/x\.json: cannot be written \(its folder does not exist"),
        ({"out": "."}, r"cannot be written \(it is a folder"),
    ],
    ids=str,
)
def test_what_would_fail_after_all_questions_were_asked_can_be_refused_before(tmp_path, change, message):
    settings = {"answers": 60, "target": None, "out": "cal.json", "picture": "cal.svg"}

    def attempt(answers, target, out, picture):
        require_ready(answers, target, tmp_path / out, tmp_path / picture)

    attempt(**settings)
    with pytest.raises((SettingError, CatalogError), match=message):
        attempt(**settings | change)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- the picture


def test_the_diagram_is_a_png_or_an_svg_and_the_same_every_time(calibration, tmp_path):
    for name in ("a.png", "b.png", "a.svg", "b.svg"):
        save_reliability_diagram(tmp_path / name, calibration)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
        assert image.format == "PNG"
        assert min(image.size) > 600
    assert ET.parse(tmp_path / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


@pytest.mark.parametrize(
    ("found", "target"),
    [
        ([Outcome(0.2, True, True)] * 60, None),
        ([Outcome(0.2, False, True)] * 60, None),
        ([Outcome(u, u < 0.5, True) for u in np.linspace(0, 1, 60).tolist()], 1.0),
        (plausible(2_000), 0.9),
        (plausible(60), 0.0),
    ],
    ids=["all right", "all wrong", "a sharp step", "many", "few"],
)
def test_any_calibration_can_be_drawn(pair, tmp_path, found, target):
    save_reliability_diagram(tmp_path / "a.svg", fit(found, **pair, target=target))
    assert (tmp_path / "a.svg").stat().st_size > 5_000


def test_a_picture_that_cannot_be_made_is_refused_by_name(calibration, tmp_path):
    with pytest.raises(SettingError, match=r"'a\.jpg'; its name must end with \.png or \.svg"):
        save_reliability_diagram(tmp_path / "a.jpg", calibration)
    with pytest.raises(CatalogError, match=r"a\.png: cannot be written"):
        save_reliability_diagram(tmp_path / "none" / "a.png", calibration)


def test_a_wilson_interval_is_the_one_of_the_textbook():
    """10 of 20: 0.299 to 0.701 (Agresti & Coull 1998); none of 10: 0 to 0.278."""
    assert wilson(10, 20) == pytest.approx((0.5, 0.299, 0.701), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0, 0, 0.278), abs=1e-3)
