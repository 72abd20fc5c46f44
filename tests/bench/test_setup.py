"""What a run was made with."""

from __future__ import annotations

import re
import subprocess

from speccascade_local.bench import rows


def test_the_commit_is_that_of_the_checkout_and_tells_of_changes_without_locking_anything(tmp_path, monkeypatch):
    package = tmp_path / "speccascade_local" / "bench"
    package.mkdir(parents=True)
    source = package / "setup.py"
    source.write_text("1\n")
    monkeypatch.setattr(rows, "__file__", str(source))
    assert rows.commit() is None, "no checkout"

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *command], capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    assert rows.commit() is None, "no commit yet"
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    assert rows.commit() == git("rev-parse", "HEAD")
    source.write_text("2\n")
    (tmp_path / ".git" / "index.lock").touch()  # another git is at work, and is not waited for
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", rows.commit())
