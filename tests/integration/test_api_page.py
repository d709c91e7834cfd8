"""docs/api.md: the reference of public names is what their docstrings say."""

import runpy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import dlm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What `docs/api.py` defines."""
    return runpy.run_path(str(ROOT / "docs" / "api.py"))


def test_the_page_is_rendered_from_the_docstrings(script: dict[str, Any]) -> None:
    """If this fails, run `python docs/api.py`."""
    assert (ROOT / "docs" / "api.md").read_text() == script["page"]()


def test_it_holds_every_public_name(script: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for name in {*dlm.__all__} - {"__version__", "decoders", "kernels"}:
        assert f"\n### dlm.{name}\n" in page
    for owner, names in script["METHODS"].items():
        assert all(hasattr(getattr(dlm, owner), name) for name in names)


@pytest.mark.parametrize("name", ["generate", "load", "infill", "log_likelihoods", "as_model"])
def test_every_argument_is_listed(name: str) -> None:
    """In the call and in the list below it."""
    page = (ROOT / "docs" / "api.md").read_text()
    entry = page.split(f"\n### dlm.{name}\n")[1].split("\n### ")[0]
    for argument in signature(getattr(dlm, name)).parameters.values():
        shown = f"**{argument.name}" if argument.kind is argument.VAR_KEYWORD else argument.name
        assert entry.count(f"- `{shown}`: ") == 1
        assert f"    {shown}" in entry or f"({shown}" in entry or f" {shown}" in entry
