"""What docs/concepts.md says is so: its pictures are drawn from its numbers, and these are what the bundled pair still does."""

from __future__ import annotations

import json
import re

import pytest
from concepts import DATA, DOCS, ask, pictures

PAGE = (DOCS / "concepts.md").read_text(encoding="utf-8")
ANSWERS = json.loads(DATA.read_text(encoding="utf-8"))


def test_the_pictures_are_drawn_from_the_committed_numbers():
    drawn = pictures(ANSWERS)
    assert set(re.findall(r"\(concepts/([\w-]+)\.svg\)", PAGE)) == set(drawn)
    for name, svg in drawn.items():
        assert (DOCS / "concepts" / f"{name}.svg").read_text(encoding="utf-8") == svg, "run: python scripts/docs/concepts.py --draw"


def test_the_bundled_pair_still_answers_so():
    now = ask()
    assert [dial["text"] for dial in now["dials"]] == [dial["text"] for dial in ANSWERS["dials"]]
    assert [dial["expert_calls"] for dial in now["dials"]] == [dial["expert_calls"] for dial in ANSWERS["dials"]]
    for name, block in ANSWERS["blocks"].items():
        again = now["blocks"][name]
        assert (again["draft"], again["last"]) == (block["draft"], block["last"])
        for place, place_again in zip(block["places"], again["places"], strict=True):
            assert place_again["deferred"] == place["deferred"]
            for number in ("q", "p", "p_favourite", "kept"):  # other builds round otherwise
                assert place_again[number] == pytest.approx(place[number], abs=0.02)


def test_what_the_page_says_about_them_is_so():
    first = ANSWERS["blocks"]["block-strict"]["places"][0]
    assert f'gives "{ANSWERS["blocks"]["block-strict"]["draft"][0]}" {first["p"]:.0%}'.replace("%", " %") in " ".join(PAGE.split())
    assert first["kept"] == pytest.approx(first["p"] / first["q"], abs=0.002)  # min(1, p / q)
    assert 0.2 * first["p_favourite"] < first["p"]
    assert len(ANSWERS["blocks"]["block-cascade"]["draft"]) == 5
    calls = {dial["rule"]: dial["expert_calls"] for dial in ANSWERS["dials"] if dial["question"] == ANSWERS["question"]}
    assert f"with {calls['token_v3:0.5']} calls of the expert in place of {calls['strict']}" in PAGE
    right, wrong = ANSWERS["dials"][4]["text"], ANSWERS["dials"][-1]["text"]
    assert ("bushes" in right, "Friday" in right, "flowers" in wrong, "Wednesday" in wrong) == (True,) * 4


def test_the_transcript_is_the_committed_result_file():
    transcript = (DOCS / "results" / "compare.txt").read_text(encoding="utf-8")
    result = json.loads((DOCS / "results" / "compare.json").read_text(encoding="utf-8"))
    assert f"$ {result['command']}\n{transcript}" in PAGE
    for row in result["rows"]:
        assert row["text"] in transcript
        assert re.search(rf"^{row['arm']} +{row['stats']['tokens']} +{row['stats']['expert_calls']} ", transcript, re.MULTILINE)
