"""A data set that a server has checked and keeps under an id: plain arrays, and what is known of them.

`<root>/.uploaded/<id>/content` holds `train_inputs.npy`, `train_targets.npy`, `test_inputs.npy`, `test_targets.npy` and
`content.json`. The server alone writes there, after it has checked everything, and moves the folder in by one rename:
so it is there whole or not at all, never changes, and is read without checking it again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bll.data.dataset import Content, Split, Summary
from bll.data.mapped import mapped
from bll.errors import InvalidConfig, Violation

PREFIX = "datasets/"
"""Of the names in `DataConfig.name`: `datasets/<id>`."""
FOLDER = ".uploaded"
CONTENT = "content"
ID = re.compile(r"[a-z][a-z0-9-]{0,62}")

_DESCRIPTION = "content.json"
_ARRAYS = ("train_inputs", "train_targets", "test_inputs", "test_targets")


def read(name: str, root: Path | None) -> Content:
    """The data set called `name`; its inputs stay on the disk. Raises InvalidConfig if none is stored so."""
    folder = _folder(name, root)
    train_inputs, train_targets, test_inputs, test_targets = (folder / f"{array}.npy" for array in _ARRAYS)
    description = _description(folder)
    return Content(
        Split(mapped(train_inputs), np.load(train_targets, allow_pickle=False)),
        Split(mapped(test_inputs), np.load(test_targets, allow_pickle=False)),
        tuple(description["class_names"]),
        description["digest"],
    )


def summary(name: str, root: Path | None) -> Summary:
    """What is known of it, without its rows. Raises InvalidConfig as `read` does."""
    values = _description(_folder(name, root))
    tuples = {field: tuple(values[field]) for field in ("input_shape", "class_names", "target_shape")}
    return Summary(**{**values, **tuples})


def write(content: Content, folder: Path) -> None:
    """Store `content` in `folder`, which is empty. Raises OSError."""
    for array, rows in zip(_ARRAYS, _arrays(content), strict=True):
        with (folder / f"{array}.npy").open("xb") as file:
            # As np.save does, but for a full disk, which that would tell without its number.
            npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(rows))
            file.write(rows.reshape(-1).view(np.uint8).data)
    description = vars(content.summary())
    (folder / _DESCRIPTION).write_text(json.dumps(description))


def _arrays(content: Content) -> tuple[NDArray[Any], ...]:
    return content.train.inputs, content.train.targets, content.test.inputs, content.test.targets


def _folder(name: str, root: Path | None) -> Path:
    dataset_id = name.removeprefix(PREFIX)
    folder = root / FOLDER / dataset_id / CONTENT if root and ID.fullmatch(dataset_id) else None
    if folder is None or not folder.is_dir():
        rule = "must be datasets/{id} of a data set that this server keeps and has found READY"
        raise InvalidConfig([Violation("data.name", f"{rule}, got {name!r:.200}")])
    return folder


def _description(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / _DESCRIPTION).read_text())
    return values
