"""Loading a model for a command, with no more noise than it is worth."""

from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from dlm.models.model import Model


BUILT_IN = "built-in"


def model_name(name: str | None, adapter: str | None) -> str:
    """What results call a model."""
    base = BUILT_IN if name is None else name
    return base if adapter is None else f"{base} + {adapter}"


def load_model(
    name: str | None, device: str | None, dtype: str, *, adapter: str | None = None, **facts: Any
) -> "Model":
    """The model, with the bar of transformers for one that takes its time.

    The built-in model loads in a moment and needs none; nor does a stderr that is no terminal.
    An adapter is added to the weights, so that a forward costs what it does without one. `facts`
    are those of `dlm.load`: family, block_size, mask_id.
    """
    if adapter is not None:
        facts |= {"adapter": adapter, "merge": True}
    console = Console(stderr=True)
    with console.status("loading"):
        from dlm.models.loading import load, silence
    if name is not None:
        return load(name, device=device, dtype=dtype, **facts)
    with silence():
        return load(name, device=device, dtype=dtype, **facts)
