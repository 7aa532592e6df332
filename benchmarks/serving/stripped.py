"""Our server with metrics off and a graph that computes probabilities alone: what those cost is the difference.

python -m benchmarks.serving.stripped FLAGS        as `bll serve`
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from bll.manifest import MODEL_FILE, file_digest, read_manifest

_KEPT = "probabilities"


def main(argv: list[str]) -> int:
    (data_dir,) = (Path(flag.partition("=")[2]) for flag in argv if flag.startswith("--data-dir="))
    for graph in data_dir.glob(f"models/*/*/{MODEL_FILE}"):
        _cut(graph)
    from bll_server.__main__ import serve_command
    from bll_server.models.session import ModelSession

    def infer(self: ModelSession, rows: Any) -> dict[str, Any]:
        return self._run(rows)

    ModelSession.infer = infer  # type: ignore[method-assign]
    _silence()
    return serve_command(argv)


def _cut(graph: Path) -> None:
    import onnx.utils

    folder = graph.parent
    manifest = read_manifest(folder)
    onnx.utils.extract_model(str(graph), str(graph), ["input"], [_KEPT])
    outputs = tuple(output for output in manifest.outputs if output.name == _KEPT)
    replace(manifest, outputs=outputs, model_digest=file_digest(graph)).write(folder)


def _silence() -> None:
    import prometheus_client

    from bll_server.metrics.inference import RowHistogram

    kinds = (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram, RowHistogram)
    for kind in kinds:
        for method in ("inc", "observe", "set"):
            if hasattr(kind, method):
                setattr(kind, method, lambda self, *_, **__: None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
