"""The package as others get it: built, installed into an empty environment, and run from a folder that has nothing to do with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import speccascade_local as sc

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="written for POSIX shells"),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs a checkout"),
]


def done(*command: object, cwd: Path, **environment: str) -> str:
    """What it prints; nothing of this process's own environment, where this checkout may be on the path."""
    whole = {"PATH": os.environ["PATH"], "OMP_WAIT_POLICY": "PASSIVE"} | environment
    finished = subprocess.run([str(word) for word in command], cwd=cwd, env=whole, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def tracked() -> set[str]:
    """Files of the package as git knows them; what it ignores does not count."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "speccascade_local"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(listed.stdout.split())


def build(target: str, source: Path, out: Path) -> Path:
    done(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source, HOME=str(out))
    (made,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel; what it needs is borrowed from this one, and not compiled again."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    commands = place / "bin"
    done(
        sys.executable,
        "-m",
        "pip",
        "--python",
        commands / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=place,
        HOME=str(place),
    )
    borrowed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    Path(own, "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")  # after its own
    return commands


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("speccascade_local/models.yaml") == (ROOT / "models.yaml").read_bytes()
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        assert f"Version: {sc.__version__}\n" in archive.read(metadata).decode()
    assert names == tracked() | {"speccascade_local/models.yaml"}
    assert {"speccascade_local/demo/drafter.gguf", "speccascade_local/demo/expert.gguf", "speccascade_local/py.typed"} <= names


def test_the_source_package_makes_the_same_wheel(wheel, tmp_path):
    source = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", unpacked, tmp_path / "again")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {each.filename: each.CRC for each in one.infolist()} == {each.filename: each.CRC for each in other.infolist()}


def test_it_answers_from_another_folder_in_an_empty_home(installed, demo, tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    where = done(installed / "python", "-c", "import speccascade_local; print(speccascade_local.__file__)", cwd=elsewhere, HOME=str(home))
    assert Path(where.strip()).is_relative_to(installed.parent)
    demo.reset()
    own = demo.chat([{"role": "user", "content": "Who is Ada Lovelace?"}], rule="strict", temperature=0, block_size=5).text
    command = (installed / "speccascade", "run", "--rule", "strict", "--block-size", "5", "Who is Ada Lovelace?")
    assert done(*command, cwd=elsewhere, HOME=str(home)) == own + "\n"
    assert "demo" in done(installed / "speccascade", "models", cwd=elsewhere, HOME=str(home))
    report = json.loads(done(installed / "speccascade", "doctor", "--json", cwd=elsewhere, HOME=str(home)))
    assert (report["broken"], report["missing"]) == (False, [])
    assert list(elsewhere.iterdir()) == []
