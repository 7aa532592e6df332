"""What `bll` prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import DownloadColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bll_client import (
    BlockProgress,
    BlockStatus,
    Dataset,
    Evaluation,
    Job,
    JobMetrics,
    Model,
    ModelVersion,
    Prediction,
)

PIPE_WIDTH = 10_000
"""Columns of what is not a terminal: lines are for programs there, and never wrapped."""


class Format(StrEnum):
    """Of a command's output."""

    TABLE = "table"
    JSON = "json"


def console() -> Console:
    """Standard output as it is now. Nothing that comes from a server is taken for markup."""
    found = Console(markup=False, highlight=False, emoji=False)
    return found if found.is_terminal else Console(markup=False, highlight=False, emoji=False, width=PIPE_WIDTH)


def plain(value: Any) -> Any:
    """`value` in JSON's types: instants as RFC 3339, durations in seconds, what is not finite as null."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document; with no indent, one line."""
    print(json.dumps(plain(value), indent=indent), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper(), no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_fields(values: Mapping[str, str]) -> None:
    """A name and a value on each line, without those that are empty."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in values.items():
        if value:
            table.add_row(name, value)
    console().print(table)


def bare(name: str) -> str:
    """The id in a resource name."""
    return name.partition("/")[2]


def when(instant: datetime | None) -> str:
    return instant.astimezone().strftime("%Y-%m-%d %H:%M:%S") if instant else ""


def span(duration: timedelta | None) -> str:
    """In whole seconds."""
    return str(timedelta(seconds=round(duration.total_seconds()))) if duration is not None else ""


def scores(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    mixture = evaluation.mixture
    return f"accuracy {mixture.accuracy:.4f}, NLL {mixture.nll_nats:.4f} nats, ECE {mixture.ece:.4f}"


def show_job(job: Job) -> None:
    """How the job stands, and what it trains."""
    show_state(job)
    if job.plan:
        for warning in job.plan.warnings:
            print(f"warning: {warning}")
        print()
        print_table(
            ("block", "layers", "parameters", "FLOPs", "activation bytes", "sends"),
            (
                (
                    str(k),
                    ", ".join(b.layers),
                    str(b.parameters),
                    str(b.flops),
                    str(b.activation_bytes),
                    "x".join(map(str, b.output_shape)),
                )
                for k, b in enumerate(job.plan.blocks)
            ),
        )


def show_state(job: Job) -> None:
    progress = job.progress
    print_fields(
        {
            "name": job.name,
            "display name": job.display_name,
            "owner": job.owner,
            "labels": " ".join(f"{key}={value}" for key, value in sorted(job.labels.items())),
            "priority": str(job.priority or ""),
            "preemptible": "yes" if job.preemptible else "",
            "deadline": str(job.max_run_duration or ""),
            "study": job.study,
            "parameters": " ".join(f"{field}={value}" for field, value in job.parameters.items()),
            "state": job.state + (f": {job.state_reason}" if job.state_reason else ""),
            "in the queue": str(job.queue_position or ""),
            "error": f"{job.error.status}: {job.error.message}" if job.error else "",
            "progress": f"step {progress.step} of {progress.total_steps}" if progress else "",
            "speed": f"{progress.steps_per_s:.3g} steps/s, {progress.samples_per_s:.0f} samples/s" if progress else "",
            "remaining": span(progress.remaining if progress else None),
            "validation": scores(job.validation),
            "test": scores(job.test),
            "model": job.model_version,
            "created": when(job.create_time),
            "started": when(job.start_time),
            "ended": when(job.end_time),
            "ran": str(job.run_duration or ""),
            "deleted after": str(job.ttl_after_finish or ""),
            "deleted at": when(job.expire_time),
        }
    )


def show_jobs(jobs: Iterable[Job]) -> None:
    print_table(
        ("job", "state", "progress", "remaining", "model", "created"),
        (
            (
                bare(job.name),
                job.state,
                f"{job.progress.step}/{job.progress.total_steps}" if job.progress else "",
                span(job.progress.remaining if job.progress else None),
                bare(job.model_version) or job.spec.get("model_id", ""),
                when(job.create_time),
            )
            for job in jobs
        ),
    )


def show_datasets(datasets: Iterable[Dataset]) -> None:
    print_table(
        ("data set", "state", "format", "train rows", "test rows", "row", "bytes", "created"),
        (
            (
                bare(dataset.name),
                "built in" if dataset.built_in else dataset.state,
                "" if dataset.built_in else dataset.format,
                str(dataset.report.train_rows) if dataset.report else "",
                str(dataset.report.test_rows) if dataset.report else "",
                "x".join(map(str, dataset.report.input_shape)) if dataset.report else "",
                str(dataset.report.stored_bytes) if dataset.report else "",
                when(dataset.create_time),
            )
            for dataset in datasets
        ),
    )


def show_dataset(dataset: Dataset) -> None:
    """What was found in it, and how often each class occurs."""
    report = dataset.report
    print_fields(
        {
            "name": dataset.name,
            "data.name": dataset.data_name,
            "state": "built in" if dataset.built_in else dataset.state,
            "error": f"{dataset.error.status}: {dataset.error.message}" if dataset.error else "",
            "rows": f"{report.train_rows} for training, {report.test_rows} for testing" if report else "",
            "row": f"{report.dtype} [{', '.join(map(str, report.input_shape))}]" if report else "",
            "target": f"[{', '.join(map(str, report.target_shape))}]" if report and report.target_shape else "",
            "digest": report.dataset_digest if report else "",
            "bytes": str(report.stored_bytes) if report else "",
            "created": when(dataset.create_time),
        }
    )
    if report:
        print()
        rows = ((count.name, str(count.train_count), str(count.test_count)) for count in report.classes)
        print_table(("class", "train", "test"), rows)


@contextmanager
def transfer() -> Iterator[Callable[[int, int], None] | None]:
    """Draws how far a file has come, on a terminal's stderr."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield None
        return
    with Bar(*Bar.get_default_columns(), DownloadColumn(), console=errors, transient=True) as bar:
        task = bar.add_task("upload", total=None)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


def show_blocks(blocks: Iterable[BlockStatus]) -> None:
    """One line for each block."""
    print_table(
        ("block", "state", "worker", "device", "step", "samples/s", "waited", "blocked", "checkpoint"),
        (
            (
                str(block.block),
                block.state,
                "" if block.worker is None else str(block.worker),
                block.device,
                *(_pace(block.progress) if block.progress else ("", "", "", "")),
                f"{block.checkpoint_step} at {when(block.checkpoint_time)}" if block.checkpoint_time else "",
            )
            for block in blocks
        ),
    )


def _pace(report: BlockProgress) -> tuple[str, ...]:
    waits = (report.wait, report.send_wait)
    return (str(report.step), f"{report.samples_per_s:.0f}", *(f"{wait.total_seconds():.1f} s" for wait in waits))


def show_metrics(metrics: JobMetrics) -> None:
    """One line for each report of each block, and for each evaluation."""
    print_table(
        ("block", "step", "loss", "KL", "accuracy", "variance", "agreement"),
        (
            (
                str(series.block),
                str(report.step),
                *(f"{value:.4f}" for value in (report.loss_nats, report.kl_nats, report.accuracy)),
                *(f"{value:.4f}" for value in (report.posterior_variance, report.agreement)),
            )
            for series in metrics.blocks
            for report in series.reports
        ),
    )
    for evaluation in metrics.evaluations:
        print(f"{evaluation.split} step {evaluation.step}: {scores(evaluation)}")


def show_versions(models: Iterable[Model]) -> None:
    """One line for each version of each model."""
    print_table(
        ("version", "blocks", "classes", "test accuracy", "bytes", "created"),
        (_version_row(version) for model in models for version in model.versions),
    )


def _version_row(version: ModelVersion) -> tuple[str, ...]:
    tests = [f"{e.mixture.accuracy:.4f}" for e in version.evaluations if e.split == "test"]
    return (
        bare(version.name),
        str(version.num_blocks),
        str(len(version.class_names)),
        "".join(tests),
        str(version.size_bytes),
        when(version.create_time),
    )


def show_prediction(prediction: Prediction) -> None:
    """One line for each row of the input."""
    print_table(
        ("row", "class", "probability", "variance", "entropy", "disagreement", "latent variance of each block"),
        (
            (
                str(row),
                label,
                f"{prediction.probabilities[row].max():.4f}",
                f"{prediction.output_variance[row]:.4f}",
                f"{prediction.entropy_nats[row]:.4f}",
                f"{prediction.exit_disagreement_nats[row]:.4f}",
                " ".join(f"{variance:.4f}" for variance in prediction.posterior_variance[row]),
            )
            for row, label in enumerate(prediction.labels)
        ),
    )
