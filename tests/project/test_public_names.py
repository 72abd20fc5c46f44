from __future__ import annotations

import inspect

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


def test_the_verbs_share_one_set_of_settings_with_one_set_of_defaults():
    """Keyword-only after the first argument, no ``**kwargs``, and the same defaults everywhere."""
    shared = inspect.signature(sc.Runtime.generate).parameters
    for verb in (sc.Runtime.stream, sc.Runtime.chat, sc.Conversation.ask, sc.Conversation.stream):
        parameters = inspect.signature(verb).parameters
        assert list(parameters)[2:] == list(shared)[2:]
        for name in list(shared)[2:]:
            assert parameters[name].default == shared[name].default
    for verb in (sc.Runtime.generate, sc.Runtime.stream, sc.Runtime.chat, sc.Conversation.ask, sc.load, sc.target_probs):
        kinds = {parameter.kind for parameter in inspect.signature(verb).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds
        assert inspect.Parameter.KEYWORD_ONLY in kinds


def test_a_conversation_offers_what_its_page_says():
    offered = {name for name, _ in inspect.getmembers(sc.Conversation, inspect.isfunction) if not name.startswith("_")}
    assert offered == {"ask", "stream", "retry", "reset", "save", "load", "saved", "restore"}


def test_what_a_call_takes_beside_the_settings_of_its_reply():
    """How its caller watches over it: part of no file, and of no setting that a pair or a conversation keeps."""
    whole = list(inspect.signature(sc.Runtime.chat).parameters)[2:]
    of_replies = list(inspect.signature(sc.settings.Settings).parameters)
    assert whole == [*of_replies, "cancel", "on_chunk"]
    assert whole == list(inspect.signature(sc.settings.Call).parameters)
