"""Generate the Python modules of bll.v1 and the descriptor set of the KServe v2 contract.

python proto/generate.py           write them
python proto/generate.py --check   exit 1 and name the files that are stale
python proto/generate.py --image FILE   write all of bll.v1 with its imports, for `buf lint` and `buf breaking`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

import google.rpc
from grpc_tools import protoc

HERE = Path(__file__).parent
V1 = sorted((HERE / "bll_proto" / "v1").glob("*.proto"))
OIP = sorted((HERE / "bll_proto" / "oip").glob("*.proto"))
PLUGINS = [f"--plugin={path}" for path in sorted(Path(sys.executable).parent.glob("protoc-gen-mypy*"))]
OIP_SET = Path("bll_proto/oip/grpc_service.binpb")
INCLUDES = [
    f"-I{HERE}",
    f"-I{resources.files('grpc_tools') / '_proto'}",
    f"-I{Path(next(iter(google.rpc.__path__))).parents[1]}",
]


def generate(target: Path) -> None:
    """Write every generated file below `target`."""
    _protoc(
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *map(str, V1),
    )
    if OIP:
        (target / OIP_SET).parent.mkdir(parents=True, exist_ok=True)
        # A stub for the type checker, no module: the classes are made in a private pool at run time.
        _protoc(f"--descriptor_set_out={target / OIP_SET}", f"--mypy_out=quiet:{target}", *map(str, OIP))


def image(target: Path) -> None:
    """Write bll.v1 and what it imports as one descriptor set, with comments."""
    _protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={target}", *map(str, V1))


def stale(target: Path) -> list[Path]:
    """The generated files that differ from those checked in, or that nothing generates any more."""
    fresh = {path.relative_to(target) for path in target.rglob("*") if path.is_file()}
    patterns = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "*.binpb")
    present = {path.relative_to(HERE) for pattern in patterns for path in HERE.rglob(pattern)}
    differing = {p for p in fresh & present if (target / p).read_bytes() != (HERE / p).read_bytes()}
    return sorted(differing | (fresh ^ present))


def _protoc(*arguments: str) -> None:
    if protoc.main(["protoc", *PLUGINS, *INCLUDES, *arguments]) != 0:
        sys.exit("protoc failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    if options.image:
        image(options.image)
    elif options.check:
        with tempfile.TemporaryDirectory() as directory:
            generate(Path(directory))
            if files := stale(Path(directory)):
                sys.exit("stale, run `make protos`: " + ", ".join(map(str, files)))
    else:
        generate(HERE)


if __name__ == "__main__":
    main()
