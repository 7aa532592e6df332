"""`bll serve`, or `python -m bll_server`: serve until told to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys

_OVERTAKEN = b"!"
"""Through the pipe that ends the server, where a signal sends a dot."""


def serve_command(argv: list[str]) -> int:
    """Serve with the flags in `argv`; returns the exit status once SIGTERM, SIGINT or another server has ended it."""
    gc.disable()  # imports leave nothing to collect, and looking for it is a tenth of the start
    from pydantic import ValidationError

    from bll_server import logs
    from bll_server.settings import Settings

    try:
        settings = Settings.from_flags(argv)
    except ValidationError as error:
        for problem in error.errors():
            flag = "".join(f"--{part}: ".replace("_", "-") for part in problem["loc"])
            print(f"bll serve: {flag}{problem['msg']}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 2
    logs.configure(settings.log_format)
    # A pipe, since a signal handler may do little else safely than write to one.
    told, tell = os.pipe()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        signal.signal(number, lambda number, frame: os.write(tell, b"."))

    from bll_server.app import CannotStart, Server

    def overtaken() -> None:
        os.write(tell, _OVERTAKEN)

    try:
        server = Server(settings, overtaken=overtaken)
    except CannotStart as error:
        print(f"bll serve: {error}", file=sys.stderr)  # noqa: T201 - for the one who typed the command
        return 1
    print(f"bll: serving on {server.address}, metrics on {server.metrics_url}", flush=True)  # noqa: T201 - the contract
    gc.freeze()
    gc.enable()
    why = os.read(told, 1)
    for number in signals:
        signal.signal(number, signal.SIG_DFL)  # asked a second time, end at once
    status = 1 if why == _OVERTAKEN else 0
    if not server.stop():
        logging.shutdown()
        os._exit(status)  # the interpreter would wait for the thread
    return status


if __name__ == "__main__":
    sys.exit(serve_command(sys.argv[1:]))
