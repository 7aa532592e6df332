"""The commands of `bll study`, and how a comparison is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bll_client import Scores, Study, StudyState, Trial
from bll_client._channel import DEFAULT_TARGET
from bll_client.cli import output as show
from bll_client.cli.connection import again, connect
from bll_client.cli.exits import ExitCode
from bll_client.cli.files import read_labels, read_study
from bll_client.cli.options import Deadline, DisplayName, Labels, Output, Preemptible, Priority, Server, Ttl
from bll_client.cli.output import Format, bare, console, print_json, print_table, when

studies = typer.Typer(
    help="Studies: many jobs over a grid or a random search.", no_args_is_help=True, rich_markup_mode=None
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="studies/{id}, or the id.")]


@studies.command("create")
def create_study(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A study in YAML or JSON.")],
    study_id: Annotated[str | None, typer.Option("--id", help="The study's id; the server chooses by default.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Watch it until all trials are over.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Show the trials; train nothing.")] = False,
    label: Labels = None,
    name: DisplayName = None,
    priority: Priority = None,
    preemptible: Preemptible = None,
    deadline: Deadline = None,
    ttl: Ttl = None,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Queue a job for each trial of a study. What may be said of a job is said of each."""
    values = read_study(file)
    with connect(server) as client:
        study = client.create_study(
            values.pop("base"),
            values.pop("parameters"),
            **values,
            study_id=study_id,
            validate_only=validate_only,
            labels=read_labels(label or ()),
            display_name=name,
            priority=priority,
            preemptible=preemptible,
            max_run_duration=deadline,
            ttl_after_finish=ttl,
        )
        if watch and not validate_only:
            raise typer.Exit(_follow(client.watch_study(study.name), study.name, output, server))
    _show(study, output)


@studies.command("get")
def get_study(study: StudyName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Compare the trials of one study."""
    with connect(server) as client:
        _show(client.get_study(study), output)


@studies.command("list")
def list_studies(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """List studies, newest first."""
    with connect(server) as client:
        found = list(islice(client.list_studies(), limit))
    _show_list(found) if output is Format.TABLE else print_json(found)


@studies.command("watch")
def watch_study(study: StudyName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Watch one study until all trials are over; the exit code is its outcome. With -o json: JSON lines."""
    with connect(server) as client:
        name = client.get_study(study).name
        raise typer.Exit(_follow(client.watch_study(name), name, output, server))


@studies.command("cancel")
def cancel_study(study: StudyName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Stop all trials of one study that are not over, for good."""
    with connect(server) as client:
        _show(client.cancel_study(study), output)


@studies.command("delete")
def delete_studies(
    names: Annotated[list[str], typer.Argument(metavar="STUDY...", help="studies/{id}, or the id.")],
    server: Server = DEFAULT_TARGET,
) -> None:
    """Forget studies that are over or paused, with their jobs, events, checkpoints and logs. Their models stay."""
    with connect(server) as client:
        for name in names:
            client.delete_study(name)


def _follow(changes: Iterator[Study], name: str, output: Format, server: str) -> ExitCode:
    """Show a study each time that it has changed, until it is over; its outcome. Ctrl-C leaves it alone."""
    try:
        with _view(output) as view:
            for study in changes:
                view.show(study)
    except KeyboardInterrupt:
        print(f"\nDetached: {name} goes on. To watch it again: {again('study', name, server)}", file=sys.stderr)
        return ExitCode.DETACHED
    view.end(study)
    return ExitCode.OK if study.state is StudyState.SUCCEEDED else ExitCode.JOB_FAILED


class LineView:
    """A line for each trial whose state has changed."""

    def __init__(self) -> None:
        self._states: dict[int, str] = {}

    def show(self, study: Study) -> None:
        for trial in study.trials:
            if trial.state != self._states.get(trial.number):
                self._states[trial.number] = trial.state
                print(f"trial {trial.number} {trial.state}: {_in_words(trial)}", flush=True)

    def end(self, study: Study) -> None:
        """Show the study when it is over."""
        print()
        _show(study, Format.TABLE)


class JsonView(LineView):
    """The study on a line, each time that it has changed."""

    def show(self, study: Study) -> None:
        print_json(study, indent=None)

    def end(self, study: Study) -> None:
        """It has been told."""


class LiveView(LineView):
    """The comparison, redrawn."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, study: Study) -> None:
        self._live.update(Group(Text(_head(study), style="bold"), _comparison(study)))


@contextmanager
def _view(output: Format) -> Iterator[LineView]:
    if output is Format.JSON:
        yield JsonView()
    elif console().is_terminal:
        with Live(console=console(), refresh_per_second=4, transient=True) as live:
            yield LiveView(live)
    else:
        yield LineView()


def _show(study: Study, output: Format) -> None:
    if output is Format.JSON:
        print_json(study)
        return
    show.print_fields(
        {
            "name": study.name,
            "display name": study.base.display_name if study.base else "",
            "owner": study.owner,
            "state": study.state if study.counts else "",
            "trials": _counts(study),
            "best": ""
            if study.best_trial is None
            else f"trial {study.best_trial}, by {study.metric} on validation rows",
            "model": study.best_model_version,
            "created": when(study.create_time),
        }
    )
    print()
    console().print(_comparison(study))


def _show_list(found: Iterable[Study]) -> None:
    rows = ((bare(study.name), study.state, _counts(study), when(study.create_time)) for study in found)
    print_table(("study", "state", "trials", "created"), rows)


def _head(study: Study) -> str:
    best = "" if study.best_trial is None else f" · best so far: trial {study.best_trial}"
    return f"{study.name} {study.state} · {_counts(study)}{best}"


def _counts(study: Study) -> str:
    if study.counts is None:
        return str(len(study.trials))
    counts = vars(study.counts)
    parts = [f"{count} {name}" for name, count in counts.items() if count and name != "total"]
    return f"{counts['total']}: {', '.join(parts)}" if parts else "0"


def _comparison(study: Study) -> Table:
    """One line for each trial; the best one is bold, and marked."""
    fields = [parameter.field for parameter in study.parameters]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "trial", *fields):
        table.add_column(column, no_wrap=True)
    if study.counts is None:  # nothing but parameters to tell
        for trial in study.trials:
            table.add_row("", str(trial.number), *_values(trial, fields))
        return table
    table.add_column("state", no_wrap=True)
    for column in ("step", "accuracy", "NLL", "ECE", "samples/s", "test accuracy"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for trial in study.trials:
        is_best = trial.number == study.best_trial
        table.add_row(
            "*" if is_best else "",
            str(trial.number),
            *_values(trial, fields),
            trial.state,
            f"{trial.progress.step}/{trial.progress.total_steps}" if trial.progress else "",
            *_scores(trial.validation),
            f"{trial.progress.samples_per_s:.0f}" if trial.progress else "",
            f"{trial.test.accuracy:.4f}" if trial.test else "",
            bare(trial.model_version),
            style="bold" if is_best else None,
        )
    return table


def _values(trial: Trial, fields: Iterable[str]) -> Iterator[str]:
    for field in fields:
        value = trial.parameters.get(field, "")
        yield f"{value:.6g}" if isinstance(value, float) else str(value)


def _scores(scores: Scores | None) -> tuple[str, ...]:
    return tuple(f"{value:.4f}" for value in (scores.accuracy, scores.nll_nats, scores.ece)) if scores else ("", "", "")


def _in_words(trial: Trial) -> str:
    texts = [f"{field}={value}" for field, value in trial.parameters.items()]
    if trial.state_reason:
        texts.append(f"({trial.state_reason})")
    if trial.validation:
        accuracy, nll, ece = _scores(trial.validation)
        texts.append(f"validation accuracy {accuracy}, NLL {nll} nats, ECE {ece}")
    return " ".join(texts)
