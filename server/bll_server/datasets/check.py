"""Reads one uploaded file without trust, in a process of its own: `python -m bll_server.datasets.check`.

Arguments are the file, its format, an empty folder to work in, and the limits as JSON. The content is left in
`content` in that folder; one line on stdout tells the report, or why there is none. Every limit is the system's:
whatever a decoder does, memory, processor time and what is written to the disk end where this process is told. The end
of stdin means that the server is gone, and ends this process at once.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bll.data import stored
from bll.data.dataset import Content
from bll.errors import DataError
from bll_server.datasets.archives import NO_ROOM
from bll_server.datasets.formats import LABEL, class_counts, read
from bll_server.datasets.records import ClassCount, Format, Report
from bll_server.datasets.validator import Limits
from bll_server.own_memory import data_bytes


def _report(content: Content, folder: Path) -> Report:
    train, test = content.train, content.test
    num_classes = len(content.class_names)
    counts = zip(
        content.class_names,
        class_counts(train.targets, num_classes),
        class_counts(test.targets, num_classes),
        strict=True,
    )
    return Report(
        train_rows=len(train),
        test_rows=len(test),
        input_shape=train.inputs.shape[1:],
        target_shape=train.targets.shape[1:],
        dtype=str(train.inputs.dtype),
        classes=tuple(ClassCount(*count) for count in counts),
        dataset_digest=content.digest,
        stored_bytes=sum(file.stat().st_size for file in folder.iterdir()),
    )


def _answer(upload: Path, kind: Format, folder: Path, limits: Limits) -> dict[str, Any]:
    scratch, target = folder / "scratch", folder / stored.CONTENT
    try:
        scratch.mkdir()
        content = read(kind, upload, scratch, limits.disk_bytes)
        target.mkdir()
        stored.write(content, target)
        shutil.rmtree(scratch)
        return {"report": asdict(_report(content, target))}
    except (DataError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            return {"broken_rule": f"{LABEL}: must be readable in {limits.memory_bytes} bytes of memory"}
        return {"broken_rule": str(error)}
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return {"no_room": error.strerror}


def _limit(limits: Limits) -> None:
    # DATA, not AS: libraries reserve many times the addresses that they use, and a mapped file takes addresses alone.
    for kind, value in (
        (resource.RLIMIT_DATA, data_bytes() + limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _end_with_the_server() -> None:
    os.read(sys.stdin.fileno(), 1)  # not a buffered read: its lock would be held when this process ends
    os._exit(1)


def main(upload: Path, kind: Format, folder: Path, limits: Limits) -> int:
    """The process's exit status."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is not an answer
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    _limit(limits)
    try:
        answer = _answer(upload, kind, folder, limits)
    except Exception:  # noqa: BLE001 - the server reads the status, and its log has the trace
        traceback.print_exc()
        return 1
    print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Format(sys.argv[2]), Path(sys.argv[3]), Limits(**json.loads(sys.argv[4]))))
