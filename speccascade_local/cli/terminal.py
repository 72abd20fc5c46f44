"""How replies look in a terminal: colours by origin, the legend, the table of a comparison.

In a pipe there are no colours, only the text as it is. In a terminal the control characters of what models, files and servers say are
shown, never obeyed. Knows nothing of verbs and options.
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

#: How each token's origin is coloured, and what it means.
ORIGINS: dict[Origin, tuple[str, str]] = {
    "accepted": ("green", "draft kept by the rule"),
    "matched": ("cyan", "draft kept by the strict test"),
    "corrected": ("bold yellow", "the expert's, for a dropped draft"),
    "bonus": ("magenta", "the expert's, after a kept draft"),
    "expert": ("blue", "the expert's, no draft"),
}
DROPPED_STYLE = "strike red"
FULL_TABLE_COLUMNS, IN_A_PIPE = 80, 200
FIRST_WORD = re.compile(r"(\s*)(\S*)")

#: Characters of an error.
LONGEST_ERROR = 1000


class PlainConsole(Console):
    """A console that takes every text as it is, without markup. options: as rich's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @property
    def obeyed(self) -> bool:
        """Whether what is written goes to a terminal, which would obey control characters."""
        return self.is_terminal or self.file.isatty()

    def render(self, *renderable: Any, **options: Any) -> Iterable[Segment]:
        """As rich does, but for the control characters that stand in texts."""
        for segment in super().render(*renderable, **options):
            yield segment._replace(text=printable(segment.text)) if self.obeyed and not segment.control else segment


stdout, stderr = PlainConsole(), PlainConsole(stderr=True)


def for_tables(width: int = IN_A_PIPE) -> Console:
    """Where a table goes: the terminal, or a pipe in which no line is broken. width: of a pipe."""
    return stdout if stdout.is_terminal else PlainConsole(width=width)


def write(text: str, end: str = "\n") -> None:
    """Put a text on stdout as it is, tabs included; in a terminal with its control characters shown."""
    stdout.file.write((printable(text) if stdout.obeyed else text) + end)
    stdout.file.flush()


def print_error(error: object) -> None:
    """One line on stderr, whatever a file put into it, and not too long."""
    print("error:", printable(" ".join(str(error).split()), LONGEST_ERROR), file=sys.stderr)


def shows_styles() -> bool:
    """Whether stdout shows styles: without them a dropped draft would read as part of the answer."""
    return stdout.is_terminal and not stdout.is_dumb_terminal


def print_tokens(tokens: Sequence[Token], *, coloured: bool, end: str = "") -> None:
    """Continue the text on stdout; plain where stdout shows no styles."""
    if coloured and shows_styles():
        stdout.print(colour_tokens(tokens), end=end, soft_wrap=True)
    else:
        write("".join(token.text for token in tokens), end)  # not through rich, which would expand tabs


def colour_tokens(tokens: Sequence[Token]) -> Text:
    """Each token in the colour of its origin; the first word of a dropped draft struck through, before what replaced it."""
    text = Text()
    for token in tokens:
        if token.dropped:
            space, word = FIRST_WORD.match(printable(token.dropped)).groups()  # type: ignore[union-attr]  # matches any text
            text.append(space).append(word, DROPPED_STYLE)
        text.append(printable(token.text), ORIGINS[token.origin][0])
    return text


def legend() -> Text:
    """One line per colour."""
    lines = [
        *((str(origin), style, meaning) for origin, (style, meaning) in ORIGINS.items()),
        ("dropped", DROPPED_STYLE, "draft thrown away"),
    ]
    return Text("\n").join(Text.assemble((name, style), (f"{'':{11 - len(name)}}{meaning}", "dim")) for name, style, meaning in lines)


def print_row(row: Row, *also: str) -> None:
    """One arm of a comparison: its name, its text in colours, and in words what was thrown away. also: arms with the same text."""
    reply = row.reply
    stdout.print(Text("; ".join((row.name, *also)), "bold"), soft_wrap=not stdout.is_terminal)
    if shows_styles():
        stdout.print(colour_tokens(reply.tokens))
    else:
        print_tokens(reply.tokens, coloured=False, end="\n")
    if isinstance(reply.rule, Route) and reply.confidence is not None and not also:
        threshold = reply.rule.threshold
        verdict = "keeps the drafter's answer" if reply.confidence >= threshold else "throws it away and asks the expert"
        stdout.print(Text(f"drafter's confidence {reply.confidence:.3f}, threshold {threshold:g}: {verdict}", "dim"), soft_wrap=True)
    dropped = [] if also else dropped_pairs(reply)
    if dropped:
        draft, instead = dropped[0]
        stdout.print(
            Text(f"drafts thrown away: {len(dropped)}; the first was {draft!r}, the expert wrote {instead!r}", "dim"), soft_wrap=True
        )
    stdout.print()


def print_figures(reply: Reply) -> None:
    """What an answer came to, on stderr: counters, clocks and account apart, for some of their names are the same."""
    groups = {"counted": reply.stats.counts(), "seconds": reply.stats.clocks()}
    groups |= {"distance from the expert": reply.fidelity.as_dict()} if reply.fidelity else {}
    for title, figures in groups.items():
        stderr.print(title)
        for name, value in figures.items():
            stderr.print(f"  {name:16} {number(value)}")


def print_groups(rows: Sequence[Row]) -> None:
    """Many arms: each text once, under the names of all that wrote it."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.reply.text, []).append(row)
    for first, *others in groups.values():
        print_row(first, *(row.name for row in others))


def comparison_table(rows: Sequence[Row]) -> Table:
    """The arms' counters and times; fits 80 columns, and leaves out some of them where there is less room."""
    columns: dict[str, Callable[[Row], str]] = {
        "tokens": lambda row: str(row.reply.stats.tokens),
        "expert\ncalls": lambda row: str(row.reply.stats.expert_calls),
        "tokens\n/block": lambda row: number(row.reply.stats.tokens_per_block),
        "accepted": lambda row: _percent(row.reply.stats.acceptance_rate if row.reply.stats.expert_calls else None),
        "deferred": lambda row: _percent(row.reply.stats.deferral_rate if row.reply.stats.expert_calls else None),
        "TV": lambda row: _distance(row.reply),
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
    """The seconds of every batch, as milliseconds and in units of a single token, @ so many tokens in the cache."""
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
    """What follows from the times, a line each."""
    expert, drafter = profile.expert, profile.drafter
    best = min(SIZES, key=lambda n: expert.seconds[0][n - 1] / n)
    single, batch, prompt = 1 / expert.seconds[0][0], best / expert.seconds[0][best - 1], 1 / expert.prompt_s
    return [
        "v(n): a batch of n in units of a single token; @: tokens in the cache; padded to: evaluated as so many, which is faster",
        f"threads (single tokens / batches): expert {_threads(expert)}, drafter {_threads(drafter)}",
        f"c, a drafter's step in units of the expert's: {drafter.seconds[0][0] / expert.seconds[0][0]:.3f}",
        f"the expert writes {number(single)} tokens/s alone, and reads {number(prompt)} of a prompt and {number(batch)} in batches of "
        f"{best}: no lossless method gains more than {max(prompt, batch) / single:.2f}×",
        f"overlap {profile.overlap:.2f}: the share of the shorter work that is not saved when both models work at once",
    ]


def _threads(speed: Speed) -> str:
    return f"{speed.threads} / {speed.batch_threads}"


def number(value: float | None) -> str:
    """Three significant digits, or all before the point; a dash for a rate that does not exist."""
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _distance(reply: Reply) -> str:
    """Mean total variation from the expert, over the reply's tokens."""
    mean = reply.fidelity.mean_tv if reply.fidelity else None
    return "–" if mean is None else f"{mean:.3f}"


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.0f} %"
