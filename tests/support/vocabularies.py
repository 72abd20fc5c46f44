"""What llama.cpp and what this package say of two vocabularies."""

from __future__ import annotations

import gguf
from gguf_files import BASE_VOCABULARY, ENDOFTEXT, IM_END, IM_START
from hypothesis import strategies as st

from speccascade_local.common.errors import PairError
from speccascade_local.llama.model import LlamaModel
from speccascade_local.llama.tokenizer import shared_vocab_size

SMALL = BASE_VOCABULARY
WIDE = SMALL + 128  # as far apart as two vocabularies may be


def our_verdict(target: LlamaModel, draft: LlamaModel) -> bool:
    try:
        shared_vocab_size(draft.tokenizer, target.tokenizer)
    except PairError:
        return False
    return True


#: One way for a vocabulary to be another, or two that cancel out: most have a partner that differs in nothing else.
differences = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["gpt2", "llama"]),
        "pre": st.sampled_from(["smollm", "qwen2"]),
        "add_bos": st.booleans(),
        "add_eos": st.booleans(),
        "bos_id": st.sampled_from([ENDOFTEXT, IM_START]),
        "eos_id": st.sampled_from([ENDOFTEXT, IM_END]),
        "n_vocab": st.sampled_from([SMALL, SMALL + 1, WIDE - 1, WIDE, WIDE + 1]),
        "texts": st.dictionaries(
            st.sampled_from([0, 4, 5, 6, 100, SMALL - 1]),
            st.sampled_from(["<other>", "", b"\xff", b"\xfe", b"a\xff", b"a\xfe"]),
            max_size=1,
        ),
        "types": st.dictionaries(st.sampled_from([0, 5, SMALL - 1]), st.just(gguf.TokenType.USER_DEFINED), max_size=1),
        "chat_template": st.just("{{ messages }}"),
    },
)
