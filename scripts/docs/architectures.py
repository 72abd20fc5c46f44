"""What llama.cpp's architectures are made of, and how each of them goes back to an earlier token.

    python scripts/docs/architectures.py FOLDER

FOLDER holds a tiny model of each, as llama.cpp's own tests/test-llama-archs writes them (-o FOLDER; it stands in the source package of
llama-cpp-python). Writes the table of docs/architectures.md, and for some of them tests/support/tiny_architectures.json: keys of the header
and shapes of the tensors, from which tests and bench_rollback.py make models of their own.
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
#: What the tests make: at least one of each way of going back, and of each kind of attention.
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
    made_of = {file.stem: parts(file) for file in files if file.stem in TESTED}
    lines = [f" {json.dumps(name)}: {json.dumps(made_of[name])}" for name in TESTED]
    (ROOT / "tests" / "support" / "tiny_architectures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(way_back(file), []).append(file.stem.removesuffix("-dense").removesuffix("-moe"))
    write_section(ROOT / "docs" / "architectures.md", "architectures", table(found))


def parts(file: Path) -> dict[str, object]:
    """Keys that say something (0 is what llama.cpp takes where there is none), and tensors without their optional scales."""
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


def way_back(file: Path) -> str:
    """The name of the way, or why it is refused. Prints a line."""
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


def table(found: dict[str, list[str]]) -> str:
    told = {
        "tail": "**tail**: the last tokens are dropped",
        "snapshots": "**snapshots** of the state, as an expert; checkpoints as a drafter",
        "checkpoints": "**checkpoints**: the state is copied and put back",
    }
    order = [*told, *sorted(found.keys() - told.keys())]
    rows = [
        f"| {told.get(way, f'refused: {way}')} | {len(found[way])} | {', '.join(sorted(set(found[way])))} |"
        for way in order
        if way in found
    ]
    return "\n".join(
        ["", f"With llama-cpp-python {llama_cpp_version()}:", "", "| goes back by | models | architectures |", "|---|---|---|", *rows, ""]
    )


if __name__ == "__main__":
    main()
