from __future__ import annotations

import csv
import io
import json

import pytest
from benchmark_rows import ARMS, fake_rows, row

from speccascade_local.bench.export import FORMATS, family_table, full_table, histogram, notes, reach, spec_bench, verdict
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarize

BLOCKS = {BASE: [1, 3, 3, 3], "strict, blocks of 5": [3, 3, 3, 1]}
ROWS = [
    row(f"q{i}", arm, wall=wall + i / 10, temperature=temperature, yields=BLOCKS[arm], text="t", quality=None if temperature else 1.0)
    for temperature in (0.0, 1.0)
    for arm, wall in ((BASE, 2.0), ("strict, blocks of 5", 1.0))
    for i in range(4)
]
SUMMARY = summarize(ROWS)
SETUP = {"pair": "demo", "machine": "a machine", "format": 1, "learnt": {"x": 1}, "commit": None}


def test_every_arm_stands_in_every_form():
    for name, form in FORMATS.items():
        text = form(SUMMARY, SETUP)
        assert text.count("strict, blocks of 5") == 2, name
        assert "a machine" in text


def test_the_table_names_every_figure_and_every_arm():
    lines = [line for line in FORMATS["md"](SUMMARY, SETUP).splitlines() if line.startswith("|")]
    heading, *arms = full_table(SUMMARY.by_temperature[0.0])
    assert [f"| {' | '.join(line)} |" for line in (heading, *arms)] == [lines[0], *lines[2:4]]
    line = dict(zip(heading, arms[1]))
    assert (line["arm"], line["verdict"], line["speed-up per answer"][:4], line["right %"]) == (
        "strict, blocks of 5",
        "faster",
        "1.88",
        "100",
    )


def test_csv_and_json_hold_the_same_figures():
    table = list(csv.DictReader(io.StringIO(FORMATS["csv"](SUMMARY, SETUP))))
    whole = json.loads(FORMATS["json"](SUMMARY, SETUP))
    assert whole["setup"]["pair"] == "demo"
    for line, arm in zip(table, whole["arms"], strict=True):
        for name, value in arm.items():
            assert line[name] == ("" if value is None else str(value))


def test_each_family_stands_apart_where_there_are_several():
    rows = [{**each, "family": "odd" if int(each["question"][1:]) % 2 else "even"} for each in fake_rows(12)]
    summary = summarize(rows)
    heading, *lines = family_table(summary, 0.0)
    assert heading == ["arm", "even (6)", "odd (6)"]
    assert [line[0] for line in lines] == list(ARMS)
    assert lines[0][1:] == ["1.00 ×, +0", "1.00 ×, +0"]
    flat = json.loads(FORMATS["json"](summary, SETUP))["arms"]
    assert {(arm["family"], arm["n"]) for arm in flat} == {("", 12), ("even", 6), ("odd", 6)}
    assert family_table(SUMMARY, 0.0) == []


def test_what_nothing_tells_apart_is_named():
    twins = [{**each, "arm": "twin"} for each in ROWS if each["arm"] == BASE]
    assert summarize([*ROWS, *twins]).alike == [(f"{BASE} (T {t})", f"twin (T {t})") for t in (0, 1)]
    twins[0] = {**twins[0], "yields": [2, 2, 3, 3]}
    assert summarize([*ROWS, *twins]).alike == [(f"{BASE} (T 1)", "twin (T 1)")]
    assert summarize(ROWS).alike == []


def test_words_need_intervals_that_support_them():
    assert verdict(SUMMARY.by_temperature[0.0][0]) == ""
    assert verdict(SUMMARY.by_temperature[0.0][1]) == "faster"
    worse = [{**each, "quality": float(each["arm"] == BASE)} for each in ROWS]
    assert verdict(summarize(worse).by_temperature[0.0][1]) == "faster, worse"
    alone = [each for each in worse if each["question"] == "q0"]
    assert verdict(summarize(alone).by_temperature[0.0][1]) == "", "one question proves nothing about others"


def test_json_has_every_figure_of_every_arm_family_and_temperature():
    families = [{**each, "family": "odd" if int(each["question"][1:]) % 2 else "even"} for each in fake_rows(12, (0.0, 1.0))]
    for measured in (ROWS, [each for each in ROWS if each["question"] == "q0"], families):
        summary = summarize(measured)
        whole = json.loads(FORMATS["json"](summary, SETUP))
        assert whole["setup"] == {name: SETUP[name] for name in SETUP if name != "learnt"}
        parts = {"": summary.by_temperature, **summary.families}
        assert whole["arms"] == [
            json.loads(json.dumps({"family": name, **arm.as_dict()}))
            for name, part in parts.items()
            for arms in part.values()
            for arm in arms
        ]


def test_strict_shows_where_it_differs_from_the_experts_text_and_others_a_dash():
    own = [row(f"q{i}", BASE, rule="strict") for i in range(4)]
    apart = [row(f"q{i}", "strict, blocks of 5", rule="strict", token_ids=[1] * 6 + [2]) for i in range(3)]
    summary = summarize([*own, *apart, row("q3", "strict, blocks of 5", rule="strict")])
    heading, *arms = full_table(summary.by_temperature[0.0])
    assert [line[heading.index("differs from the expert's text")] for line in arms] == ["–", "75 %, at token 7"]
    assert any("near-ties" in note for note in notes(summary, SETUP))
    assert not any("near-ties" in note for note in notes(SUMMARY, SETUP))
    flat = json.loads(FORMATS["json"](summary, SETUP))["arms"][1]
    assert (flat["parted"], flat["parted_at"]) == (0.75, 7)


def test_notes_warn_of_few_questions_and_of_what_is_left_out():
    lines = notes(SUMMARY, SETUP)
    assert any("only 4 questions" in note for note in lines)
    assert not any("learnt" in note or "commit" in note for note in lines)
    assert any("1 rows are left out" in note for note in notes(summarize([*ROWS, row("other", BASE)]), SETUP))


def test_spec_bench_reads_steps_tokens_times_and_lengths():
    lines = [json.loads(line) for line in spec_bench([*ROWS, row("q0", BASE, repetition=1, yields=[10], text="u")], BASE, 0.0).splitlines()]
    assert [line["question_id"] for line in lines] == ["q0", "q1", "q2", "q3"]
    first, second = lines[0]["choices"]
    assert (first["decoding_steps"], first["new_tokens"], first["wall_time"], first["accept_lengths"]) == ([5], [10], [2.0], [1, 3, 3, 3])
    assert (second["index"], second["turns"]) == (1, ["u"])


def test_blocks_are_counted_by_their_tokens():
    assert histogram(ROWS[:2]) == [0, 2, 0, 6]
    assert reach([0, 2, 0, 6]) == pytest.approx([1.0, 0.75, 0.75])
    assert reach(histogram([])) == []
