"""The command: its verbs by name, and what is said when one fails.

Model text and results go to stdout, everything else to stderr. Errors that the package raises on purpose become one line and exit
code 1; wrong usage is exit code 2, Ctrl-C 130. (`check`, whose 1 is an answer, has exit code 2 for both.)
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..common.errors import SpeccascadeError
from ..common.version import __version__
from .options import in_groups
from .terminal import print_error, stdout
from .verbs.bench import bench
from .verbs.calibrate import calibrate_verb
from .verbs.chat import chat
from .verbs.check import check_verb
from .verbs.compare import compare_verb
from .verbs.doctor import doctor
from .verbs.models import models_verb
from .verbs.plan import plan
from .verbs.profile import profile_verb
from .verbs.pull import pull
from .verbs.rpc_serve import rpc_serve
from .verbs.rules import rules_verb
from .verbs.run import run
from .verbs.serve import serve
from .verbs.tune import tune

VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "chat": chat,
    "compare": compare_verb,
    "models": models_verb,
    "pull": pull,
    "rules": rules_verb,
    "calibrate": calibrate_verb,
    "profile": profile_verb,
    "plan": plan,
    "check": check_verb,
    "bench": bench,
    "tune": tune,
    "serve": serve,
    "rpc-serve": rpc_serve,
    "doctor": doctor,
}


class Verbs(TyperGroup):
    """Turns what goes wrong in any verb into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except SpeccascadeError as error:
            print_error(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            print("\ninterrupted" if stdout.is_terminal else "interrupted", file=sys.stderr)
            raise typer.Exit(130) from interruption
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has gone; there is nobody to tell
                print_error(f"{error.filename or 'stdout'}: {error.strerror or error}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still unwritten would fail again at exit
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Two local GGUF models answer as one: the small one drafts, the large one checks, you set the dial.",
)


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """What stands before the verb."""
    if version:
        print(f"speccascade {__version__}")
        raise typer.Exit


for name, verb in VERBS.items():
    app.command(name)(in_groups(verb))


def main() -> None:
    """Entry point of the console command."""
    with contextlib.suppress(OSError):  # a folder that is gone
        sys.path.append(os.getcwd())  # where a rule of the user's own is looked for last
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ? instead of a traceback
    app()
