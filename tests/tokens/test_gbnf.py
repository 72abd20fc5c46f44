"""Our reading of GBNF against llama.cpp's own grammar engine, mask by mask."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speccascade_local.llama.model import LlamaModel
from speccascade_local.tokens.gbnf import from_gbnf
from speccascade_local.tokens.grammar import Grammar

TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True)


class Native:
    """llama.cpp's grammar over one reply."""

    def __init__(self, model: LlamaModel, text: str) -> None:
        vocab = llama_cpp.llama_model_get_vocab(model.handle)
        self.n_vocab = model.n_vocab
        self.sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        assert self.sampler, text

    def allowed(self) -> np.ndarray:
        tokens = np.zeros(self.n_vocab, TOKEN)
        tokens["id"] = np.arange(self.n_vocab)
        data = tokens.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data=data, size=self.n_vocab, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self.sampler, ctypes.byref(array))
        return np.isfinite(tokens["logit"])

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.sampler, token)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self.sampler)


def comparable(model: LlamaModel, reply: list[int]) -> np.ndarray:
    """Ids that both engines see alike. llama.cpp reads control tokens as the text that they are written with, lets bytes begin that can
    never become a character, and hides NUL.
    """
    written = b"".join(map(model.tokenizer.piece, reply))
    pieces = [model.tokenizer.piece(token) for token in range(model.n_vocab)]
    return np.array([model.tokenizer.is_end(token) or (bool(piece) and readable(written + piece)) for token, piece in enumerate(pieces)])


def readable(written: bytes) -> bool:
    """Whether the bytes, or these and the rest of a last character, are a text without NUL."""
    rests = (b"", b"\x80", b"\x80\x80", b"\xa0\x80", b"\x80\x80\x80", b"\x90\x80\x80")
    return b"\0" not in written and any(decodes(written + rest) for rest in rests)


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


literals = st.sampled_from(
    ['"a"', '"ab"', '"The "', '"é"', '"1"', '"\\""', '"\\n"', "[a-c]", "[^a-c]", "[0-9]", "[a-zA-Z ]", "word", "number"]
)
expressions = st.recursive(
    literals,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(" ".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]} | {pair[1]})"),
        st.tuples(inner, st.sampled_from(["?", "*", "+", "{2}", "{1,3}", "{2,}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
grammars = expressions.map(lambda root: f"root ::= {root} # the whole\nword ::= [a-z]+\nnumber ::= [1-9] [0-9]? (word | )\n")


@pytest.mark.slow
@settings(max_examples=100)
@given(grammars, st.data())
def test_every_mask_is_the_one_that_llama_cpp_makes(demo, text, data):
    model = demo._expert.model
    ours, native = Grammar(model.tokenizer.for_grammars, from_gbnf(text), model.n_vocab), Native(model, text)
    ends = np.array([model.tokenizer.is_end(token) for token in range(model.n_vocab)])
    reply: list[int] = []
    for _ in range(8):
        allowed, expected = ours.allowed(reply), native.allowed()
        compared = comparable(model, reply)
        ours_only, theirs_only = (
            np.flatnonzero(compared & one & ~other).tolist() for one, other in ((allowed, expected), (expected, allowed))
        )
        assert (ours_only, theirs_only) == ([], []), f"{text} after {reply}"
        possible = np.flatnonzero(allowed & compared & ~ends)
        if not len(possible):
            break
        reply.append(int(data.draw(st.sampled_from(possible.tolist()))))
        native.accept(reply[-1])
    native.close()


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" |',
        'root ::=\n  "a"\n',
        'root ::= (\n  "a" |\n  "b"\n)\n',
        'root ::= "\\x41\\u0042\\U00000043"',
        "root ::= [\\]\\[-] .",
        'root ::= item ("," item)*\nitem ::= "\\"" [^"\\n]{0,4} "\\""',
    ],
)
def test_spellings_of_the_grammars_that_come_with_llama_cpp_are_read_alike(demo, text):
    model = demo._expert.model
    ours, native = Grammar(model.tokenizer.for_grammars, from_gbnf(text), model.n_vocab), Native(model, text)
    compared = comparable(model, [])
    assert (ours.allowed([]) & compared).tolist() == (native.allowed() & compared).tolist()
    native.close()
