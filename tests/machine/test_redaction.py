"""What a bug report must not show."""

from __future__ import annotations

import getpass
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speccascade_local.machine import diagnosis
from speccascade_local.machine.diagnosis import redact

words = st.text(string.ascii_lowercase, min_size=1, max_size=8)
texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(words, inner), max_leaves=10
)


@pytest.fixture(autouse=True)
def user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/jane.doe")
    monkeypatch.setattr(getpass, "getuser", lambda: "jane.doe")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane.doe", "~"),
        ("/home/jane.doe/models/a.gguf: no such file", "~/models/a.gguf: no such file"),
        ("'/home/jane.doe/x' and /home/jane.doe", "'~/x' and ~"),
        ("/home/jane.doe2/x", "/home/jane.doe2/x"),
        ("/mnt/jane.doe/x", "/mnt/***/x"),
        (r"C:\Users\jane.doe\x", r"C:\Users\***\x"),
        ("jane.doe is a word here", "jane.doe is a word here"),
        ("hf_abcdefghijKLMNOP123", "***"),
        ("https://me:secret@hub.example/x", "https://***@hub.example/x"),
    ],
)
def test_names_homes_and_secrets_are_left_out(text, shown):
    assert redact(text, {}) == shown


def test_what_a_secret_variable_holds_is_left_out_wherever_it_stands():
    environment = {"HF_TOKEN": "abcdef123", "MY_API_KEY": "xyzxyz", "DB_PASSWORD": "short", "PATH": "/usr/bin"}
    assert redact({"a": ["x abcdef123 y", ("xyzxyz",)], "PATH": "/usr/bin"}, environment) == {
        "a": ["x *** y", ["***"]],
        "PATH": "/usr/bin",
    }


@given(texts)
def test_all_else_stays_as_it_is_and_twice_is_once(value):
    once = redact(value, {})
    assert redact(once, {}) == once
    if "jane" not in repr(value) and "hf_" not in repr(value) and "://" not in repr(value):
        assert once == value


@given(words, words)
def test_a_home_is_never_shown(before, after):
    assert os.path.expanduser("~") not in redact(f"{before} {os.path.expanduser('~')}/{after}", {})


def test_a_user_without_a_name_is_no_failure(monkeypatch):
    def nameless():
        raise OSError("no name")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert diagnosis.redact("/mnt/jane.doe/x", {}) == "/mnt/jane.doe/x"
