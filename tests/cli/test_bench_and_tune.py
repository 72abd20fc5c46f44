"""The verbs bench and tune as their user meets them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import COMMAND, output_of, speccascade

from speccascade_local.bench import rows

QUESTIONS = [
    {"prompt": "Who is Buzz Aldrin?", "reference": "astronaut", "metric": "contains", "family": "qa"},
    {"messages": [{"role": "user", "content": "Who is Ada Lovelace?"}], "reference": ["computer"], "metric": "contains", "family": "qa"},
]
GRID = ("--rules", "token_v3", "--alphas", "0.2,0.8", "--block-sizes", "3", "--max-tokens", "12", "--threads", "1")
#: The pair's own rule, token_v3:0.8, comes before those that were named.
ARMS = ["expert alone", "drafter alone", "strict, blocks of 3", "token_v3:0.8, blocks of 3", "token_v3:0.2, blocks of 3"]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    return path


@pytest.mark.slow
def test_bench_writes_every_row_once_and_prints_the_table(asked, tmp_path):
    shown = output_of("bench", "--questions", asked, *GRID, cwd=tmp_path)
    first, *measured = [json.loads(line) for line in (tmp_path / "bench-demo.jsonl").read_text().splitlines()]
    assert first["setup"]["pair"] == "demo"
    assert first["setup"]["command"].startswith("speccascade bench --questions")
    assert sorted((row["question"], row["arm"]) for row in measured) == sorted((f"qa-{n}", arm) for n in (1, 2) for arm in ARMS)
    assert "temperature 0, 2 questions" in shown
    assert re.search(r"^expert alone +1\.00 +", shown, re.MULTILINE), "by definition, so without an interval"
    assert all(re.search(rf"^{re.escape(arm)} +\d+\.\d\d \[", shown, re.MULTILINE) for arm in ARMS if arm != "expert alone")
    assert "only 2 questions: too few for reliable figures" in shown


@pytest.mark.slow
def test_results_can_be_shown_in_every_form(asked, tmp_path):
    output_of("bench", "--questions", asked, *GRID, "--out", "rows.jsonl", cwd=tmp_path)
    table = list(csv.DictReader(io.StringIO(output_of("bench", "--from", "rows.jsonl", "-o", "csv", cwd=tmp_path))))
    assert [line["arm"] for line in table] == ARMS
    found = json.loads(output_of("bench", "--from", "rows.jsonl", "-o", "json", cwd=tmp_path))
    assert [arm["arm"] for arm in found["arms"]] == ARMS
    lines = [line for line in output_of("bench", "--from", "rows.jsonl", "-o", "md", cwd=tmp_path).splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == ["arm", "---", *ARMS]
    assert output_of("bench", "--from", "rows.jsonl", "-o", "jsonl", cwd=tmp_path) == (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    for form in ("md", "jsonl"):
        assert output_of("bench", "--from", "packed.jsonl.gz", "-o", form, cwd=tmp_path) == output_of(
            "bench", "--from", "rows.jsonl", "-o", form, cwd=tmp_path
        )
    output_of("bench", "--from", "rows.jsonl", "--report", "page.html", "--spec-bench", "answers", "--picture", "curves.svg", cwd=tmp_path)
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert "strict, blocks of 3" in (tmp_path / "page.html").read_text()
    answers = sorted((tmp_path / "answers").iterdir())
    assert len(answers) == len(ARMS)
    assert {json.loads(line)["category"] for path in answers for line in path.read_text().splitlines()} == {"qa"}


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_gives_the_rows_of_one_without_a_break(asked, tmp_path):
    command = ("bench", "--questions", str(asked), *GRID, "-r", "4", "--out")
    output_of(*command, "whole.jsonl", cwd=tmp_path)
    path, moments = tmp_path / "broken.jsonl", random.Random(5)
    for lines in (3, 17, 30):  # the first is the set-up; 41 are all
        resume = ["--resume"] if path.exists() else []
        running = subprocess.Popen([*COMMAND, *command, path, *resume], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 100
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.001 * moments.random())
        running.send_signal(signal.SIGKILL)
        running.communicate()
        before = path.read_bytes()
        assert speccascade(*command, path, cwd=tmp_path).stderr.decode().startswith(f"error: {path}: exists already; continue it with")
    output_of(*command, path, "--resume", cwd=tmp_path)
    assert path.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    names = ("question", "arm", "temperature", "repetition", "seed", "text", "token_ids", "origins", "yields", "quality", "expert_calls")
    broken, whole = ([[row[name] for name in names] for row in rows.read(each)[1]] for each in (path, tmp_path / "whole.jsonl"))
    assert broken == whole
    assert len(whole) == 2 * 4 * len(ARMS)


@pytest.mark.slow
def test_tune_writes_what_it_chose_under_the_pair_and_says_on_what_grounds(tmp_path):
    (tmp_path / "models.yaml").write_text(
        "pairs:\n  mine:  # my own\n    drafter: bundled:drafter.gguf\n    expert: bundled:expert.gguf\n", encoding="utf-8"
    )
    shown = output_of(
        "tune", "mine", "--budget", "0.9", "--rules", "token_v3", "--alphas", "0.8", "--per-family", "8", "--max-tokens", "12", cwd=tmp_path
    )
    text = (tmp_path / "models.yaml").read_text()
    assert "mine:  # my own\n" in text
    written = next(line for line in text.splitlines() if "rule:" in line)
    assert "# tuned: " in written
    rule = json.loads(written.split("rule:")[1].split("#")[0])
    assert rule in ("strict", "token_v3:0.8")
    assert f"written: rule {rule} of mine in models.yaml" in shown.replace("\n", " ")
    assert json.loads(output_of("run", "--json", "mine", "Hi", cwd=tmp_path))["settings"]["rule"] == rule


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs:\n  mine: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}\n")
    before = (tmp_path / "models.yaml").read_text()
    options = ("--rules", "token_v3", "--alphas", "0.8", "--per-family", "8", "--max-tokens", "8", "--dry-run")
    output_of("tune", "mine", "--min-speedup", "50", *options, cwd=tmp_path)
    assert (tmp_path / "models.yaml").read_text() == before


TOKEN_BY_TOKEN = ("--alphas", "0.5,0.9", "--per-family", "8", "--max-tokens", "12")


@pytest.mark.slow
def test_tune_never_keeps_a_budget_by_a_way_that_did_not_look_at_the_expert(tmp_path):
    (tmp_path / "models.yaml").write_text("pairs:\n  mine: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}\n")
    shown = output_of("tune", "mine", "--budget", "0.9", "--rules", "token_cascade", *TOKEN_BY_TOKEN, cwd=tmp_path)
    assert "token_cascade" not in shown + (tmp_path / "models.yaml").read_text()


@pytest.mark.slow
def test_tune_says_what_loss_it_cannot_exclude_also_where_no_answer_is_lost(tmp_path):
    shown = output_of("tune", "--max-quality-loss", "1%", "--rules", "never", *TOKEN_BY_TOKEN, "--dry-run", cwd=tmp_path)
    assert "(a loss of at most 1% cannot be shown with 20 questions to confirm by" in shown
    lost = re.search(r"quality \+0\.0 \[-16\.1, \+16\.1\] points.*\n\(20 questions cannot exclude a loss of up to 16\.1 points", shown)
    assert lost, shown
    assert "about 461 questions in all like these would confirm them)" in shown
    assert "strict, which is lossless" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "--rules", "tokn_v3:0.3"], "did you mean 'token_v3'"),
        (["bench", "--alphas", "x"], "--alphas: 'x' is not allowed; separate values by commas, such as 0.2,0.4"),
        (["bench", "--block-sizes", "3,huge"], "--block-sizes: 'huge' in '3,huge' is not allowed"),
        (["bench", "--format", "xml"], "--format is 'xml'; it must be one of table, md, csv, json, jsonl"),
        (["bench", "--questions", "none.jsonl"], "none.jsonl: cannot be read"),
        (["bench", "--questions", "broken.jsonl"], "broken.jsonl, line 2: not JSON"),
        (["bench", "--questions", "metric.jsonl"], "metric.jsonl, line 1: metric: input should be 'exact', 'contains'"),
        (["bench", "--questions", "bare.jsonl"], "metric exact needs a reference"),
        (["bench", "--questions", "empty.jsonl"], "empty.jsonl: no questions"),
        (["bench", "--from", "broken.jsonl"], "broken.jsonl"),
        (["bench", "--from", "older.jsonl"], "has format 0, and this version reads 1"),
        (["bench", "--report", "none/page.html"], "none/page.html: cannot be written"),
        (["bench", "--picture", "curves.pdf"], "curves.pdf"),
        (["bench", "--out", "none/rows.jsonl"], "none/rows.jsonl: cannot be written (its folder does not exist)"),
        (["bench", "demo", "sealed", "--report", "page.html"], "several pairs and a file for only one"),
        (["bench", "demo", "demo", "--out", "x.jsonl"], "several pairs and a file for only one"),
        (["tune"], "no limit is set"),
        (["tune", "--max-quality-loss", "lots"], "--max-quality-loss is 'lots'; it must be a share, such as 1% or 0.01"),
        (["tune", "--expert-share", "300%"], "expert_share is 3.0"),
        (["tune", "--budget", "0.1", "--per-family", "1"], "too few"),
        (
            ["tune", "--max-quality-loss", "1%"],
            "cannot be shown with 67 questions to confirm by, even if none is lost; give 461 questions in all",
        ),
        (
            ["tune", "--max-quality-loss", "1%", "--per-family", "8"],
            "allow 16.2% or more; --per-family asks more of the built-in questions",
        ),
        (["tune", "--max-quality-loss", "0"], "a loss of at most 0 can never be shown"),
        (["tune", "--budget", "0.1", "--drafter", "a.gguf", "--expert", "b.gguf"], "two files have no entry in a models.yaml"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_error(tmp_path, arguments, said):
    good = json.dumps(QUESTIONS[0]) + "\n"
    files = {
        "broken.jsonl": good + "{\n", "metric.jsonl": '{"prompt": "Hi", "reference": "x", "metric": "bleu"}', "empty.jsonl": "\n",
        "bare.jsonl": '{"prompt": "Hi", "metric": "exact"}', "older.jsonl": '{"setup": {"format": 0}}\n',
        "models.yaml": "pairs: {sealed: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}}\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = speccascade(*arguments, cwd=tmp_path, COLUMNS="200")
    error = done.stderr.decode()
    assert (done.returncode, done.stdout, error.count("\n")) == (1, b"", 1)
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_measured_rows_are_safe(asked, tmp_path):
    out = tmp_path / "rows.jsonl"
    speccascade("profile", cwd=tmp_path)  # kept, so that nothing else is written
    command = ("bench", "--questions", asked, *GRID, "--out", out)
    limited = ["bash", "-c", f"ulimit -f 12; exec {shlex.join(map(str, [*COMMAND, *command]))}"]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, timeout=120)
    error = done.stderr.decode()
    assert (done.returncode, error.count("\n")) == (1, 1)
    assert f"error: {out}: cannot be written (File too large); " in error
    safe = int(re.search(r"(\d+) rows are safe; make room and continue with --resume", error)[1])
    assert safe > 0
    assert len(rows.read(out)[1]) == safe
    assert speccascade(*command, "--resume", cwd=tmp_path).returncode == 0
    assert [row["text"] for row in rows.read(out)[1][:safe]] == [row["text"] for row in rows.read(out)[1]][:safe]


@pytest.mark.slow
def test_a_device_cannot_hold_rows(asked, tmp_path):
    done = speccascade("bench", "--questions", asked, *GRID, "--out", os.devnull, "--resume", cwd=tmp_path)
    assert done.returncode == 1
    assert f"error: {os.devnull}: not a regular file" in done.stderr.decode()


@pytest.mark.slow
def test_plan_needs_one_measurement_and_then_estimates_any_pair(tmp_path):
    apart = {"XDG_CACHE_HOME": str(tmp_path)}
    done = speccascade("plan", **apart)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: nothing has been measured on this machine yet")
    speccascade("profile", **apart)
    found = json.loads(speccascade("plan", "--json", **apart).stdout)
    assert 1 <= found["speedup"][0] <= found["speedup"][1]
    assert found["memory"]["expert's weights"] > 4_000_000 > found["memory"]["drafter's weights"]
    assert found["basis"][0] == 2
    shown = speccascade("plan", "--drafter", "0.5GB", "--expert", "4.9GB", **apart).stdout.decode()
    assert "memory: 5.40 GB at a context of 4096 (expert's weights 4.90, drafter's weights 0.50; without KV caches" in shown
    assert "each of these estimated from the others" in shown


@pytest.mark.slow
def test_a_read_only_models_yaml_is_refused_before_anything_is_measured(tmp_path):
    """Root may write to every file, so the test replaces the answer of the system."""
    (tmp_path / "models.yaml").write_text("pairs: {sealed: {drafter: bundled:drafter.gguf, expert: bundled:expert.gguf}}\n")
    sealed = "import os; os.access = lambda *_: False; from speccascade_local.cli.app import main; main()"
    command = [sys.executable, "-c", sealed, "tune", "sealed", "--budget", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = "error: models.yaml: not writable; change its permissions, or only look with --dry-run\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
