"""Replies in a terminal: colors by origin, the legend, the tables of a comparison and of a profile.

A pipe receives the plain text. A terminal receives control characters in texts of models, files and servers only as escapes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..common.validation import printable
from ..decoding.profile import SIZES, Profile, Speed
from ..decoding.verify import Origin
from ..rules.routes import Route
from ..runtime.compare import Row, dropped_pairs
from ..runtime.reply import Reply, Token

#: The color of each token's origin, and its meaning.
ORIGINS: dict[Origin, tuple[str, str]] = {
    "accepted": ("green", "draft accepted by the rule"),
    "matched": ("cyan", "draft accepted by the strict test"),
    "corrected": ("bold yellow", "the expert's, for a rejected draft"),
    "bonus": ("magenta", "the expert's, after an accepted draft"),
    "expert": ("blue", "the expert's, no draft"),
}
DROPPED_STYLE = "strike red"
FULL_TABLE_COLUMNS, IN_A_PIPE = 80, 200
FIRST_WORD = re.compile(r"(\s*)(\S*)")

#: Characters of an error.
LONGEST_ERROR = 1000


class PlainConsole(Console):
    """A console of rich's that prints every text without markup, and control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @property
    def obeys_controls(self) -> bool:
        """Whether the output goes to a terminal, which would obey control characters."""
        return self.is_terminal or self.file.isatty()

    def render(self, *renderable: Any, **options: Any) -> Iterable[Segment]:
        """Yield rich's segments with the control characters of texts escaped."""
        for segment in super().render(*renderable, **options):
            yield segment._replace(text=printable(segment.text)) if self.obeys_controls and not segment.control else segment


stdout, stderr = PlainConsole(), PlainConsole(stderr=True)


def for_tables(width: int = IN_A_PIPE) -> Console:
    """Return the terminal, or for a pipe a console of that width."""
    return stdout if stdout.is_terminal else PlainConsole(width=width)


def write(text: str, end: str = "\n") -> None:
    """Write a text to stdout, tabs included; in a terminal with its control characters escaped."""
    stdout.file.write((printable(text) if stdout.obeys_controls else text) + end)
    stdout.file.flush()


def print_error(error: object) -> None:
    """Print an error as one line on stderr, escaped and not longer than LONGEST_ERROR."""
    print("error:", printable(" ".join(str(error).split()), LONGEST_ERROR), file=sys.stderr)


def shows_styles() -> bool:
    """Return whether stdout shows styles; without them a rejected draft would read as part of the reply."""
    return stdout.is_terminal and not stdout.is_dumb_terminal


def print_tokens(tokens: Sequence[Token], *, colored: bool, end: str = "") -> None:
    """Continue the text on stdout, in colors if these are asked for and stdout shows styles."""
    if colored and shows_styles():
        stdout.print(color_tokens(tokens), end=end, soft_wrap=True)
    else:
        write("".join(token.text for token in tokens), end)  # not through rich, which would expand tabs


def color_tokens(tokens: Sequence[Token]) -> Text:
    """Return the tokens in the colors of their origins; the first word of a rejected draft stands struck through before its replacement."""
    text = Text()
    for token in tokens:
        if token.dropped:
            space, word = FIRST_WORD.match(printable(token.dropped)).groups()  # type: ignore[union-attr]  # matches any text
            text.append(space).append(word, DROPPED_STYLE)
        text.append(printable(token.text), ORIGINS[token.origin][0])
    return text


def legend() -> Text:
    """Return one line for each color."""
    lines = [*((str(origin), style, meaning) for origin, (style, meaning) in ORIGINS.items()), ("dropped", DROPPED_STYLE, "rejected draft")]
    return Text("\n").join(Text.assemble((name, style), (f"{'':{11 - len(name)}}{meaning}", "dim")) for name, style, meaning in lines)


def print_row(row: Row, *also: str) -> None:
    """Print one arm of a comparison: its name and those of arms with the same text, its text in colors, and its rejected drafts."""
    reply = row.reply
    stdout.print(Text("; ".join((row.name, *also)), "bold"), soft_wrap=not stdout.is_terminal)
    if shows_styles():
        stdout.print(color_tokens(reply.tokens))
    else:
        print_tokens(reply.tokens, colored=False, end="\n")
    if isinstance(reply.rule, Route) and reply.confidence is not None and not also:
        threshold = reply.rule.threshold
        verdict = "keeps the drafter's answer" if reply.confidence >= threshold else "discards it and asks the expert"
        stdout.print(Text(f"drafter's confidence {reply.confidence:.3f}, threshold {threshold:g}: {verdict}", "dim"), soft_wrap=True)
    dropped = [] if also else dropped_pairs(reply)
    if dropped:
        draft, instead = dropped[0]
        stdout.print(Text(f"rejected drafts: {len(dropped)}; the first was {draft!r}, the expert wrote {instead!r}", "dim"), soft_wrap=True)
    stdout.print()


def print_figures(reply: Reply) -> None:
    """Print the figures of a reply on stderr in groups, because counts and fidelity have names in common."""
    groups = {"counts": reply.stats.counts(), "seconds": reply.stats.clocks()}
    groups |= {"distance from the expert": reply.fidelity.as_dict()} if reply.fidelity else {}
    for title, figures in groups.items():
        stderr.print(title)
        for name, value in figures.items():
            stderr.print(f"  {name:16} {number(value)}")


def print_groups(rows: Sequence[Row]) -> None:
    """Print each text of many arms once, under the names of all arms that wrote it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.reply.text, []).append(row)
    for first, *others in groups.values():
        print_row(first, *(row.name for row in others))


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return the counts and times of the arms; it fits 80 columns, and in a narrower terminal it drops some."""
    columns: dict[str, Callable[[Row], str]] = {
        "tokens": lambda row: str(row.reply.stats.tokens),
        "expert\ncalls": lambda row: str(row.reply.stats.expert_calls),
        "tokens\n/block": lambda row: number(row.reply.stats.tokens_per_block),
        "accepted": lambda row: _percent(row.reply.stats.acceptance_rate if row.reply.stats.expert_calls else None),
        "deferred": lambda row: _percent(row.reply.stats.deferral_rate if row.reply.stats.expert_calls else None),
        "TV": lambda row: _mean_tv(row.reply),
        "ms": lambda row: f"{1000 * row.wall_s:.1f}",
        "speed-up": lambda row: f"{row.speedup:.2f}×",
    }
    if stdout.width < FULL_TABLE_COLUMNS:
        for name in ("accepted", "deferred", "TV"):
            del columns[name]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.name), *(value(row) for value in columns.values()))
    return table


def profile_table(profile: Profile) -> Table:
    """Return the times of all batch sizes, in milliseconds and relative to a single token; @ stands for the tokens in the cache."""
    table = Table("n", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for role, speed in (("expert", profile.expert), ("drafter", profile.drafter)):
        for depth in speed.depths:
            table.add_column(f"{role}\nms @{depth}", justify="right", no_wrap=True)
            table.add_column("v(n)", justify="right", no_wrap=True, vertical="bottom")
        table.add_column("padded\nto", justify="right", no_wrap=True)
    for n in SIZES:
        cells = []
        for speed in (profile.expert, profile.drafter):
            for row in speed.seconds:
                cells += [f"{1000 * row[n - 1]:.2f}", f"{row[n - 1] / row[0]:.2f}"]
            cells.append(str(speed.padding.get(n, "")))
        table.add_row(str(n), *cells)
    return table


def profile_summary(profile: Profile) -> list[str]:
    """Return lines that explain the table and what follows from it."""
    expert, drafter = profile.expert, profile.drafter
    best = min(SIZES, key=lambda n: expert.seconds[0][n - 1] / n)
    single, batch, prompt = 1 / expert.seconds[0][0], best / expert.seconds[0][best - 1], 1 / expert.prompt_s
    return [
        "v(n): time of a batch of n relative to a single token; @: tokens in the cache; padded to: a larger batch that is faster",
        f"threads (single tokens / batches): expert {_threads(expert)}, drafter {_threads(drafter)}",
        f"c, a drafter's step relative to the expert's: {drafter.seconds[0][0] / expert.seconds[0][0]:.3f}",
        f"the expert generates {number(single)} tokens/s alone, and reads {number(prompt)} tokens/s of a prompt and {number(batch)} in "
        f"batches of {best}: no lossless method gains more than {max(prompt, batch) / single:.2f}×",
        f"overlap {profile.overlap:.2f}: the part of the shorter run that is not saved when both models run at once",
    ]


def _threads(speed: Speed) -> str:
    return f"{speed.threads} / {speed.batch_threads}"


def number(value: float | None) -> str:
    """Return three significant digits, or all digits before the point; a dash for None."""
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _mean_tv(reply: Reply) -> str:
    mean = reply.fidelity.mean_tv if reply.fidelity else None
    return "–" if mean is None else f"{mean:.3f}"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.0f} %"
