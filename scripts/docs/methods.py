"""Draw the pictures and write the table of docs/methods.md from the code.

    python scripts/docs/methods.py

The package computes the bars: the target of a rule at one contested place, with six tokens that both models know.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speccascade_local.rules import registry
from speccascade_local.rules.calibrated import Calibrated
from speccascade_local.rules.combined import Budget
from speccascade_local.rules.evidence import Evidence, Place
from speccascade_local.rules.lossy_acceptance import DecisionTokens, Fly
from speccascade_local.rules.routes import ChowAverage, ChowQuantile, ChowSum, Route, Signals, TokenCascade
from speccascade_local.rules.rule import Decision, Rule
from speccascade_local.tokens.rows import Rows
from speccascade_local.tokens.sampler import Sampler

DOCS = Path(__file__).parents[2] / "docs"
WORDS = ("Buzz", "Edwin", "The", "He", "Colonel", "An")
DRAFTER = np.array([0.55, 0.10, 0.20, 0.10, 0.01, 0.04])
EXPERT = np.array([0.33, 0.40, 0.04, 0.12, 0.08, 0.03])
#: Dials at which the example shows what is special about a rule; the typical ones would not.
DIALS = {
    "chow": "0.5",
    "chow_log": "1.35",
    "diff_log": "-0.1",
    "bild": "1.2",
    "fuzzy": "0.05",
    "token_v1": "0.25",
    "token_v2": "0.1",
    "token_cascade": "0.5",
}
KEPT, WRITTEN, DROPPED, GREY = "#2a7f4f", "#e0b030", "#c0392b", "0.55"

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "speccascade", "font.size": 9, "hatch.linewidth": 0.6})


def evidence(drafter: np.ndarray = DRAFTER, expert: np.ndarray = EXPERT, temperature: float = 1.0, place: Place | None = None) -> Evidence:
    rows = (Rows.of(np.log(probs)[None]) for probs in (drafter, expert))
    return Evidence(*rows, Sampler(temperature), place or Place())


def draw_rule(rule: Rule) -> Figure:
    """Draw both distributions and the tokens that the rule trusts on the left, and the emitted distribution on the right."""
    decision = Decision(rule.at(evidence()), evidence())
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = np.arange(len(WORDS))
    trusted = ~decision.deferred[0]
    left.bar(x - 0.2, DRAFTER, 0.4, color=[KEPT if ok else "white" for ok in trusted], edgecolor=KEPT, label="drafter q")
    left.bar(x + 0.2, EXPERT, 0.4, color=GREY, label="expert p")
    left.set_title(f"{rule}: {_trust(trusted)}", fontsize=8)
    outcome(right, DRAFTER, decision.target[0])
    kept = np.minimum(DRAFTER, decision.target[0]).sum()
    right.set_title(f"emitted: π (drafts kept {kept:.0%}, TV {decision.tv[0]:.2f})", fontsize=8)
    for axes in (left, right):
        axes.set_xticks(x, WORDS)
        axes.set_ylim(0, 0.75)
        axes.legend(fontsize=7, frameon=False)
    return figure


def outcome(axes: Axes, drafter: np.ndarray, target: np.ndarray) -> None:
    """Draw the target as stacked bars: kept drafts, tokens written instead, and above them dropped drafts."""
    x, kept = np.arange(len(target)), np.minimum(drafter, target)
    axes.bar(x, kept, 0.6, color=KEPT, label="drafted and kept")
    for height, bottom, label, style in (
        (target - kept, kept, "written instead", {"color": WRITTEN, "hatch": "//", "edgecolor": "0.3"}),
        (drafter - kept, target, "drafted and dropped", {"color": "white", "hatch": "xx", "edgecolor": DROPPED}),
    ):
        some = height > 1e-9
        if some.any():
            axes.bar(x[some], height[some], 0.6, bottom=bottom[some], label=label, **style)


def _trust(trusted: np.ndarray) -> str:
    if trusted.all() or not trusted.any():
        return "keeps the draft (filled)" if trusted.all() else "asks the expert (hollow)"
    return "trusts the filled tokens"


def draw_fly() -> Figure:
    """Draw a block of fourteen, and which mismatches are kept."""
    rule, size, mismatches = Fly(), 14, (2, 9)
    rows = np.full((size, len(WORDS)), 0.02)
    for i in range(size):
        rows[i, :2] = (0.42, 0.5) if i in mismatches else (0.9, 0.02)
    expert = Rows.of(np.log(rows / rows.sum(axis=-1, keepdims=True)))
    figure = Figure(figsize=(7.2, 1.6), layout="constrained")
    axes = figure.subplots()
    judged = True
    for i in range(size):
        row = Evidence(expert.row(i), expert.row(i), Sampler(0), Place(drafted=[0] * size, position=i, expert=expert))
        stands = i not in mismatches or not rule.defer(row).any()
        label = "not\njudged" if not judged else "match" if i not in mismatches else "other,\nstands" if stands else "other,\ndropped"
        hatch = "//" if label == "other,\nstands" else "xx" if label == "other,\ndropped" else None
        axes.bar(
            i, 1, 0.9, color="0.85" if not judged else KEPT if stands else "white", hatch=hatch, edgecolor="0.2" if stands else DROPPED
        )
        colors = {"color": "black", "bbox": {"color": "white", "pad": 1}} if hatch else {"color": "white" if judged else "black"}
        axes.text(i, 0.5, label, ha="center", va="center", fontsize=7, **colors)
        judged &= stands
    axes.set(yticks=[], xticks=range(size), xlabel="position in the block", xlim=(-0.6, size - 0.4))
    axes.set_title(f"{rule}: another word stands if five matches follow, never among the last {rule.TAIL}", fontsize=8)
    return figure


def draw_decision_tokens() -> Figure:
    """Draw the disagreement over a text, and where it stands out."""
    rule = DecisionTokens(1.0)
    rng = np.random.default_rng(4)
    figure = Figure(figsize=(7.2, 2.0), layout="constrained")
    axes = figure.subplots()
    trace: list[float] = []
    for i in range(40):
        expert = rng.dirichlet(np.full(6, 0.4)) * 0.98 + 0.02 / 6
        drafter = (expert if rng.random() < 0.75 else rng.dirichlet(np.full(6, 0.4))) * 0.9 + 0.1 / 6
        example = evidence(drafter, expert, place=Place(trace=trace))
        asked = bool(rule.defer(example)[0])
        trace.append(float(example.cross_entropy[0]))
        style = {"color": WRITTEN, "hatch": "//", "edgecolor": "0.3"} if asked else {"color": KEPT}
        axes.bar(i, trace[-1], 0.8, label=("asks the expert" if asked else "keeps the draft"), **style)
    usual = [max(rule.tau, float(np.mean(trace[max(0, i - rule.window) : i] or [0]))) for i in range(len(trace))]
    axes.step(range(len(trace)), usual, where="mid", color="black", linewidth=1, label="max(tau, recent mean)")
    axes.set(xlabel="position in the text", ylabel="s, nats")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    axes.legend(unique.values(), unique.keys(), fontsize=7, frameon=False)
    axes.set_title(f"{rule}", fontsize=9)
    return figure


def draw_budget() -> Figure:
    """Draw the running mean of TV over a text, held at the limit."""
    rule = Budget(0.05)
    rng = np.random.default_rng(1)
    trace: list[float] = []
    alphas: list[float] = []
    for i in range(120):
        expert, drafter = rng.dirichlet(np.full(6, 0.5)), rng.dirichlet(np.full(6, 0.5))
        mixed = 0.7 * expert + 0.3 * drafter
        place = Place(trace=trace, emitted=i)
        example = evidence(mixed + 1e-9, expert + 1e-9, place=place)
        chosen = rule.at(example)
        alphas.append(getattr(chosen, "alpha", 0.0))
        trace.append(rule.remember(Decision(chosen, example)))
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.cumsum(trace) / np.arange(1, len(trace) + 1), color=KEPT, label="mean TV so far")
    axes.axhline(rule.limit, color=DROPPED, linestyle="--", label=f"limit {rule.limit}")
    axes.vlines(range(len(trace)), 0, np.array(trace), color=GREY, linewidth=1, label="TV of each token")
    axes.plot(
        np.array(alphas) * 0.1, ".", color=WRITTEN, markeredgecolor="0.3", markersize=5, label="alpha of the inner rule / 10; 0 = strict"
    )
    axes.set(xlabel="token", ylim=(0, 0.3))
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")
    axes.set_title(f"{rule}: random rows", fontsize=9)
    return figure


def draw_route(route: Route) -> Figure:
    """Draw two answers, their scores, and the decisions."""
    rng = np.random.default_rng(2)
    figure = Figure(figsize=(7.2, 2.1), layout="constrained")
    for axes, sharpness, title in zip(figure.subplots(1, 2, sharey=True), (40.0, 3.0), ("a sure answer", "an unsure answer")):
        best = 0.5 + 0.5 * rng.beta(sharpness, 1.0, size=14)
        signals = Signals(np.log(best), best - (1 - best))
        values, label = (
            (signals.logprobs, "log q") if isinstance(route, ChowSum | ChowAverage | ChowQuantile) else (signals.margins, "margin")
        )
        score = route.score(signals)
        stands = score >= route.threshold
        axes.bar(
            range(len(values)),
            values,
            color=KEPT if stands else "white",
            edgecolor=KEPT if stands else DROPPED,
            hatch=None if stands else "xx",
        )
        verdict = "it stands" if stands else "the expert starts over"
        axes.set_title(f"{title}: {score:.2f}, {verdict}", fontsize=8)
        axes.set(xlabel="token", ylabel=label if sharpness > 10 else "")
    figure.suptitle(f"{route}", fontsize=8)
    return figure


def draw_calibrated() -> Figure:
    """Draw an isotonic fit and its threshold."""
    knots, errors, threshold = [0.0, 0.05, 0.12, 0.25, 0.4, 1.0], [0.01, 0.05, 0.3, 0.55, 0.85, 0.95], 0.3
    figure = Figure(figsize=(7.2, 2.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(knots, errors, marker="o", color="black", label="probability that the drafter is wrong, fitted")
    axes.axhline(threshold, color=DROPPED, linestyle="--", label="threshold: above it the expert is asked")
    axes.axvspan(0, knots[2], color=KEPT, alpha=0.25, label="the drafter's answer stands")
    axes.set(xlabel="uncertainty u = 1 - mean margin", ylim=(0, 1), xlim=(0, 0.6))
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    axes.set_title("calibrated:FILE (an example)", fontsize=8)
    return figure


def picture(name: str) -> Figure:
    kind = registry.METHODS[name]
    special = {Fly: draw_fly, DecisionTokens: draw_decision_tokens, Budget: draw_budget, Calibrated: draw_calibrated}
    if kind in special:
        return special[kind]()
    dials = DIALS.get(name, kind.example)
    method = registry.parse(f"{name}:{dials}" if dials else name)
    if isinstance(method, Route):
        return draw_route(method)
    assert isinstance(method, Rule | TokenCascade)
    return draw_rule(method)


def table() -> str:
    """Return the table of all methods, as ``speccascade rules`` prints it."""
    rows = [registry.describe(method) for method in registry.METHODS.values()]
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = [f"`{row['method']}`", *list(row.values())[1:]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join(lines)


def example() -> str:
    """Return the example of a user's own rule, as Markdown."""
    return "```python\n" + (DOCS / "examples" / "my_rules.py").read_text(encoding="utf-8") + "```"


def main() -> None:
    folder = DOCS / "methods"
    folder.mkdir(exist_ok=True)
    for name in registry.METHODS:
        picture(name).savefig(folder / f"{name}.svg", metadata={"Date": None})
    page = DOCS / "methods.md"
    text = page.read_text(encoding="utf-8")
    for name, section in (("table", table()), ("my_rules", example())):
        before, _, rest = text.partition(f"<!-- {name} -->")
        text = f"{before}<!-- {name} -->\n{section}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
