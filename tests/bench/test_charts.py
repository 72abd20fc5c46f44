"""What the charts draw: the right points, distinguishable without color."""

from __future__ import annotations

import pytest
from benchmark_rows import fake_rows
from matplotlib.figure import Figure
from PIL import Image

from speccascade_local.bench.charts import LOOKS, curve_styles, curves, draw_quality, draw_tokens_per_block, save_curves
from speccascade_local.bench.grid import BASE
from speccascade_local.bench.summary import summarize
from speccascade_local.common.errors import CatalogError


@pytest.fixture
def arms():
    return summarize(fake_rows(30)).by_temperature[0.0]


def test_the_arms_of_a_rule_are_one_curve_by_alpha(arms):
    found = curves(arms[::-1])
    assert [arm.arm for arm in found["token_v3, auto blocks"]] == ["token_v3:0.2, auto blocks", "token_v3:0.8, auto blocks"]
    assert set(found) == {BASE, "drafter alone", "token_v3, auto blocks"}


def test_time_and_quality_are_beside_the_expert_alone(arms):
    figure = Figure()
    draw_quality(figure, arms, curve_styles(curves(arms)))
    drawn = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines if line.get_label()[0] != "_"
    }
    assert drawn[BASE] == ([1], [0])
    assert drawn["token_v3, auto blocks"][0] == pytest.approx([0.6, 0.5])
    assert drawn["token_v3, auto blocks"][1][0] == 0
    assert drawn["token_v3, auto blocks"][1][1] < 0


def test_a_drafter_far_below_all_others_is_named_in_the_legend_and_not_drawn(arms):
    def drawn(share: float) -> tuple[list[str], float]:
        rows = [{**row, "quality": float(row["arm"] != "drafter alone" or int(row["question"][1:]) < share * 30)} for row in fake_rows(30)]
        figure = Figure()
        summaries = summarize(rows).by_temperature[0.0]
        draw_quality(figure, summaries, curve_styles(curves(summaries)))
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()], figure.axes[0].get_ylim()[0]

    assert drawn(0.5)[0][1] == "drafter alone: at (0.20, -50), far below"
    assert drawn(0.5)[1] > -15, "30 ties leave room for 11 points either way"
    names, lowest = drawn(0.95)
    assert names[1] == "drafter alone"
    assert lowest < -3


def test_one_question_has_points_without_crosses(tmp_path):
    save_curves(tmp_path / "one.svg", summarize(fake_rows(1)))
    assert "token_v3" in (tmp_path / "one.svg").read_text(encoding="utf-8")


def test_all_28_looks_differ_without_color():
    assert len({look[:2] for look in LOOKS}) == len(LOOKS) == 28


def test_a_curve_looks_the_same_in_every_chart_and_unlike_the_others():
    names = [f"rule {i}" for i in range(28)]
    assert curve_styles([*names, *names]) == curve_styles(names)
    assert len(set(curve_styles(names).values())) == 28
    assert len(curve_styles(f"rule {i}" for i in range(40))) == 40


def test_tokens_per_block_never_rise(arms):
    figure = Figure()
    draw_tokens_per_block(figure, fake_rows(), [arm.arm for arm in arms])
    for line in figure.axes[0].lines:
        shares = list(line.get_ydata())
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)


def test_a_picture_has_a_panel_for_each_temperature_and_is_the_same_each_time(tmp_path):
    summary = summarize(fake_rows(8, (0.0, 1.0)))
    for name in ("one.svg", "two.svg"):
        save_curves(tmp_path / name, summary)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "<svg" in drawn
    save_curves(tmp_path / "curves.png", summary)
    with Image.open(tmp_path / "curves.png") as image, Image.open(_one(tmp_path)) as single:
        assert image.width == 2 * single.width


def _one(folder):
    save_curves(folder / "single.png", summarize(fake_rows(8)))
    return folder / "single.png"


def test_without_references_there_is_nothing_to_draw(tmp_path):
    rows = [{**row, "quality": None} for row in fake_rows(8)]
    with pytest.raises(CatalogError, match="no question has a reference, so there is no quality to draw"):
        save_curves(tmp_path / "curves.svg", summarize(rows))
    assert not (tmp_path / "curves.svg").exists()
