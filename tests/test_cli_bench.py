"""The verbs bench and tune as their user meets them."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_cli import COMMAND, speccascade
from test_cli_methods import told

QUESTIONS = [
    {"prompt": "Who is Buzz Aldrin?", "reference": "astronaut", "metric": "contains", "family": "qa"},
    {"messages": [{"role": "user", "content": "Who is Ada Lovelace?"}], "reference": ["computer"], "metric": "contains", "family": "qa"},
]
GRID = ("--rules", "token_v3", "--alphas", "0.2,0.8", "--block-sizes", "3", "--max-tokens", "12", "--threads", "1")
ARMS = ["expert alone", "drafter alone", "strict, blocks of 3", "token_v3:0.2, blocks of 3", "token_v3:0.8, blocks of 3"]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    return path


def test_bench_writes_every_row_once_and_prints_the_table(asked, tmp_path):
    shown = told("bench", "--questions", asked, *GRID, cwd=tmp_path)
    first, *rows = [json.loads(line) for line in (tmp_path / "bench-demo.jsonl").read_text().splitlines()]
    assert first["setup"]["pair"] == "demo"
    assert first["setup"]["command"].startswith("speccascade bench --questions")
    assert sorted((row["question"], row["arm"]) for row in rows) == sorted((f"qa-{n}", arm) for n in (1, 2) for arm in ARMS)
    assert all(any(line.startswith(f"| {arm} | 2 |") for line in shown.splitlines()) for arm in ARMS)
    assert "only 2 questions: too few to tell much" in shown


def test_what_was_measured_can_be_shown_in_every_form(asked, tmp_path):
    told("bench", "--questions", asked, *GRID, "--out", "rows.jsonl", cwd=tmp_path)
    table = list(csv.DictReader(io.StringIO(told("bench", "--from", "rows.jsonl", "-o", "csv", cwd=tmp_path))))
    assert [line["arm"] for line in table] == ARMS
    found = json.loads(told("bench", "--from", "rows.jsonl", "-o", "json", cwd=tmp_path))
    assert [arm["arm"] for arm in found["arms"]] == ARMS
    assert told("bench", "--from", "rows.jsonl", "-o", "jsonl", cwd=tmp_path) == (tmp_path / "rows.jsonl").read_text()
    told("bench", "--from", "rows.jsonl", "--report", "page.html", "--spec-bench", "answers", cwd=tmp_path)
    assert "strict, blocks of 3" in (tmp_path / "page.html").read_text()
    answers = sorted((tmp_path / "answers").iterdir())
    assert len(answers) == len(ARMS)
    assert {json.loads(line)["category"] for path in answers for line in path.read_text().splitlines()} == {"qa"}


def test_a_run_that_is_killed_goes_on_and_measures_nothing_twice(asked, tmp_path):
    command = ("bench", "--questions", str(asked), *GRID, "--out", "rows.jsonl", "-r", "4")
    path = tmp_path / "rows.jsonl"
    running = subprocess.Popen([*COMMAND, *command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = path.read_bytes()
    kept = before[: before.rindex(b"\n") + 1]
    assert speccascade(*command, cwd=tmp_path).stderr.decode().startswith("error: rows.jsonl: is there already; go on with it by --resume")
    told(*command, "--resume", cwd=tmp_path)
    whole = path.read_bytes()
    assert whole.startswith(kept)
    rows = [json.loads(line) for line in whole.splitlines()[1:]]
    assert len(rows) == len({(row["question"], row["arm"], row["repetition"]) for row in rows}) == 2 * 4 * len(ARMS)


def test_tune_writes_what_it_chose_under_the_pair_and_says_on_what_grounds(tmp_path):
    (tmp_path / "models.yaml").write_text(
        "pairs:\n  mine:  # my own\n    drafter: bundled:drafter.gguf\n    expert: bundled:expert.gguf\n", encoding="utf-8"
    )
    shown = told(
        "tune", "mine", "--budget", "0.9", "--rules", "token_v3", "--alphas", "0.8", "--per-family", "8", "--max-tokens", "12", cwd=tmp_path
    )
    text = (tmp_path / "models.yaml").read_text()
    assert "mine:  # my own\n" in text
    written = next(line for line in text.splitlines() if "rule:" in line)
    assert "# tuned: " in written
    rule = json.loads(written.split("rule:")[1].split("#")[0])
    assert rule in ("strict", "token_v3:0.8")
    assert f"written: rule {rule} of mine in {tmp_path / 'models.yaml'}" in shown.replace("\n", " ")
    assert json.loads(told("run", "--json", "mine", "Hi", cwd=tmp_path))["settings"]["rule"] == rule


def test_a_dry_run_writes_nothing(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs:\n  mine: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}\n")
    before = (tmp_path / "models.yaml").read_text()
    options = ("--rules", "token_v3", "--alphas", "0.8", "--per-family", "8", "--max-tokens", "8", "--dry-run")
    told("tune", "mine", "--min-speedup", "50", *options, cwd=tmp_path)
    assert (tmp_path / "models.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "--rules", "tokn_v3:0.3"], "did you mean 'token_v3'"),
        (["bench", "--alphas", "x"], "--alphas is 'x'; it must be values with commas between them"),
        (["bench", "--block-sizes", "3,huge"], "--block-sizes is '3,huge'"),
        (["bench", "--format", "xml"], "--format is 'xml'; it must be one of md, csv, json, jsonl"),
        (["bench", "--questions", "none.jsonl"], "none.jsonl: cannot be read"),
        (["bench", "--questions", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        (["bench", "--questions", "metric.jsonl"], "metric.jsonl, line 1: metric: Input should be 'exact', 'contains'"),
        (["bench", "--questions", "bare.jsonl"], "metric exact needs a reference"),
        (["bench", "--questions", "empty.jsonl"], "empty.jsonl: no questions"),
        (["bench", "--from", "broken.jsonl"], "broken.jsonl"),
        (["bench", "--from", "older.jsonl"], "written in format 0, and this version reads 1"),
        (["bench", "--report", "none/page.html"], "none/page.html: cannot be written"),
        (["bench", "demo", "demo", "--out", "x.jsonl"], "several pairs were named, and a file for one"),
        (["tune"], "nothing was asked for"),
        (["tune", "--max-quality-loss", "lots"], "--max-quality-loss is 'lots'; it must be a share, such as 1% or 0.01"),
        (["tune", "--expert-share", "300%"], "expert_share is 3.0"),
        (["tune", "--budget", "0.1", "--per-family", "1"], "too few"),
        (["tune", "sealed", "--budget", "0.1"], "models.yaml"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_error(tmp_path, arguments, said):
    if arguments[1:2] == ["sealed"] and os.geteuid() == 0:
        pytest.skip("root may write to every file, so none is read-only for it")
    good = json.dumps(QUESTIONS[0]) + "\n"
    files = {
        "broken.jsonl": good + "{\n", "metric.jsonl": '{"prompt": "Hi", "reference": "x", "metric": "bleu"}', "empty.jsonl": "\n",
        "bare.jsonl": '{"prompt": "Hi", "metric": "exact"}', "older.jsonl": '{"setup": {"format": 0}}\n',
        "models.yaml": "pairs: {sealed: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}}\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "models.yaml").chmod(0o444)
    done = speccascade(*arguments, cwd=tmp_path, COLUMNS="200")
    error = done.stderr.decode()
    assert (done.returncode, done.stdout, error.count("\n")) == (1, b"", 1)
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here, which is always a full disk")
def test_a_full_disk_is_told_and_what_was_measured_is_safe(asked, tmp_path):
    done = speccascade("bench", "--questions", asked, *GRID, "--out", "/dev/full", "--resume", cwd=tmp_path)
    assert done.returncode == 1
    assert "/dev/full: " in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
