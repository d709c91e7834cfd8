"""Every decoder-shaped family: its small checkpoint, loaded and as it lies in the file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import dlm
from dlm.models.families import FAMILIES
from dlm.models.loading import silence
from dlm.models.model import Model

OFFICIAL = ("llada-moe", "llada2", "rnd1", "mdlm", "bd3lm")
"""Families that only the official code wrote a checkpoint of."""


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars."""
    with silence():
        yield


@pytest.fixture(scope="session", params=[name for name in FAMILIES if name not in OFFICIAL])
def case(request: pytest.FixtureRequest, family_cases: Any) -> Any:
    """Every random checkpoint, as a `Case` of `tests/family_cases.py`."""
    return family_cases.CASES[request.param]


@pytest.fixture(scope="session", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """Every family once."""
    return str(request.param)


@pytest.fixture(scope="session")
def folder(name: str, written: Callable[[str], Path]) -> Path:
    """Its checkpoint."""
    return written(name)


@pytest.fixture(scope="session")
def asked(name: str, asks: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What a user has to say to load it."""
    return asks(name)


@pytest.fixture(scope="session")
def model(folder: Path, asked: dict[str, Any]) -> Model:
    """The family, loaded."""
    return dlm.load(folder, dtype="float32", **asked)


@pytest.fixture(scope="session")
def released(folder: Path) -> dict[str, Tensor]:
    """Its tensors under the released names."""
    return load_file(folder / "model.safetensors")
