"""Draw the pictures of docs/concepts.md: blocks of real answers of the bundled pair, and the effect of the dial.

    python scripts/docs/concepts.py            asks the bundled pair, writes docs/results/concepts.json, draws
    python scripts/docs/concepts.py --draw     draws what that file holds

The numbers in a picture are those that the rule had. Pictures have their own background and follow the reader's light or dark setting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import speccascade_local as sc
from speccascade_local.rules import registry
from speccascade_local.rules.evidence import Evidence
from speccascade_local.rules.rule import Decision, Rule

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "results" / "concepts.json"
QUESTION = "Who is Buzz Aldrin?"
#: The first block of an answer at temperature 1, by rule and seed.
BLOCKS = {"block-strict": ("strict", 0), "block-cascade": ("token_v3:0.8", 0), "block-corrected": ("token_v3:0.8", 1)}
BLOCK_SIZE = 5
#: Rules for the dial at temperature 0: in the first question another wording is as good, in the second it is wrong.
DIALS = {
    QUESTION: ("strict", "token_v3:0.4", "token_v3:0.5", "never"),
    "Summarize in one sentence: 30 pupils of the school in Westbrook planted bushes on Friday. The teacher, Nora Kim, said that the park "
    "will be greener next year. A small band played music. The weather was cold but dry.": ("strict", "token_v3:0.2", "token_v3:0.4"),
}
WIDTH = 460
STYLE = """\
svg { color-scheme: light dark }
.paper { fill: #ffffff; stroke: #d0d4da }
text { font: 14px system-ui, sans-serif; fill: #1d232b }
.code { font-family: ui-monospace, Menlo, Consolas, monospace }
.head, .small { font-size: 12px; fill: #59636e }
.number { font-size: 12px }
.line { stroke: #d0d4da }
.drafter { fill: #2a7f4f } .expert { fill: #7a5fb8 } .dropped { fill: #c0392b } .bonus { fill: #7a5fb8 } .matched { fill: #6fb58c }
.good { fill: #1f6b41 } .bad { fill: #a93226 } .own { fill: #5f46a0 }
.frame { fill: none; stroke: #59636e }
@media (prefers-color-scheme: dark) {
  .paper { fill: #1b1f27; stroke: #3a414d }
  text { fill: #e4e8ee }
  .head, .small { fill: #a5adba }
  .line { stroke: #3a414d } .frame { stroke: #a5adba }
  .drafter { fill: #4fb37d } .expert { fill: #a78bea } .dropped { fill: #ee7466 } .bonus { fill: #a78bea } .matched { fill: #2f7a53 }
  .good { fill: #6fd09b } .bad { fill: #ff9285 } .own { fill: #c4b0fa }
}"""


# --- asking


class Watching:
    """A rule that records the input and output of another rule in the first block."""

    def __init__(self, rule: Rule, runtime: sc.Runtime) -> None:
        self.rule, self.places = rule, []  # type: tuple[Rule, list[dict[str, Any]]]
        self._piece = runtime.models["expert"].tokenizer.piece
        self.draft: list[str] = []
        self._begin: int | None = None

    def defer(self, evidence: Evidence) -> Any:
        """Return what the other rule returns."""
        decision, place = Decision(self.rule.at(evidence), evidence), evidence.place
        if place.drafted and self._begin in (None, len(place.text)):
            self._begin = len(place.text)
            self.draft = [self._piece(token).decode() for token in place.drafted]
            self.places.append(self._record(decision, evidence, place.drafted[place.position]))
        return decision.deferred

    def _record(self, decision: Decision, evidence: Evidence, token: int) -> dict[str, Any]:
        q, p, deferred = evidence.drafter_probs[0], evidence.expert_probs[0], decision.deferred[0]
        return {
            "q": round(float(q[token]), 3),
            "p": round(float(p[token]), 3),
            "favourite": self._piece(int(p.argmax())).decode(),
            "p_favourite": round(float(p.max()), 3),
            "deferred": bool(deferred if deferred.ndim == 0 else deferred[token]),
            "kept": round(min(1.0, float(decision.target[0][token] / q[token])), 3),
        }


def block(runtime: sc.Runtime, prompt: Sequence[int], rule: str, seed: int) -> dict[str, Any]:
    """Return the first block of an answer: the draft, the input and output of the rule, and the outcome."""
    watching = Watching(registry.parse(rule), runtime)
    chunk = next(iter(runtime.stream(prompt, rule=watching, temperature=1, seed=seed, block_size=BLOCK_SIZE)))
    last = chunk.tokens[-1]
    return {
        "rule": rule,
        "seed": seed,
        "draft": watching.draft,
        "places": watching.places,
        "last": {"text": last.text, "origin": last.origin},
    }


def ask() -> dict[str, Any]:
    """Return the data of all pictures."""
    with sc.load(n_threads=1) as runtime:
        prompt = runtime.chat_ids([{"role": "user", "content": QUESTION}])
        blocks = {name: block(runtime, prompt, *which) for name, which in BLOCKS.items()}
        dials = [dial(runtime, question, rule) for question, rules in DIALS.items() for rule in rules]
    return {"question": QUESTION, "block_size": BLOCK_SIZE, "blocks": blocks, "dials": dials}


def dial(runtime: sc.Runtime, question: str, rule: str) -> dict[str, Any]:
    """Return the answer to one question under one rule."""
    reply = runtime.chat([{"role": "user", "content": question}], rule=rule, block_size=BLOCK_SIZE)
    distance = reply.fidelity and reply.fidelity.mean_tv
    answer = {"question": question, "rule": rule, "text": reply.text, "origins": [token.origin for token in reply.tokens]}
    return {**answer, "expert_calls": reply.stats.expert_calls, "tv": None if distance is None else round(distance, 3)}


# --- drawing


def draw_block(example: Mapping[str, Any]) -> str:
    """Draw one row for each drafted token: both probabilities, the rule's decision, the outcome."""
    parts = [_text(16, 26, f"rule {example['rule']}", "code"), *_legend(220, 16, (("drafter", "drafter's q"), ("expert", "expert's p")))]
    parts += [_text(x, 52, head, "head") for x, head in ((16, "draft"), (92, "how likely?"), (258, "rule says"), (354, "outcome"))]
    y, judged = 62, len(example["places"])
    for i, drafted in enumerate(example["draft"]):
        height = 50 if i < judged else 30
        parts += [_line(y), _text(16, y + height * 0.5 + 5, _visible(drafted), "code")]
        if i < judged:
            parts += _judged(y, example["places"][i], dropped=i == judged - 1 and example["last"]["origin"] == "corrected")
        else:
            parts += [_text(354, y + 20, "not looked at", "small")]
        y += height
    last = example["last"]
    why = "the expert's, in place of what was dropped" if last["origin"] == "corrected" else "the expert's, one more: the bonus"
    parts += [_line(y), _text(16, y + 28, _visible(last["text"]), "code own"), _text(92, y + 28, why, "number")]
    return _svg(y + 46, parts, f"One block under {example['rule']}")


def _judged(y: int, place: Mapping[str, Any], *, dropped: bool) -> list[str]:
    parts = []
    for offset, model, share in ((8, "drafter", place["q"]), (27, "expert", place["p"])):
        parts += [f'<rect class="{model}" x="92" y="{y + offset}" width="{max(1, 100 * share):.1f}" height="14" rx="2"/>']
        parts += [_text(98 + 100 * share, y + offset + 12, f"{share:.0%}", "number")]
    decision = ["the expert", "decides"] if place["deferred"] else ["the draft", "stands"]
    parts += [_text(258, y + 21 + 16 * i, line, "number") for i, line in enumerate(decision)]
    outcome = ("dropped", "bad") if dropped else ("kept", "good")
    return [*parts, _text(354, y + 21, *outcome), _text(354, y + 38, f"chance {place['kept']:.0%}", "small")]


def draw_dial(dials: Sequence[Mapping[str, Any]]) -> str:
    """Draw a strip for each setting of the dial, with a cell for each token."""
    classes = {"accepted": "drafter", "matched": "matched", "corrected": "dropped", "bonus": "bonus", "expert": "bonus"}
    parts, y, question = [], 8, ""
    for answer in dials:
        if answer["question"] != question:
            question, longest = answer["question"], max(len(each["origins"]) for each in dials if each["question"] == answer["question"])
            parts += [_text(16, y + 18, question if len(question) < 60 else question[:56] + "…", "small")]
            y += 30
        step = (WIDTH - 32) / longest
        calls = f"{answer['expert_calls']} expert calls" + ("" if answer["tv"] is None else f", TV {answer['tv']:g}")
        parts += [_text(16, y + 14, answer["rule"], "code"), _text(WIDTH - 16, y + 14, calls, "number", end=True)]
        parts += [
            f'<rect class="{classes[origin]}" x="{16 + step * i:.2f}" y="{y + 22}" width="{step - 0.8:.2f}" height="16"/>'
            for i, origin in enumerate(answer["origins"])
        ]
        parts += [_text(16, y + 56, answer["text"] if len(answer["text"]) < 60 else answer["text"][:56] + "…", "number")]
        y += 76
    words = (("drafter", "kept by the rule"), ("matched", "kept by the test"), ("dropped", "corrected"), ("bonus", "the expert's"))
    return _svg(y + 28, [*parts, *_legend(16, y, words)], "What the dial does to two answers")


def draw_pair(example: Mapping[str, Any]) -> str:
    """Who does what, in the words of one block."""
    judged, last = example["places"], example["last"]["text"]
    opinions = [f"{place['p']:.0%}" for place in judged]
    steps = (
        ("drafter", "drafter", "writes a block of tokens ahead", example["draft"], "good"),
        ("expert", "expert", "reads the block in one batch: how likely is each?", opinions, "own"),
        ("frame", "rule", "whose word counts here?", ["expert" if place["deferred"] else "draft" for place in judged], ""),
        ("matched", "text", "what was kept, and one token of the expert's", [*example["draft"][: len(judged) - 1], last], ""),
    )
    parts, y = [], 12
    for style, name, does, cells, colour in steps:
        parts += [f'<rect class="{style}" x="16" y="{y}" width="6" height="62" rx="2"/>', _text(32, y + 15, name, "")]
        parts += [_text(WIDTH - 16, y + 15, does, "small", end=True)]
        for i, cell in enumerate(cells):
            parts += [f'<rect class="frame" x="{32 + 84 * i}" y="{y + 28}" width="76" height="30" rx="5"/>']
            own = "own" if style == "matched" and i == len(cells) - 1 else colour
            parts += [f'<text class="code {own}" x="{70 + 84 * i}" y="{y + 48}" text-anchor="middle">{_visible(cell)}</text>']
        y += 80
    return _svg(y, parts, "One turn of the loop")


def _legend(x: int, y: int, entries: Sequence[tuple[str, str]]) -> list[str]:
    parts = []
    for i, (style, words) in enumerate(entries):
        parts += [f'<rect class="{style}" x="{x + 116 * i}" y="{y}" width="12" height="12" rx="2"/>']
        parts += [_text(x + 17 + 116 * i, y + 11, words, "number")]
    return parts


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    frame = f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img"><title>{escape(title)}</title>'
    return "\n".join([head, f"<style>\n{STYLE}\n</style>", frame, *parts, "</svg>", ""])


def _text(x: float, y: float, words: str, style: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{style}" x="{x:g}" y="{y:g}"{anchor}>{words if "&" in words else escape(words)}</text>'


def _line(y: int) -> str:
    return f'<line class="line" x1="16" x2="{WIDTH - 16}" y1="{y}" y2="{y}"/>'


def _visible(text: str) -> str:
    """Return the text with dots for spaces."""
    return escape(text.replace(" ", "·"))


def pictures(data: Mapping[str, Any]) -> dict[str, str]:
    """Return all pictures by name."""
    drawn = {name: draw_block(each) for name, each in data["blocks"].items()}
    return {**drawn, "pair": draw_pair(data["blocks"]["block-corrected"]), "dial": draw_dial(data["dials"])}


def main() -> None:
    if "--draw" not in sys.argv:
        DATA.write_text(json.dumps(ask(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    folder = DOCS / "concepts"
    folder.mkdir(exist_ok=True)
    for name, svg in pictures(json.loads(DATA.read_text(encoding="utf-8"))).items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
