"""The page of a benchmark: everything on it, nothing from elsewhere, and no text of a model that becomes markup."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmark_rows import ARMS, SETUP, fake_row, fake_rows

from speccascade_local.bench.grid import BASE
from speccascade_local.bench.report import disagreements, pieces, samples, write_report
from speccascade_local.bench.summary import summarize
from speccascade_local.common.errors import CatalogError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path, rows = tmp_path / "out.html", fake_rows(temperatures=(0.0, 1.0))
    write_report(path, summarize(rows), rows, SETUP)
    return path


class Links(HTMLParser):
    """What the page would fetch or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        assert tag not in ("script", "link", "iframe", "object", "b-injected")


def test_the_page_fetches_nothing(page):
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    assert all(link.startswith("#") for link in links.found), "only parts of its own drawings"
    assert "default-src 'none'" in page.read_text(encoding="utf-8")


def test_the_page_has_every_arm_both_temperatures_and_the_command(page):
    text = page.read_text(encoding="utf-8")
    for temperature in ("Temperature 0", "Temperature 1"):
        assert temperature in text
    for arm in ARMS:
        assert text.count(f"<td>{arm}</td>") == 2
    assert "speccascade bench made" in text
    assert "What is &lt;i&gt;0&lt;/i&gt;?" in text
    assert "a &lt;reference&gt; 0" in text
    assert text.count("<svg") == 4, "quality against time and tokens per block, for each temperature"


def test_what_a_model_or_a_file_says_never_becomes_markup(tmp_path):
    rows = fake_rows(4)
    rows += [fake_row(9, arm, text="<b-injected>&amp;</b-injected>") for arm in ARMS]
    path = tmp_path / "out.html"
    write_report(path, summarize(rows), rows, SETUP | {"command": "<b-injected>"})
    Links().feed(path.read_text(encoding="utf-8"))
    assert "made &lt;up&gt;" in path.read_text(encoding="utf-8")


def test_the_same_rows_give_the_same_page(page, tmp_path):
    again, rows = tmp_path / "again.html", fake_rows(temperatures=(0.0, 1.0))
    write_report(again, summarize(rows), rows, SETUP)
    assert again.read_bytes() == page.read_bytes()


def test_the_pieces_of_an_answer_are_its_text_and_neighbours_differ():
    row = fake_row(0, BASE, text="abcdef") | {"origins": "aammcb", "lengths": [1, 1, 1, 1, 1, 1]}
    assert pieces(row) == [("accepted", "ab"), ("matched", "cd"), ("corrected", "e"), ("bonus", "f")]
    assert pieces(row | {"text": "éxyz", "origins": "aae", "lengths": [0, 2, 2]}) == [("accepted", "éx"), ("expert", "yz")]


def test_samples_are_of_questions_that_every_arm_has_answered():
    rows = [*fake_rows(3), fake_row(7, BASE)]
    assert [sample["question"] for sample in samples(rows, list(ARMS))] == ["q0", "q1", "q2"]
    assert [name for name, _ in samples(rows, list(ARMS))[0]["answers"]] == list(ARMS)


def test_disagreements_name_exactly_the_arms_that_are_not_as_right_as_the_expert():
    rows = fake_rows(12)
    for each in disagreements(rows, list(ARMS)):
        here = {row["arm"]: row["quality"] for row in rows if row["question"] == each["question"]}
        assert [row["arm"] for row in each["others"]] == [arm for arm in ARMS if here[arm] != here[BASE]] != []
    assert len(disagreements(rows, list(ARMS))) == sum(fake_row(i, "drafter alone")["quality"] == 0 for i in range(12))


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(CatalogError, match="cannot be written"):
        write_report(tmp_path / "none" / "out.html", summarize(fake_rows()), fake_rows(), SETUP)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install one (Debian: apt install chromium) to see the page in a browser")
def test_a_browser_opens_the_page_without_a_complaint(page, tmp_path):
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--v=0", "--window-size=390,800", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr, "no error, and nothing that its content policy had to stop"
    assert re.search(r"<h1>made &lt;up&gt;</h1>", done.stdout)
    assert done.stdout.count("<svg") == 4
