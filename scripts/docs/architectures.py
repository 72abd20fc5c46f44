"""Find out how each architecture of llama.cpp rolls back to an earlier token, and write the table of docs/architectures.md.

    python scripts/docs/architectures.py FOLDER

FOLDER holds a tiny model of each, as llama.cpp's own tests/test-llama-archs writes them (-o FOLDER; it is in the source package of
llama-cpp-python). For some of them the script also writes tests/support/tiny_architectures.json: the keys of the header and the shapes of
the tensors, from which tests and scripts/measure/rollback.py make models of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gguf import GGUFReader
from sections import write_section

from speccascade_local.common.errors import ModelLoadError
from speccascade_local.llama.backend import llama_cpp_version
from speccascade_local.llama.context import LlamaContext
from speccascade_local.llama.model import LlamaModel

ROOT = Path(__file__).parents[2]
#: What the tests use: at least one architecture for each kind of rollback and of attention.
TESTED = (
    *("llama-dense", "gemma3-dense", "qwen3moe-moe", "deepseek2-moe", "gpt-oss-moe"),
    *("lfm2-dense", "qwen35-dense", "nemotron_h-dense"),
    *("mamba-dense", "mamba2-dense", "falcon-h1-dense", "granitehybrid-dense", "jamba-dense", "qwen3next-moe"),
    *("dream-dense", "cogvlm-dense"),
)
N_CTX = 2048


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    files = sorted(Path(sys.argv[1]).glob("*.gguf"))
    architecture_of = {file.stem: parts(file) for file in files if file.stem in TESTED}
    lines = [f" {json.dumps(name)}: {json.dumps(architecture_of[name])}" for name in TESTED]
    (ROOT / "tests" / "support" / "tiny_architectures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    by_way: dict[str, list[str]] = {}
    for file in files:
        by_way.setdefault(rollback_of(file), []).append(file.stem.removesuffix("-dense").removesuffix("-moe"))
    write_section(ROOT / "docs" / "architectures.md", "architectures", table(by_way))


def parts(file: Path) -> dict[str, object]:
    """Return the keys of a header without those at their default (0), and the shapes of its tensors without the optional scales."""
    reader = GGUFReader(file)
    keys = {}
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.", "general.")):
            continue
        kinds, value = [kind.name for kind in field.types], field.contents()
        if name.endswith(("context_length", "original_context_length")):
            value = N_CTX
        if value not in (0, False, "", [], -1, float("-inf"), 2**32 - 1) and not (isinstance(value, list) and not any(value)):
            keys[name] = [kinds, value]
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors if not tensor.name.endswith(("scale",))}
    return {"architecture": reader.fields["general.architecture"].contents(), "keys": keys, "tensors": shapes}


def rollback_of(file: Path) -> str:
    """Return the kind of rollback, or why the model is refused, and print it."""
    try:
        model = LlamaModel(file)
        try:
            context = LlamaContext(model, n_ctx=64, n_threads=1)
            way = context.rollback.name
            context.close()
        finally:
            model.close()
    except ModelLoadError as error:
        way = str(error).removeprefix(f"{file}: ").partition(";")[0]
    print(f"{file.stem:24} {way}")
    return way


def table(by_way: dict[str, list[str]]) -> str:
    labels = {
        "tail": "**tail**: the last tokens are dropped",
        "snapshots": "**snapshots** of the state, as an expert; checkpoints as a drafter",
        "checkpoints": "**checkpoints**: the state is copied and put back",
    }
    order = [*labels, *sorted(by_way.keys() - labels.keys())]
    rows = [
        f"| {labels.get(way, f'refused: {way}')} | {len(by_way[way])} | {', '.join(sorted(set(by_way[way])))} |"
        for way in order
        if way in by_way
    ]
    return "\n".join(
        ["", f"With llama-cpp-python {llama_cpp_version()}:", "", "| rolls back by | models | architectures |", "|---|---|---|", *rows, ""]
    )


if __name__ == "__main__":
    main()
