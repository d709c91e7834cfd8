"""The model families, and loading their checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.models.spec import ModelSpec

__all__ = ["Model", "ModelSpec"]

_HOMES = {"Model": "model", "ModelSpec": "spec"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, because importing torch takes seconds."""
    if name in _HOMES:
        return getattr(import_module(f"dlm.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dlm.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
