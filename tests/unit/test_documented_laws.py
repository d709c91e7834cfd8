"""Pages and docstrings name all decoders that score by the tempered and filtered law."""

import re
from pathlib import Path

import pytest

from dlm.decoders import DECODERS

ROOT = Path(__file__).parents[2]
SAMPLING = {name for name, one in DECODERS.items() if getattr(one, "scores", "") == "sampling"}


@pytest.mark.parametrize(
    ("page", "passage"),
    [
        ("serving.md", r"of the tempered and filtered for (.*?), of\s+adjusted\s+logits"),
        ("huggingface.md", r"change nothing but what (.*?) go by, which is the sampled law"),
    ],
)
def test_pages_name_those_that_score_by_the_sampled_law(page: str, passage: str) -> None:
    found = re.search(passage, (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found is not None
    assert set(re.findall(r"`(\w+)`", found[1])) == SAMPLING


@pytest.mark.parametrize("name", DECODERS)
def test_docstrings_say_that_they_do(name: str) -> None:
    told = " ".join((DECODERS[name].__doc__ or "").split())
    assert ("tempered and filtered law" in told) is (name in SAMPLING)
