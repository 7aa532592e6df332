"""Whether a row's answer depends on the rows that it runs with."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.record import Row, write
from benchmarks.serving.effort import Effort
from benchmarks.serving.model import graph, samples

_TOLERANCE = 1e-5
_COMPANY = (2, 3, 4, 7, 8, 15, 16, 32, 64)


def sameness(effort: Effort) -> None:
    """Run rows alone and in company, and write the largest difference of any output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(graph(), sess_options=options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = samples(max(_COMPANY))
    one_by_one = [session.run(names, {"input": rows[i : i + 1]}) for i in range(len(rows))]
    alone = [np.concatenate(parts) for parts in zip(*one_by_one, strict=True)]
    largest, relative, same, compared = 0.0, 0.0, 0, 0
    for count in _COMPANY:
        for first, together in zip(alone, session.run(names, {"input": rows[:count]}), strict=True):
            difference = np.abs(first[:count] - together)
            largest = max(largest, float(difference.max()))
            relative = max(relative, float((difference / np.maximum(np.abs(together), 1e-6)).max()))
            same += int((difference == 0).sum())
            compared += difference.size
    found = [
        Row("largest difference of an output, alone and in company", largest, "", target=_TOLERANCE, op="<="),
        Row("the same, relative to the output", relative, ""),
        Row("values that are the same to the last bit", same / compared, "fraction"),
    ]
    notes = f"Every output of the graph, on the CPU, in batches of {', '.join(map(str, _COMPANY))}."
    path = write("serving", "sameness", "python -m benchmarks.serving sameness", [0], found, notes, effort.results)
    print(path.read_text(), flush=True)
