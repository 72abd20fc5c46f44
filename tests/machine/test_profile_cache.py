"""Profiles and histories as JSON: what was written is read, and anything else is refused."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.common.errors import SettingError
from speccascade_local.decoding.history import AcceptanceHistory
from speccascade_local.decoding.profile import SIZES, Profile, Speed
from speccascade_local.machine.profile_cache import read_histories, read_profile

seconds = st.floats(1e-5, 1e3)
rows = st.tuples(*[seconds] * len(SIZES))


@st.composite
def speeds(draw: st.DrawFn) -> Speed:
    depths = sorted(draw(st.sets(st.integers(0, 2000), min_size=1, max_size=2)))
    threads = st.integers(1, 64)
    return Speed(draw(threads), draw(threads), tuple(depths), tuple(draw(rows) for _ in depths), draw(seconds))


profiles = st.builds(
    Profile, speeds(), speeds(), st.floats(0, 1), st.dictionaries(st.text(max_size=9), st.text(max_size=9) | st.integers(-1, 2**40)),
    block_s=st.floats(0, 1), draft_s=st.floats(0, 1),
)  # fmt: skip


@given(profiles)
def test_a_profile_that_was_written_is_read(profile):
    assert read_profile(json.loads(json.dumps(profile.as_dict()))) == read_profile(profile.as_dict()) == profile


ROW = [1.0] * 17
SPEED = {"threads": 2, "batch_threads": 2, "depths": [32, 512], "seconds": [ROW, ROW], "prompt_s": 0.25}
PROFILE = {"expert": SPEED, "drafter": SPEED, "overlap": 0.5, "key": {"cpu": "x", "format": 1}, "block_s": 0.0, "draft_s": 0.0}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("expert",), None),
        (("expert", "threads"), 0),
        (("expert", "threads"), True),
        (("expert", "batch_threads"), 2.5),
        (("expert", "depths"), [512, 32]),
        (("expert", "depths"), 32),
        (("drafter", "depths"), []),
        (("drafter", "seconds"), [1.0]),
        (("drafter", "seconds"), [ROW]),
        (("drafter", "seconds"), [ROW, [*ROW[1:], math.nan]]),
        (("drafter", "seconds"), [ROW, [*ROW[1:], "1"]]),
        (("drafter", "seconds"), [ROW, [*ROW[1:], 10**400]]),
        (("drafter", "prompt_s"), None),
        (("drafter", "more"), 1),
        (("overlap",), 1.5),
        (("overlap",), "0"),
        (("draft_s",), math.nan),
        (("key",), []),
        (("key",), {"cpu": 1.5}),
        (("key",), {"cpu": True}),
        (("more",), 1),
    ],
)
def test_a_profile_with_one_wrong_entry_is_refused(path, value):
    data = copy.deepcopy(PROFILE)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=r"."):
        read_profile(data)


@pytest.mark.parametrize(
    "data",
    [None, 1, "text", [], {}, {"expert": {}}, {1: {2}}, {name: value for name, value in PROFILE.items() if name != "block_s"}],
    ids=str,
)
def test_what_is_no_whole_profile_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        read_profile(data)


def test_the_profile_that_these_tests_change_is_one():
    assert json.loads(json.dumps(read_profile(PROFILE).as_dict())) == PROFILE


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcomes": [[1, 2, 3]]},
        {"outcomes": [[1.0, True]] * 257},
        {"guesses": 3},
        {"curve": [1]},
        {"tokens": "many"},
        {"seconds": math.nan},
        {"other": 1},
        {"guesses": {"right": [1], "asked": [1]}},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_a_history_with_one_wrong_entry_is_refused(wrong):
    good = AcceptanceHistory().as_dict()
    assert read_histories({"strict": good}) == {"strict": AcceptanceHistory()}
    for stored in (good | wrong, {}, None):
        with pytest.raises(SettingError, match=r"learnt is not what Runtime\.learnt\(\) gives"):
            read_histories({"strict": stored})
