"""A job that is planned in no time, and then waits until it is stopped."""

import sys

_PROGRAM = (
    "import json, sys; print(json.dumps({'event': 'Started'}), flush=True);"
    "[sys.exit() for line in sys.stdin if line == 'stop\\n']"
)
WAIT = (sys.executable, "-c", _PROGRAM)
"""Runs every job of a server that is given this command."""
SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "latent": {"units": 4, "readout_units": 8},
    "executor": {"name": "sequential"},
    "epochs": 1,
}
