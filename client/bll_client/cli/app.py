"""The commands of `bll`, noun and verb."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from bll_client import ClientError, DatasetState, Head, Job
from bll_client._channel import DEFAULT_TARGET
from bll_client.cli import connection
from bll_client.cli import output as show
from bll_client.cli.connection import again, connect
from bll_client.cli.exits import ExitCode, exit_code
from bll_client.cli.files import UploadFormat, read_array, read_labels, read_spec
from bll_client.cli.options import Deadline, DisplayName, Labels, Output, Preemptible, Priority, Server, Ttl
from bll_client.cli.output import Format
from bll_client.cli.studies import studies
from bll_client.cli.watching import follow as follow_job

EPILOG = "\n".join(
    [
        "'bll serve' runs a server: pip install 'bll[serve]'.",
        "",
        "'bll plan' forecasts what a spec costs on this machine: pip install 'bll[train]'.",
        "",
        "\b",  # keeps the lines below as they are
        "Exit codes:",
        *(f"{code.value:>5}  {code.meaning}" for code in ExitCode),
    ]
)

app = typer.Typer(
    callback=connection.options,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
jobs = typer.Typer(help="Training jobs.", no_args_is_help=True, rich_markup_mode=None)
datasets = typer.Typer(help="Data sets to learn from.", no_args_is_help=True, rich_markup_mode=None)
models = typer.Typer(help="Published models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(jobs, name="jobs")
app.add_typer(studies, name="study")
app.add_typer(datasets, name="datasets")
app.add_typer(models, name="models")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="jobs/{id}, or the id.")]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="datasets/{id}, or the id.")]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The id for the newest version, or {id}/versions/{version}.")
]


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code. Errors are told on stderr, without a trace."""
    try:
        app(arguments, prog_name="bll")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else ExitCode.OK
    except (ClientError, OSError) as error:
        violations = getattr(error, "violations", ())
        for text in violations or (error,):
            print(f"bll: {text}", file=sys.stderr)
        return exit_code(error)
    return ExitCode.OK


@app.command()
def train(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", exists=True, dir_okay=False, help="A job spec in YAML or JSON.")
    ],
    detach: Annotated[bool, typer.Option("--detach", help="Do not watch the job.")] = False,
    job_id: Annotated[str | None, typer.Option(help="The job's id; the server chooses by default.")] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check and plan; train nothing.")] = False,
    label: Labels = None,
    name: DisplayName = None,
    priority: Priority = None,
    preemptible: Preemptible = None,
    deadline: Deadline = None,
    ttl: Ttl = None,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Submit a job and watch it. With -o json, watching prints JSON lines: the events, then the job."""
    values = read_spec(spec)
    with connect(server) as client:
        job = client.create_job(
            values,
            job_id=job_id,
            validate_only=validate_only,
            labels=read_labels(label or ()),
            display_name=name,
            priority=priority,
            preemptible=preemptible,
            max_run_duration=deadline,
            ttl_after_finish=ttl,
        )
        if detach or validate_only:
            _show(job, output)
            return
        if output is Format.TABLE:
            for warning in job.plan.warnings if job.plan else ():
                print(f"warning: {warning}")
            print(f"{job.name}: {len(job.plan.blocks) if job.plan else 0} blocks", flush=True)
        raise typer.Exit(follow_job(client, job, 0, output, again("jobs", job.name, server)))


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 50,
    filter: Annotated[
        str, typer.Option("--filter", help="Terms that all hold: 'state=QUEUED,RUNNING model_id=digits labels.team=x'.")
    ] = "",
    order_by: Annotated[
        str, typer.Option(metavar="FIELD[ desc]", help="create_time, priority or model_id.")
    ] = "create_time desc",
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """List jobs, newest first unless asked otherwise."""
    with connect(server) as client:
        found = list(islice(client.list_jobs(filter, order_by), limit))
    show.show_jobs(found) if output is Format.TABLE else show.print_json(found)


@jobs.command("get")
def get_job(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Show one job."""
    with connect(server) as client:
        _show(client.get_job(job), output)


@jobs.command("watch")
def watch_job(
    job: JobName,
    after: Annotated[int, typer.Option(min=0, help="Number of the last event seen.")] = 0,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Watch one job until it is over; the exit code is its outcome. With -o json: JSON lines."""
    with connect(server) as client:
        found = client.get_job(job)
        raise typer.Exit(follow_job(client, found, after, output, again("jobs", found.name, server)))


@jobs.command("cancel")
def cancel_job(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Stop one job for good."""
    with connect(server) as client:
        _show(client.cancel_job(job), output)


@jobs.command("pause")
def pause_job(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Stop one job at its next checkpoint, to be resumed later."""
    with connect(server) as client:
        _show(client.pause_job(job), output)


@jobs.command("resume")
def resume_job(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Queue one paused job again."""
    with connect(server) as client:
        _show(client.resume_job(job), output)


@jobs.command("retry")
def retry_job(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Queue one failed or cancelled job again, to go on from its newest checkpoint."""
    with connect(server) as client:
        _show(client.retry_job(job), output)


@jobs.command("blocks")
def list_blocks(job: JobName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Show how each block of one job stands."""
    with connect(server) as client:
        found = client.list_blocks(job)
    show.show_blocks(found) if output is Format.TABLE else show.print_json(found)


@jobs.command("metrics")
def get_job_metrics(
    job: JobName,
    points: Annotated[int, typer.Option(min=1, help="Show at most so many steps of each block.")] = 20,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Show how one job fared over its steps."""
    with connect(server) as client:
        found = client.get_job_metrics(job, max_points=points)
    show.show_metrics(found) if output is Format.TABLE else show.print_json(found)


@jobs.command("logs")
def tail_logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many bytes.")] = 0,
    server: Server = DEFAULT_TARGET,
) -> None:
    """Print what the training process of one job has written."""
    with connect(server) as client:
        for chunk in client.tail_logs(job, offset, follow=follow):
            sys.stdout.buffer.write(chunk.data)
            sys.stdout.buffer.flush()


@jobs.command("update")
def update_job(
    job: JobName,
    label: Labels = None,
    remove_label: Annotated[
        list[str] | None, typer.Option("--remove-label", metavar="KEY", help="May be given again.")
    ] = None,
    name: DisplayName = None,
    priority: Priority = None,
    preemptible: Preemptible = None,
    deadline: Deadline = None,
    ttl: Ttl = None,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Change what was said of one job beside its spec; other labels stay."""
    added, removed = read_labels(label or ()), remove_label or ()
    with connect(server) as client:
        labels, etag = None, ""
        if added or removed:
            found = client.get_job(job)
            labels = {key: value for key, value in {**found.labels, **added}.items() if key not in removed}
            etag = found.etag
        changed = client.update_job(
            job,
            etag=etag,
            labels=labels,
            display_name=name,
            priority=priority,
            preemptible=preemptible,
            max_run_duration=deadline,
            ttl_after_finish=ttl,
        )
        _show(changed, output)


@jobs.command("delete")
def delete_jobs(
    names: Annotated[list[str], typer.Argument(metavar="JOB...", help="jobs/{id}, or the id.")],
    server: Server = DEFAULT_TARGET,
) -> None:
    """Forget jobs that are over or paused, with their events, checkpoints and logs. Their models stay."""
    with connect(server) as client:
        for name in names:
            client.delete_job(name)


@datasets.command("upload")
def upload_dataset(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", exists=True, help="A .npz file, a tar, or a folder, which is packed.")
    ],
    dataset_id: Annotated[str | None, typer.Option("--id", help="The data set's id; else the file's name.")] = None,
    form: Annotated[
        UploadFormat | None, typer.Option("--format", help="Of a tar; files of .npz and folders show theirs.")
    ] = None,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Send a data set, from where an earlier try broke, and show what was found in it."""
    with connect(server) as client, show.transfer() as on_progress:
        found = client.upload_dataset(path, dataset_id, format=form, on_progress=on_progress)
    show.show_dataset(found) if output is Format.TABLE else show.print_json(found)
    if found.state is DatasetState.FAILED:
        raise typer.Exit(ExitCode.USAGE)


@datasets.command("list")
def list_datasets(server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """List built-in and uploaded data sets."""
    with connect(server) as client:
        found = list(client.list_datasets())
    show.show_datasets(found) if output is Format.TABLE else show.print_json(found)


@datasets.command("show")
def show_dataset(dataset: DatasetName, server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """Show what was found in one data set."""
    with connect(server) as client:
        found = client.get_dataset(dataset)
    show.show_dataset(found) if output is Format.TABLE else show.print_json(found)


@datasets.command("delete")
def delete_dataset(dataset: DatasetName, server: Server = DEFAULT_TARGET) -> None:
    """Remove an uploaded data set, or an unfinished upload."""
    with connect(server) as client:
        client.delete_dataset(dataset)


@models.command("list")
def list_models(server: Server = DEFAULT_TARGET, output: Output = Format.TABLE) -> None:
    """List models with their newest versions."""
    with connect(server) as client:
        found = list(client.list_models())
    show.show_versions(found) if output is Format.TABLE else show.print_json(found)


@models.command("get")
def get_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models/{id}, or the id.")],
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Show all versions of one model."""
    with connect(server) as client:
        found = client.get_model(model)
    show.show_versions([found]) if output is Format.TABLE else show.print_json(found)


@models.command("download")
def download_model(
    model: ModelName,
    directory: Annotated[Path, typer.Argument(help="Must not exist or be empty.")],
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Fetch the files of one version, verified by SHA-256."""
    with connect(server) as client:
        files = client.download_model(model, directory)
    print("\n".join(map(str, files))) if output is Format.TABLE else show.print_json({"files": files})


@app.command()
def predict(
    model: ModelName,
    inputs: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            exists=True,
            dir_okay=False,
            help="A .npy or .npz file of shape (rows, ...). Bytes are scaled to [0, 1]; other numbers go as they are.",
        ),
    ],
    array: Annotated[str | None, typer.Option(help="Which array of an .npz file that has several.")] = None,
    head: Annotated[Head, typer.Option(help="Which distribution over classes.")] = Head.MIXTURE,
    server: Server = DEFAULT_TARGET,
    output: Output = Format.TABLE,
) -> None:
    """Print a class, its probability and the uncertainties for each row."""
    values = read_array(inputs, array)
    with connect(server) as client:
        prediction = client.predict(model, values, head)
    show.show_prediction(prediction) if output is Format.TABLE else show.print_json(prediction)


def _show(job: Job, output: Format) -> None:
    show.show_job(job) if output is Format.TABLE else show.print_json(job)
