"""What is shipped: the wheel alone, in an environment without this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
HEAVY = {"bll", "bll_server", "onnx", "onnxruntime", "rich", "sklearn", "sqlalchemy", "torch", "typer", "yaml"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel, and nothing else, installed in it."""
    directory = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    target = directory / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(target), wheel], check=True)
    return target


def run_alone(installed: Path, code: str) -> str:
    """What `code` prints, run from `/` with the wheel and third-party packages, but without editable installs."""
    site = sysconfig.get_path("purelib")
    path = f"import sys; sys.path += [{str(installed)!r}, {site!r}]\n"
    command = [sys.executable, "-I", "-S", "-c", path + code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout


def test_client_of_the_wheel_loads_neither_torch_nor_onnxruntime(installed: Path) -> None:
    code = (
        "import bll_client, json\n"
        "print(json.dumps([bll_client.__file__, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    file, loaded = json.loads(run_alone(installed, code))
    assert Path(file).is_relative_to(installed)
    assert not HEAVY & set(loaded)


def test_torch_free_modules_of_the_wheel_load_no_torch(installed: Path) -> None:
    code = (
        "import bll.config, bll.errors, bll.events, bll.manifest, bll.plan\n"
        "print(bll.config.__file__, sorted({'torch', 'onnx', 'onnxruntime', 'sklearn'} & set(sys.modules)))"
    )
    file, loaded = run_alone(installed, code).split(maxsplit=1)
    assert Path(file).is_relative_to(installed)
    assert loaded.strip() == "[]"


def test_server_of_the_wheel_makes_its_job_database(installed: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, bll_server.jobs.store as store\n"
        f"print(store.__file__, store.Store(pathlib.Path({str(tmp_path)!r}) / 'bll.db').queue())"
    )
    file, jobs = run_alone(installed, code).split()
    assert Path(file).is_relative_to(installed)
    assert jobs == "[]"


def test_wheel_holds_all_packages_with_types_and_commands(installed: Path) -> None:
    for package in ("bll", "bll_client", "bll_proto", "bll_server"):
        assert (installed / package / "py.typed").exists()
    (entry_points,) = installed.glob("bll-*.dist-info/entry_points.txt")
    text = entry_points.read_text()
    assert "bll = bll_client.cli:main" in text
    assert "serve = bll_server.__main__:serve_command" in text


def test_sdist_holds_what_the_wheel_and_the_tests_are_made_from(tmp_path: Path) -> None:
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "Makefile", "README.md", "pyproject.toml", "proto/generate.py"} <= names
    assert {"bll/config.py", "tests/unit/test_packaging.py"} <= names
    assert not {name for name in names if name.startswith((".venv", ".git/", ".bll"))}
