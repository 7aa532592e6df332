"""What is known of a data set, and its JSON: the form in which the data set's folder keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Format(StrEnum):
    """How an uploaded file holds a data set."""

    NPZ = "npz"
    NPY = "npy"
    IDX = "idx"
    IMAGES = "images"


class State(StrEnum):
    """Where a data set stands."""

    VALIDATING = "validating"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Header:
    """What an upload is announced as."""

    dataset_id: str
    format: Format
    total_bytes: int
    sha256: str
    """Of the whole file, in hex."""


@dataclass(frozen=True)
class Announcement:
    """An upload that is not whole yet."""

    header: Header
    owner: str = ""
    """Whose token announced it; empty where the server asks for none."""


@dataclass(frozen=True)
class ClassCount:
    """How often a class is a target."""

    name: str
    train_count: int
    test_count: int


@dataclass(frozen=True)
class Report:
    """What was found in a data set."""

    train_rows: int
    test_rows: int
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    dtype: str
    classes: tuple[ClassCount, ...]
    dataset_digest: str
    stored_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why a data set is FAILED: a rule that its content breaks, or no room to unpack it."""

    description: str
    no_room: bool = False


@dataclass(frozen=True)
class Dataset:
    """An uploaded data set."""

    header: Header
    state: State
    create_time: datetime
    report: Report | None = None
    failure: Failure | None = None
    owner: str = ""
    """Whose token uploaded it; empty where the server asks for none."""

    @property
    def dataset_id(self) -> str:
        return self.header.dataset_id


def header_from_dict(values: dict[str, Any]) -> Header:
    """The header whose `asdict` was written."""
    return Header(**{**values, "format": Format(values["format"])})


def announcement_from_dict(values: dict[str, Any]) -> Announcement:
    """The announcement whose `asdict` was written; older servers wrote the header alone."""
    if "header" not in values:
        return Announcement(header_from_dict(values))
    return Announcement(header_from_dict(values["header"]), values["owner"])


def report_from_dict(values: dict[str, Any]) -> Report:
    """The report whose `asdict` was written."""
    shapes = {name: tuple(values[name]) for name in ("input_shape", "target_shape")}
    classes = tuple(ClassCount(**count) for count in values["classes"])
    return Report(**{**values, **shapes, "classes": classes})


def dataset_to_dict(dataset: Dataset) -> dict[str, Any]:
    """`dataset` in JSON's types."""
    return asdict(dataset) | {"create_time": dataset.create_time.timestamp()}


def dataset_from_dict(values: dict[str, Any]) -> Dataset:
    """The data set that `dataset_to_dict` wrote."""
    return Dataset(
        header=header_from_dict(values["header"]),
        state=State(values["state"]),
        create_time=datetime.fromtimestamp(values["create_time"], UTC),
        report=report_from_dict(values["report"]) if values["report"] else None,
        failure=Failure(**values["failure"]) if values["failure"] else None,
        owner=values.get("owner", ""),
    )
