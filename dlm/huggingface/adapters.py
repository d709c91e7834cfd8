"""What is refused of adapters that peft or transformers put into a network."""

from typing import Any


def refuse_partial(network: Any, source: object, name: str, report: Any) -> None:
    """Refuse an adapter that transformers loaded in part, and take it away again.

    Args:
        network: of transformers.
        source: where the adapter was read.
        name: of the adapter in the network.
        report: what transformers' `load_adapter` gave.

    Raises:
        ValueError: it passed weights over, for which the network has no adapted layer.
    """
    left = sorted(report.unexpected_keys)
    if left:
        network.delete_adapter(name)
        raise ValueError(
            f"load_adapter must find a layer for all of the adapter {str(source)!r}, got none for "
            f"{', '.join(left[:4])}: dlm.load(adapter=) takes names of the released code as well"
        )


def refuse_learned_prompts(network: Any) -> None:
    """Refuse a network whose inputs peft would prepare: nothing here asks for that.

    Raises:
        ValueError: its `prepare_inputs_for_generation` is another's.
    """
    found = getattr(network.prepare_inputs_for_generation, "__self__", None)
    if found is not network:
        raise ValueError(
            "prepare_inputs_for_generation must be the network's own: prompts that peft learned "
            f"have no place on a canvas of token ids, got that of a {type(found).__name__}"
        )
