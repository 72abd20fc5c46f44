"""The picture and tables of committed results."""

from __future__ import annotations

import update_curves
from made import SETUP, made_rows

from speccascade_local.bench.export import as_json
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarized


def test_of_each_rule_the_fastest_dial_that_is_not_surely_worse_is_told_and_what_is_worse_comes_last():
    arms = summarized(made_rows(60)).by_temperature[0.0]
    assert [arm.arm for arm in update_curves.fastest(arms)] == [BASE, "token_v3:0.2, auto blocks", "drafter alone"]
    lines = update_curves.table(arms).splitlines()
    assert lines[2].startswith(f"| {BASE} |  | 1.00 [1.00, 1.00] | 100.0 |")
    assert lines[3].startswith("| token_v3 | 0.2 | 1.67 [")


def test_both_pages_are_written_from_the_results_alone(tmp_path, monkeypatch):
    for name in ("ROOT", "RESULTS"):
        monkeypatch.setattr(update_curves, name, tmp_path / ("docs/results" if name == "RESULTS" else ""))
    monkeypatch.setattr(update_curves, "PICTURE", tmp_path / "docs" / "curves.svg")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    for name in ("curves_demo.json", "curves_scaled.json"):
        (tmp_path / "docs" / "results" / name).write_text(as_json(summarized(made_rows(20, (0.0, 1.0))), SETUP), encoding="utf-8")
    pages = [tmp_path / "README.md", tmp_path / "docs" / "benchmarking.md"]
    for page in pages:
        page.write_text("before\n<!-- curves --><!-- /curves -->\nafter\n", encoding="utf-8")
    update_curves.main()
    readme, page = (each.read_text(encoding="utf-8") for each in pages)
    assert "(docs/curves.svg)" in readme
    assert page.startswith("before\n<!-- curves -->\n![")
    assert page.count("| token_v3 | 0.2 |") + page.count("| token_v3 | 0.8 |") == 4, "two pairs at two temperatures"
    assert "<svg" in (tmp_path / "docs" / "curves.svg").read_text(encoding="utf-8")
