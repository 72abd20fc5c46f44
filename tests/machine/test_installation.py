"""What is installed, by packages made up for it; and folders that can, and cannot, be written."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy
import pytest

from speccascade_local.machine import installation

METADATA = """Metadata-Version: 2.1
Name: speccascade-local
Version: 0.1.0
Requires-Dist: numpy<3,>=1.24
Requires-Dist: not-there[more]>=2
Requires-Dist: scikit-learn<2,>=1.4 ; extra == 'calibrate'
Requires-Dist: matplotlib<4,>=3.8 ; extra == "calibrate"
Requires-Dist: speccascade-local[calibrate] ; extra == 'test'
Requires-Dist: huggingface-hub>=1 ; python_version > "3" and extra == 'hub'
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This package as an index would have it, in front of whatever is installed here."""
    place = tmp_path / "speccascade_local-0.1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("sklearn", "matplotlib", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, type(sys)(module))
        monkeypatch.setattr(sys.modules[module], "__spec__", object())


@pytest.mark.usefixtures("installed")
def test_versions_are_those_of_the_packages_themselves():
    found = installation.versions()
    assert found["numpy"] == numpy.__version__
    assert found["python"] == platform.python_version()
    assert found["not-there"] == "missing"
    assert list(found) == ["python", "platform", "numpy", "not-there"]


@pytest.mark.usefixtures("installed")
def test_what_is_needed_and_not_there_is_named_with_its_version():
    assert installation.missing() == ("not-there>=2",)


@pytest.mark.usefixtures("installed")
def test_an_extra_whose_import_is_blocked_is_missing(monkeypatch):
    assert installation.extras() == (installation.Extra("calibrate", ()), installation.Extra("hub", ()))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert installation.extras() == (
        installation.Extra("calibrate", ("scikit-learn<2,>=1.4",)),
        installation.Extra("hub", ("huggingface-hub>=1",)),
    )


def test_a_package_that_runs_from_a_folder_names_the_two_that_matter(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert list(installation.versions()) == ["python", "platform", "llama-cpp-python", "numpy"]
    assert installation.missing() == installation.extras() == ()


def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **environment: str) -> dict[str, installation.Folder]:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    here = {"XDG_CACHE_HOME": tmp_path / "cache", "XDG_CONFIG_HOME": tmp_path / "config", "HOME": tmp_path} | environment
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))
    return {folder.use: folder for folder in installation.folders()}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where Linux keeps things")
def test_folders_are_where_they_are_used_and_nothing_is_made(monkeypatch, tmp_path):
    found = places(monkeypatch, tmp_path)
    assert [folder.path.relative_to(tmp_path).as_posix() for folder in found.values()] == [
        "cache/speccascade",
        "config/speccascade",
        "cache/huggingface/hub",
    ]
    assert {(folder.exists, folder.size, folder.problem) for folder in found.values()} == {(False, 0, "")}
    assert list(tmp_path.iterdir()) == []
    assert places(monkeypatch, tmp_path, HF_HOME="/elsewhere")["Hugging Face's cache"].path == Path("/elsewhere/hub")
    assert places(monkeypatch, tmp_path, HF_HUB_CACHE="~/h")["Hugging Face's cache"].path == tmp_path / "h"


def test_a_cache_counts_each_file_once_and_no_link(monkeypatch, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "one"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "a").write_bytes(bytes(1000))
    (snapshot / "b").write_bytes(bytes(24))
    (snapshot / "a.gguf").symlink_to(blobs / "a")
    (snapshot / "gone.gguf").symlink_to(blobs / "gone")
    found = places(monkeypatch, tmp_path, HF_HUB_CACHE=str(tmp_path))["Hugging Face's cache"]
    assert (found.exists, found.size, found.problem) == (True, 1024, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where Linux keeps things")
def test_a_folder_that_cannot_be_written_has_a_problem(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")  # stops root too
    found = places(monkeypatch, tmp_path)
    assert found["measurements"].problem == f"{tmp_path / 'cache'}: Not a directory"
    assert found["your models.yaml"].problem == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where Linux keeps things")
def test_a_read_only_folder_has_a_problem(monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    write = tempfile.TemporaryFile

    def as_a_user(dir, **options):  # root may write anywhere
        if not os.stat(dir).st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
        return write(dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", as_a_user)
    found = places(monkeypatch, tmp_path)
    assert found["measurements"].problem == f"{tmp_path / 'cache'}: Permission denied"
    assert found["your models.yaml"].problem == ""
