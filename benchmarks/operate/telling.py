"""In a runner's place: tells of four blocks that train, as often as the job's id says, and nothing is trained.

`python -m benchmarks.operate.telling JOB_DIR DATASETS`; of a job `every-250-ms` each block reports every 250 ms.
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

from bll.events import BlockProgress, RunEnded, to_json

BLOCKS = 4
_STEPS = 1_000_000


def main(job_dir: Path) -> int:
    interval_s = int(job_dir.name.split("-")[1]) / 1000
    print(json.dumps({"event": "Started"}), flush=True)
    for step in range(1, _STEPS):
        for block in range(BLOCKS):
            report = BlockProgress(block, 0, step, 1.5, 0.1, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.01)
            print(to_json(report), flush=True)
        told, _, _ = select.select([sys.stdin], [], [], interval_s)
        if told:
            break
    print(to_json(RunEnded(step, finished=False)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
