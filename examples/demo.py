"""The whole path: serve on loopback, train a network in four blocks, predict with a variance for every image, stop.

    make demo

Ends with code 0 only if the network has learned what it should and the server has stopped cleanly.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bll.config import DataConfig
from bll.data import Split, as_float, load
from bll.errors import DataError
from bll_client import Client, Prediction

BLL = Path(sys.executable).with_name("bll")
SPECS = Path(__file__).parent / "specs"
LEAST_ACCURACY = {"fashion-mnist": 0.85, "digits": 0.9}
ROWS = 512
SHOWN = 3


@dataclass(frozen=True)
class Server:
    """Where it answers."""

    address: str
    metrics_url: str


@contextmanager
def serving(data_dir: Path) -> Iterator[Server]:
    """`bll serve` on free loopback ports; afterwards it must stop cleanly."""
    command = [str(BLL), "serve", "--port", "0", "--metrics-port", "0", "--data-dir", str(data_dir)]
    log = data_dir.with_name("server.log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.match(r"bll: serving on (\S+), metrics on (\S+)", line)
            if match is None:
                sys.exit(f"demo: the server did not start: {line}{log.read_text()}")
            print(line.strip())
            yield Server(*match.groups())
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(60)
            finally:
                process.kill()
    print(f"The server has stopped with exit code {code}.")
    if code != 0:
        sys.exit(f"demo: the server did not stop cleanly: {log.read_text()}")


def choose(datasets: Path) -> tuple[Path, DataConfig, Split]:
    """The spec to train, its data and their test images: Fashion-MNIST, or digits where its images cannot be had.

    What has to be downloaded goes into `datasets`, where the server looks first.
    """
    spec = SPECS / "fashion-mnist.yaml"
    try:
        return spec, DataConfig("fashion-mnist"), load(DataConfig("fashion-mnist"), seed=0, root=datasets).test
    except DataError as error:
        print(f"Fashion-MNIST cannot be had here; training on scikit-learn's digits instead. {error}")
        return SPECS / "digits.yaml", DataConfig("digits"), load(DataConfig("digits"), seed=0).test


def show(prediction: Prediction, truth_B: NDArray[np.int64], rows: NDArray[np.intp], title: str) -> None:
    """A line per image: its class, the predicted one, and how sure the network is."""
    names = prediction.class_names
    print(f"\n{title}\n  image  is            predicted     probability  variance  of each block's latent")
    for row in rows[:SHOWN]:
        best = int(prediction.probabilities[row].argmax())
        blocks = " ".join(f"{value:.3f}" for value in prediction.posterior_variance[row])
        print(
            f"  {row:5d}  {names[truth_B[row]]:<12.12}  {names[best]:<12.12}  "
            f"{prediction.probabilities[row, best]:11.3f}  {prediction.output_variance[row]:8.3f}  {blocks}"
        )


def predict(client: Client, model_version: str, test: Split) -> None:
    """Ask the service about test images, and show some that it gets right and some that it gets wrong."""
    truth_B = test.targets[:ROWS]
    prediction = client.predict(model_version, as_float(test.inputs[:ROWS]))
    right_B = prediction.probabilities.argmax(axis=1) == truth_B
    show(prediction, truth_B, np.flatnonzero(right_B), "Right:")
    show(prediction, truth_B, np.flatnonzero(~right_B), "Wrong:")
    variance_B = prediction.output_variance
    print(
        f"\nMean variance over {len(truth_B)} test images: {variance_B[right_B].mean():.3f} where the class is right, "
        f"{variance_B[~right_B].mean():.3f} where it is wrong."
    )


def show_metrics(server: Server) -> None:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    print(f"\nMetrics for Prometheus are at {server.metrics_url}, for example:")
    wanted = ('grpc_server_handled_total{grpc_code="OK",grpc_method="Predict"', "bll_inference_batch_rows_sum")
    for line in (line for line in lines if line.startswith(wanted)):
        print(f"  {line}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="bll-demo-") as directory:
        data_dir = Path(directory) / "data"
        spec, data, test = choose(data_dir / "datasets")
        with serving(data_dir) as server, Client(server.address) as client:
            command = ["train", os.path.relpath(spec), "--job-id", "demo"]
            print(f"$ bll {' '.join(command)}", flush=True)
            if subprocess.run([str(BLL), *command, "--server", server.address], check=False).returncode != 0:
                sys.exit("demo: the job did not succeed")
            job = client.get_job("demo")
            predict(client, job.model_version, test)
            show_metrics(server)
    assert job.test is not None
    scores = job.test.mixture
    print(f"demo: dataset={data.name} accuracy={scores.accuracy:.4f} nll={scores.nll_nats:.4f}")
    return 0 if scores.accuracy >= LEAST_ACCURACY[data.name] else 1


if __name__ == "__main__":
    sys.exit(main())
