"""The README's ten lines run, print what it says, and links and files of README and docs exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"\d+\.\d+")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_lines_of_the_readme_print_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,), (expected,) = fenced("python"), fenced("text")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", expected)
    # Another processor rounds differently, and twenty epochs carry that into the digits printed.
    found, said = ([float(n) for n in NUMBER.findall(text)] for text in (printed.getvalue(), expected))
    assert found == pytest.approx(said, abs=0.05)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text())
    assert targets or path.name == "results.md"  # generated: it links to charts, once there are some
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_file_tree_of_the_readme_names_folders_that_exist() -> None:
    (tree,) = re.findall(r"^## Files\n\n```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            parent, name = name, ""
        assert (ROOT / parent / name).is_dir(), f"{parent}{name} is not a folder"
