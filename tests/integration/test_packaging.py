"""The checkout, pyproject.toml and the wheel name the same modules; arrows point one way."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from transformers.models import auto

from dlm.decoders import DECODERS

ROOT = Path(__file__).resolve().parent.parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]


def packages_on_disk() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    return found


def test_every_package_is_listed() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_on_disk()


@pytest.mark.parametrize("package", [p for p in FOLDERS if "." in p])
def test_link_mirrors_installed_layout(package: str) -> None:
    link = ROOT / package.replace(".", "/")
    assert link.is_symlink()
    assert link.resolve() == ROOT / FOLDERS[package]


def test_no_bare_top_level_names() -> None:
    code = (
        "import importlib.util as u;"
        "print([n for n in ('decoders','kernels','eval') if (s := u.find_spec(n))"
        f" and {str(ROOT)!r} in str(s.origin)])"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


ALLOWED = {
    "kernels": {"dlm.kernels"},
    "decoders": {"dlm.decoders", "dlm.kernels", "dlm.types", "dlm.options", "dlm.foreign"},
    "eval": {
        "dlm", "dlm.eval", "dlm.decoders", "dlm.data", "dlm.options", "dlm.cli", "dlm.published",
    },
}  # fmt: skip
"""What each folder may import of ours: kernels, decoders, dlm and eval in this order."""


def imports(file: Path) -> set[str]:
    """Absolute names a file imports of ours, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "dlm"}


@pytest.mark.parametrize("folder", ALLOWED)
def test_dependencies_point_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            allowed = any(
                name == root or name.startswith(root + ".")
                for root in ALLOWED[folder]
                if root != "dlm"
            ) or (name == "dlm" and "dlm" in ALLOWED[folder])
            assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_files_stay_short() -> None:
    for folder in set(FOLDERS.values()) | {"tests"}:
        for file in (ROOT / folder).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 400, file


def test_source_is_ascii() -> None:
    for folder in set(FOLDERS.values()):
        for file in (ROOT / folder).rglob("*.py"):
            assert file.read_text().isascii(), file


def test_nothing_says_to_install_it_from_an_index() -> None:
    """It is on none, and whoever takes the name there would be installed."""
    from_index = re.compile(r"pip install [^.\n]*\bdlm\b")
    for folder in (*FOLDERS.values(), "docs", "examples"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".md"):
                assert not from_index.search(file.read_text()), file
    assert not from_index.search((ROOT / "README.md").read_text())


@pytest.mark.parametrize("name", DECODERS)
def test_readme_lists_every_decoder_with_its_options(name: str) -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[0:1] == "|"]
    (row,) = (row for row in rows if row.startswith(f"| `{name}` "))
    decoder: Any = DECODERS[name]
    assert all(f"`{field.name}`" in row for field in fields(decoder))
    number = decoder.paper.removeprefix("arXiv:")
    assert number in row or not number[0].isdigit()


@pytest.mark.parametrize("package", ["dlm", "dlm.eval"])
def test_no_module_hides_a_public_name(package: str) -> None:
    """Importing a submodule puts it into its package, over what goes by the same name there."""
    folder = ROOT / package.replace(".", "/")
    names = set(import_module(package).__all__) - {"decoders", "kernels"}
    assert not names & {path.stem for path in folder.iterdir()}


@pytest.mark.parametrize("name", DECODERS)
def test_readme_tells_every_default(name: str) -> None:
    rows = (ROOT / "README.md").read_text().splitlines()
    (row,) = (row for row in rows if row.startswith(f"| `{name}` "))
    told = dict(re.findall(r"`(\w+)` \(([^;),]*)", row.split("|")[3]))
    for field in fields(DECODERS[name]):  # type: ignore[arg-type]
        if told.get(field.name, "none") != "none":
            default = field.default
            default = [*default] if isinstance(default, tuple) else default
            assert default == json.loads(told[field.name]), field.name


def test_what_waits_for_imports_stays_where_it_is() -> None:
    """Another thread may import meanwhile what it waits for, too."""
    waits = next(each for each in sys.meta_path if type(each).__name__ == "_AfterImport")
    seen: list[bool] = []

    class Watcher(MetaPathFinder):
        def find_spec(self, *given: object) -> None:
            seen.append(waits in sys.meta_path)

    watcher = Watcher()
    sys.meta_path.append(watcher)
    sys.meta_path.insert(0, watcher)
    try:
        found = waits.find_spec("transformers.models.auto.configuration_auto", auto.__path__)
    finally:
        sys.meta_path.remove(watcher)
        sys.meta_path.remove(watcher)
    assert found is not None
    assert seen == [True]
