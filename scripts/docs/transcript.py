"""Run the default comparison, and write it as a picture and as text.

    python scripts/docs/transcript.py

Writes docs/results/compare.json (every figure), docs/results/compare.txt (what a pipe shows), docs/compare.svg (what a terminal
shows) and the transcript in docs/concepts.md.
"""

from __future__ import annotations

import io
import json
import platform
import re
from pathlib import Path

import llama_cpp
from rich.terminal_theme import TerminalTheme
from sections import write_section

import speccascade_local as sc
from speccascade_local.bench.rows import commit
from speccascade_local.cli import terminal
from speccascade_local.llama.backend import physical_cores
from speccascade_local.runtime.compare import BLOCK_SIZE, DEFAULT_THRESHOLD, Row, compare, few_arms
from speccascade_local.runtime.settings import Settings

ROOT = Path(__file__).parents[2]
QUESTION = "Who is Buzz Aldrin?"
REPEAT = 21
COMMAND = f'speccascade compare --repeat {REPEAT} "{QUESTION}"'
THEME = TerminalTheme(
    (24, 26, 31), (220, 223, 228), [(60, 60, 60), (235, 110, 110), (120, 210, 130), (240, 200, 90), (110, 170, 255),
                                    (215, 140, 245), (95, 205, 215), (220, 223, 228)],
)  # fmt: skip


def render(rows: list[Row], *, coloured: bool) -> tuple[terminal.PlainConsole, str]:
    """Return what ``speccascade compare`` prints, in a terminal of 100 columns or in a pipe: the recording, and the characters."""
    written = io.StringIO()
    console = terminal.PlainConsole(record=True, force_terminal=coloured, width=100, file=written)
    terminal.stdout = console
    for row in rows:
        terminal.print_row(row)
    if coloured:
        console.print(terminal.legend(), end="\n\n")
    console.print(terminal.comparison_table(rows))
    return console, written.getvalue()


def main() -> None:
    with sc.load() as runtime:
        prompt = runtime.chat_ids([{"role": "user", "content": QUESTION}])
        settings = Settings(seed=0, block_size=BLOCK_SIZE, audit=True)
        rows = compare(runtime, prompt, few_arms(settings, runtime.rule, DEFAULT_THRESHOLD), repeat=REPEAT)
    result = {
        "command": COMMAND,
        "commit": commit(),
        "machine": f"{platform.machine()}, {physical_cores()} physical cores",
        "llama_cpp_python": llama_cpp.__version__,
        "quantization": "Q8_0",
        "temperature": 0,
        "repeat": REPEAT,
        "rows": [row.as_dict() for row in rows],
    }
    results = ROOT / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "compare.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    svg = render(rows, coloured=True)[0].export_svg(title=COMMAND, theme=THEME)
    # Without the font, which a browser would fetch from another host. Any monospace font will do.
    (ROOT / "docs" / "compare.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")
    text = "\n".join(line.rstrip() for line in render(rows, coloured=False)[1].splitlines()) + "\n"
    (results / "compare.txt").write_text(text, encoding="utf-8")
    write_section(ROOT / "docs" / "concepts.md", "transcript", f"```console\n$ {COMMAND}\n{text}```\n")


if __name__ == "__main__":
    main()
