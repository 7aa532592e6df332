"""The options and arguments that several commands have."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from bll_client.cli.files import read_duration
from bll_client.cli.output import Format

Server = Annotated[str, typer.Option("--server", envvar="BLL_SERVER", metavar="HOST:PORT", help="Where the server is.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="For people, or for programs.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label of the job; may be given again.")
]
DisplayName = Annotated[str | None, typer.Option("--name", help="A name for people.")]
Priority = Annotated[int | None, typer.Option(help="Jobs of a higher one leave the queue first; 0 unless set.")]
Preemptible = Annotated[
    bool | None,
    typer.Option("--preemptible/--not-preemptible", help="Give way to a job of a higher priority that waits."),
]
Deadline = Annotated[
    timedelta | None,
    typer.Option(
        parser=read_duration, metavar="DURATION", help="Stop and fail it after so much running time: 90s, 2h; 0: never."
    ),
]
Ttl = Annotated[
    timedelta | None,
    typer.Option(parser=read_duration, metavar="DURATION", help="Delete it so long after its end: 30m, 7d; 0: never."),
]
