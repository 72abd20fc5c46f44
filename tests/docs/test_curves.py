"""The picture and tables of committed results."""

from __future__ import annotations

import gzip
import json

import curves
import pytest
from benchmark_rows import SETUP, fake_rows

from speccascade_local.bench.export import as_json
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarize


def test_of_each_rule_the_fastest_dial_that_is_not_surely_worse_is_told_and_what_is_worse_comes_last():
    arms = summarize(fake_rows(60)).by_temperature[0.0]
    assert [arm.arm for arm in curves.fastest(arms)] == [BASE, "token_v3:0.2, auto blocks", "drafter alone"]
    lines = curves.table(arms).splitlines()
    assert lines[2].startswith(f"| {BASE} |  | 1.00 | 100.0 | +0.0 |"), "by definition, so without an interval"
    assert lines[3].startswith("| token_v3 | 0.2 | 1.67 [")


def test_figures_and_the_page_come_from_the_committed_rows_alone(tmp_path, monkeypatch):
    for name in ("ROOT", "RESULTS"):
        monkeypatch.setattr(curves, name, tmp_path / ("docs/results" if name == "RESULTS" else ""))
    monkeypatch.setattr(curves, "PICTURE", tmp_path / "docs" / "curves.svg")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    measured = fake_rows(20, (0.0, 1.0))
    lines = "".join(json.dumps(line) + "\n" for line in ({"setup": SETUP}, *measured))
    for name in ("curves_demo", "curves_scaled"):
        (tmp_path / "docs" / "results" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    benchmarking = tmp_path / "docs" / "benchmarking.md"
    benchmarking.write_text("before\n<!-- curves --><!-- /curves -->\nafter\n", encoding="utf-8")
    curves.main()
    page = benchmarking.read_text(encoding="utf-8")
    assert page.startswith("before\n<!-- curves -->\n![")
    assert page.count("| token_v3 | 0.2 |") + page.count("| token_v3 | 0.8 |") == 4, "two pairs at two temperatures"
    for name in ("curves_demo", "curves_scaled"):
        assert (tmp_path / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8") == as_json(summarize(measured), SETUP)
    assert "<svg" in (tmp_path / "docs" / "curves.svg").read_text(encoding="utf-8")


def test_missing_rows_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*curves_scaled\.jsonl\.gz: cannot be read"):
        curves.main()
