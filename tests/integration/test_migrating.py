"""docs/migrating.md and the index: what stands there can be given, and every page is listed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.models.model import Model

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROMPT = "Compute: 6*8"
BLANKS = "Compute: 6*8=[MASK:4]"


def fragments() -> list[str]:
    """Every piece of code in the right columns."""
    rows = [line for line in (DOCS / "migrating.md").read_text().splitlines() if line[:1] == "|"]
    found = [piece for row in rows for piece in re.findall(r"`([^`]+)`", row.split(" | ")[-1])]
    return sorted({x for x in found if not x.startswith("dlm ") and x not in NAMED})


NAMED = ("path", 'decoder="schedule"')
"""Words of a right column that are no code by themselves."""


@pytest.fixture(scope="module")
def tiny() -> Model:
    """The built-in model."""
    return dlm.load()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("code", fragments())
def test_what_the_right_columns_say_can_be_given(tiny: Model, code: str) -> None:
    names: dict[str, Any] = {"dlm": dlm, "model": tiny, "prompt": PROMPT, "text": BLANKS}
    if "max_gen_length" in code:
        asks = replace(tiny, spec=replace(tiny.spec, expand_id=40))
        call = code if code.startswith("dlm.") else f"dlm.infill(model, text, {code})"
        assert eval(call, {**names, "model": asks}).forwards[0] >= 1
    elif re.match(r"[a-z_]+=", code):
        options = {"gen_length": 8, **eval(f"dict({code})", names)}
        assert len(dlm.generate(tiny, PROMPT, **options).tokens[0]) == options["gen_length"]
    else:
        out = dlm.generate(tiny, PROMPT, gen_length=4)
        assert eval(code, {**names, "out": out}) is not None


def test_there_are_rows_of_every_peer() -> None:
    text = (DOCS / "migrating.md").read_text()
    assert len(fragments()) > 40
    for section in text.split("\n## ")[1:-1]:
        assert "| there | here |" in section
        assert "\n- " in section


def test_the_index_lists_every_page_once() -> None:
    listed = re.findall(r"^- \[.*?\]\((.*?)\)", (DOCS / "README.md").read_text(), re.MULTILINE)
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert sorted(listed) == sorted({*pages, "benchmarks/"})
