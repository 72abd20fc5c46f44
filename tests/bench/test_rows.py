from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from benchmark_rows import fake_row
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.bench.grid import BASE
from speccascade_local.bench.rows import FORMAT, Store, commit, read
from speccascade_local.bench.summary import require_measured
from speccascade_local.common.errors import CatalogError

SETUP = {"pair": "demo", "threads": 1}
rows = st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6) | st.floats(allow_nan=False)), max_size=5)


@given(rows, st.integers(0, 400))
def test_a_file_cut_off_anywhere_is_resumed_and_loses_at_most_its_last_row(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    with Store(path, SETUP, resume=False) as store:
        for row in rows:
            store.append(row)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    cut = min(first + cut, len(whole))
    path.write_bytes(whole[:cut])
    kept = whole[first:cut].count(b"\n")
    with Store(path, SETUP, resume=True) as store:
        assert store.rows == rows[:kept]
        for row in rows[kept:]:
            store.append(row)
    assert read(path) == ({"format": FORMAT, **SETUP}, rows)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_saved_by_an_editor_on_windows_is_resumed_and_keeps_every_row(tmp_path, mark):
    path = tmp_path / "r.jsonl"
    with Store(path, SETUP, resume=False) as store:
        for number in range(20):
            store.append({"n": number})
    path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    with Store(path, SETUP, resume=True) as store:
        store.append({"n": 20})
    assert read(path)[1] == [{"n": number} for number in range(21)]
    assert path.read_bytes().startswith(mark + b"{")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' * 100_000, "1" * 5000, '{"a": ' + "1" * 5000 + "}"])
def test_a_hostile_line_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join([json.dumps({"setup": {"format": FORMAT}}), line, "{}", "{}", ""]))
    with pytest.raises(CatalogError, match=r"r\.jsonl, line 2: not a row") as refused:
        read(path)
    assert len(str(refused.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"family": 7}, "row 2 .* family: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"yields": []}, "yields: "),
        ({"tokens": 0}, "tokens: "),
        ({"wall_s": float("nan")}, "wall_s: "),
        ({"fidelity": {"judged": 3}}, "fidelity.mean_tv: this key is missing"),
        ({"lengths": ["a"] * 100_000}, "lengths.0: "),
    ],
)
def test_an_invalid_row_is_refused_before_it_is_summarized(changed, said):
    require_measured([fake_row(0, BASE)])
    with pytest.raises(CatalogError, match=said) as refused:
        require_measured([fake_row(0, BASE), fake_row(1, BASE) | changed])
    assert len(str(refused.value)) < 300


WRITER = """
import sys
from pathlib import Path
from speccascade_local.bench.rows import Store
with Store(Path(sys.argv[1]), {}, resume=True) as store:
    print(len(store.rows), flush=True)
    while True:
        store.append({"n": len(store.rows), "text": "x" * 3000})
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_nothing_that_was_there(tmp_path):
    path, known = tmp_path / "r.jsonl", 0
    for pause in (0.05, 0.11, 0.02):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert int(process.stdout.readline()) >= known
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        _, found = read(path)
        assert [row["n"] for row in found] == list(range(len(found)))
        assert len(found) > known
        known = len(found)


def test_another_setup_is_refused_and_named(tmp_path):
    path = tmp_path / "r.jsonl"
    Store(path, {**SETUP, "learnt": "a"}, resume=False).__exit__()
    Store(path, {**SETUP, "learnt": "b"}, resume=True).__exit__()  # taken over
    with pytest.raises(CatalogError, match=r"measured with threads 1, but now it is 2; continue with the same"):
        Store(path, {**SETUP, "threads": 2}, resume=True)
    with pytest.raises(CatalogError, match="exists already; continue it with --resume"):
        Store(path, SETUP, resume=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not the results of a benchmark"),
        ('{"n": 1}\n', "not the results of a benchmark"),
        ('{"setup": {"format": 0, "speccascade": "0.0"}}\n', "has format 0, and this version reads 1"),
        ('{"setup": {"format": 1}}\n{"n": \n{"n": 2}\n', "line 2: not a row"),
        ('{"setup": {"format": 1}}\n5\n{"n": 2}\n', "line 2: not a row"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, content, said):
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(CatalogError) as error:
        read(path)
    assert said in str(error.value)


def test_a_full_disk_is_an_error_and_earlier_rows_are_complete(tmp_path, monkeypatch):
    path = tmp_path / "r.jsonl"
    with Store(path, SETUP, resume=False) as store:
        store.append({"n": 0})

        def full(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CatalogError, match=r"No space left on device\); 1 rows are safe"):
            store.append({"n": 1})
    assert json.loads(path.read_text().split("\n")[1]) == {"n": 0}


def test_a_file_that_cannot_be_created_is_refused(tmp_path):
    with pytest.raises(CatalogError, match="cannot be written"):
        Store(tmp_path / "none" / "r.jsonl", SETUP, resume=False)


def test_a_compressed_file_is_read_like_the_original_and_never_written(tmp_path):
    path, packed = tmp_path / "r.jsonl", tmp_path / "r.jsonl.gz"
    with Store(path, SETUP, resume=False) as store:
        store.append({"n": 1})
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == read(path)
    for resume in (False, True):
        with pytest.raises(CatalogError, match=r"omit \.gz in --out"):
            Store(packed, SETUP, resume=resume)


def test_a_compressed_file_that_is_incomplete_or_too_large_is_refused(tmp_path, monkeypatch):
    packed = tmp_path / "r.jsonl.gz"
    for data in (gzip.compress(b"x" * 1000)[:-9], b"no gzip", b""):
        packed.write_bytes(data)
        with pytest.raises(CatalogError, match=r"not a complete gzip file|not the results of a benchmark"):
            read(packed)
    monkeypatch.setattr("speccascade_local.bench.rows.MOST_BYTES", 10_000)
    packed.write_bytes(gzip.compress(b"x" * 100_000))
    with pytest.raises(CatalogError, match="decompresses to more than"):
        read(packed)


def test_the_commit_is_that_of_the_checkout_and_marks_changes_without_a_lock(tmp_path, monkeypatch):
    source = tmp_path / "speccascade_local" / "module.py"
    source.parent.mkdir()
    source.write_text("1\n")
    monkeypatch.setattr("speccascade_local.bench.rows.PACKAGE", source.parent)
    assert commit() is None, "no checkout"

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *command], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    assert commit() is None, "no commit yet"
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    assert commit() == git("rev-parse", "HEAD")
    source.write_text("2\n")
    (tmp_path / ".git" / "index.lock").touch()  # another git is at work, and is not waited for
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", commit())
