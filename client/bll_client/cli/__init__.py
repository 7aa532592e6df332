"""The `bll` command.

Only this module is loaded by the base install; `app` needs the extra `cli`. Extras add subcommands of their own
through entry points of the group `bll.commands`: callables that take the rest of the command line and return an exit
code. They run without the extra `cli`.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from bll_client.cli.exits import ExitCode

EXTRAS = {"plan": "train", "serve": "serve", "token": "serve"}
"""Subcommands that come with an extra, and its name: known here to say what is missing."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line, by default the process's; the exit code (`exits.ExitCode`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    try:
        for command in entry_points(group="bll.commands", name=name):
            return int(command.load()(arguments[1:]))
        if name in EXTRAS:
            return _missing(f"bll {name}", EXTRAS[name])
        from bll_client.cli.app import run

        return run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "bll").startswith("bll"):
            raise
        return _missing(f"bll {name} (no module {error.name!r})", EXTRAS.get(name, "cli"))


def _missing(what: str, extra: str) -> int:
    print(f"{what} needs more than the base install: pip install 'bll[{extra}]'", file=sys.stderr)
    return ExitCode.USAGE
