"""The ``speccascade`` command: its verbs by name, and what happens when one fails.

Model text and results go to stdout, everything else to stderr. An error that the package raises on purpose becomes one line and exit
code 1. Wrong usage is exit code 2, Ctrl-C 130. For ``check`` exit code 1 is a result, so its errors exit with 2.
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
from .verbs import bench, calibrate, chat, check, compare, doctor, models, plan, profile, pull, rpc_serve, rules, run, serve, tune

#: In the order in which --help lists them.
VERBS: dict[str, Callable[..., None]] = {
    "run": run.run,
    "chat": chat.run,
    "compare": compare.run,
    "models": models.run,
    "pull": pull.run,
    "rules": rules.run,
    "calibrate": calibrate.run,
    "profile": profile.run,
    "plan": plan.run,
    "check": check.run,
    "bench": bench.run,
    "tune": tune.run,
    "serve": serve.run,
    "rpc-serve": rpc_serve.run,
    "doctor": doctor.run,
}


class Verbs(TyperGroup):
    """The verbs as a group that turns every failure into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that the command line names."""
        try:
            return super().invoke(ctx)
        except SpeccascadeError as error:
            print_error(error)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interruption:
            print("\ninterrupted" if stdout.is_terminal else "interrupted", file=sys.stderr)
            raise typer.Exit(130) from interruption
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # there the reader of the pipe has left, which is no error
                print_error(f"{error.filename or 'stdout'}: {error.strerror or error}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the buffer would fail again at exit
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
    """Handle the options that stand before the verb."""
    if version:
        print(f"speccascade {__version__}")
        raise typer.Exit


for name, verb in VERBS.items():
    app.command(name)(in_groups(verb))


def main() -> None:
    """Run the console command."""
    with contextlib.suppress(OSError):  # the working folder may be deleted
        sys.path.append(os.getcwd())  # the last place where a user's own rule is looked for
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows ? instead of a traceback
    app()
