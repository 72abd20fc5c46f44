from __future__ import annotations

import inspect

import pytest

import speccascade_local as sc


def test_what_the_package_imports_is_what_it_offers():
    there = [name for name, value in vars(sc).items() if not name.startswith("_") and not inspect.ismodule(value)]
    assert sc.__all__ == sorted(there)


def test_every_public_name_is_documented():
    for name in sc.__all__:
        assert inspect.getdoc(getattr(sc, name)), name
    for holder in (sc.Runtime, sc.Conversation):
        for name, member in inspect.getmembers(holder, inspect.isfunction):
            assert name.startswith("_") or inspect.getdoc(member), name


def test_every_error_is_a_speccascade_error():
    for name in sc.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(sc, name), sc.SpeccascadeError)


def test_the_verbs_take_the_same_arguments_after_the_first():
    """Settings as an object, its fields as keywords, and how the caller watches over the reply."""
    for verb in (sc.Runtime.generate, sc.Runtime.stream, sc.Runtime.chat, sc.Conversation.ask, sc.Conversation.stream):
        parameters = inspect.signature(verb).parameters
        assert list(parameters)[2:] == ["settings", "cancel", "on_chunk", "overrides"]
        assert [parameters[name].kind for name in ("cancel", "on_chunk")] == [inspect.Parameter.KEYWORD_ONLY] * 2
    for function in (sc.load, sc.target_probs):
        assert inspect.Parameter.VAR_KEYWORD not in {parameter.kind for parameter in inspect.signature(function).parameters.values()}


@pytest.mark.parametrize("wrong", ["rul", "max_token", "wanted"])
def test_an_unknown_setting_is_an_error_that_lists_the_known_ones(demo, wrong):
    with pytest.raises(TypeError, match=f"unknown setting '{wrong}'; the settings are rule, temperature"):
        demo.generate("Hi", **{wrong: 1})


def test_a_conversation_offers_what_its_page_says():
    offered = {name for name, _ in inspect.getmembers(sc.Conversation, inspect.isfunction) if not name.startswith("_")}
    assert offered == {"ask", "stream", "retry", "reset", "save", "load", "saved", "restore"}
