"""What is fuzzed: each decoder of bytes that a client sent, or that a file holds which somebody may have changed.

A target takes any bytes. It returns whether the project accepts them, where it does or refuses them in the way that it
promises, and lets every other exception out: that is what fuzzing looks for.
"""

from __future__ import annotations

from benchmarks.fuzz import files, messages, records, specs
from benchmarks.fuzz.target import Target

TARGETS: dict[str, Target] = {**files.TARGETS, **messages.TARGETS, **records.TARGETS, **specs.TARGETS}
