from __future__ import annotations

import csv
import io
import json

import pytest
from test_summary import row

from speccascade_local.bench.export import FORMATS, HEADER, cells, histogram, notes, reach, spec_bench
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarized

ROWS = [
    row(f"q{i}", arm, wall=wall + i / 10, temperature=temperature, yields=[1, 3, 3, 3], text="t", quality=None if temperature else 1.0)
    for temperature in (0.0, 1.0)
    for arm, wall in ((BASE, 2.0), ("strict, blocks of 5", 1.0))
    for i in range(4)
]
SUMMARY = summarized(ROWS)
SETUP = {"pair": "demo", "machine": "a machine", "format": 1, "learnt": {"x": 1}, "commit": None}


def test_every_arm_stands_in_every_form():
    for name, form in FORMATS.items():
        text = form(SUMMARY, SETUP)
        assert text.count("strict, blocks of 5") == 2, name
        assert "a machine" in text


def test_a_table_has_a_cell_for_each_heading():
    for arms in SUMMARY.by_temperature.values():
        for arm in arms:
            assert len(cells(arm)) == len(HEADER)
    lines = [line for line in FORMATS["md"](SUMMARY, SETUP).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(HEADER) + 1}


def test_csv_and_json_hold_the_same_figures():
    table = list(csv.DictReader(io.StringIO(FORMATS["csv"](SUMMARY, SETUP))))
    whole = json.loads(FORMATS["json"](SUMMARY, SETUP))
    assert whole["setup"]["pair"] == "demo"
    for line, arm in zip(table, whole["arms"], strict=True):
        for name, value in arm.items():
            assert line[name] == ("" if value is None else str(value))


def test_notes_warn_of_few_questions_and_of_what_is_left_out():
    told = notes(SUMMARY, SETUP)
    assert any("only 4 questions" in note for note in told)
    assert not any("learnt" in note or "commit" in note for note in told)
    assert any("1 rows are left out" in note for note in notes(summarized([*ROWS, row("other", BASE)]), SETUP))


def test_spec_bench_reads_steps_tokens_times_and_lengths():
    lines = [json.loads(line) for line in spec_bench([*ROWS, row("q0", BASE, repetition=1, yields=[10], text="u")], BASE, 0.0).splitlines()]
    assert [line["question_id"] for line in lines] == ["q0", "q1", "q2", "q3"]
    first, second = lines[0]["choices"]
    assert (first["decoding_steps"], first["new_tokens"], first["wall_time"], first["accept_lengths"]) == ([5], [10], [2.0], [1, 3, 3, 3])
    assert (second["index"], second["turns"]) == (1, ["u"])


def test_yields_are_counted_and_added_up_from_above():
    assert histogram(ROWS[:2]) == [0, 2, 0, 6]
    assert reach([0, 2, 0, 6]) == pytest.approx([1.0, 0.75, 0.75])
    assert reach(histogram([])) == []
