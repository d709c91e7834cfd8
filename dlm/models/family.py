"""The facts that all checkpoints of a family share, and how a checkpoint states its block size."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dlm.options import integer, is_folder

HUB_CACHE = r"models--(?:[^/]+?--)?([^/]+)/snapshots/[0-9a-f]+/?$"
"""Path of a checkpoint in the Hub's cache, whose last part is a commit and not a name."""

SETTLED = "block_size_settled"
"""Key of a configuration that makes its block size override the one in a checkpoint's name."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family; its token ids are valid only for the released vocabulary."""

    name: str
    model_type: str  # as released
    architectures: tuple[str, ...]  # as released; the first is the class of the network
    config: str  # module:class
    network: str  # module:class
    vocabularies: tuple[int, ...] = ()  # rows of the embedding in the releases
    mask_id: int | None = None  # used if no configuration has it
    mask_token: str | None = None  # looked up in a tokenizer that declares no mask token
    stop_ids: tuple[int, ...] = ()  # in addition to those in the configurations
    stop_tokens: tuple[str, ...] = ()  # likewise, looked up in the tokenizer
    expand_token: str | None = None  # with which the network asks for another blank
    tokens: int | None = None  # number of ids that the released tokenizer has
    shift: bool = False  # whether the output at i predicts token i + 1
    block_size: int | None = None  # tokens of an attention block; None is bidirectional
    block_field: str | None = None  # field of the configuration with the block size
    block_switch: str | None = None  # field that turns block attention on, if there is one
    causal: bool = False  # whether attention is causal before the active block
    reordered: bool = False  # whether attention is causal in an order that puts masks last
    anchors: bool = False  # whether released adapters start blocks after the prompt (D2F)
    block_names: tuple[tuple[str, int | None], ...] = ()
    """Patterns of checkpoint names with the block size of each; None stands for the number in the
    pattern's group."""
    opt_in: bool = False  # whether its files look like another network's, so the user must name it
    any_type: bool = False  # whether its architecture identifies it under any model type
    any_architecture: bool = False  # whether its model type identifies it
    tokenizer: str | None = None  # Hub id of the tokenizer of checkpoints that have none
    chat_options: tuple[tuple[str, bool], ...] = ()  # template variables it was trained with

    @property
    def blocks(self) -> bool:
        """Whether checkpoints of the family may have attention in blocks."""
        return self.block_field is not None or bool(self.block_names)

    def written_block(self, config: Any) -> int | None:
        """Block size in a configuration, or else the family's; None without block attention.

        Raises:
            ValueError: it is no positive int.
        """
        if self.block_switch is not None and not getattr(config, self.block_switch):
            return None
        written = None if self.block_field is None else getattr(config, self.block_field, None)
        if written is None:
            return self.block_size
        return integer(str(self.block_field), written, least=1)

    def block_of(self, config: Any, *names: str) -> int | None:
        """Block size of a checkpoint: its configuration's own, else its name's, else the family's.

        Some releases of another block size still have the family's in their file. A configuration
        that states the family's size therefore counts as its own only if it is `SETTLED`. Among
        several names, the first that contains a size counts.

        Raises:
            ValueError: the size in the configuration is no positive int.
        """
        written = self.written_block(config)
        if written != self.block_size or getattr(config, SETTLED, False):
            return written
        return next((size for size in map(self.named_block, names) if size), written)

    def named_block(self, name: str) -> int | None:
        """Block size in a checkpoint's name, or in that of the folder the name resolves to."""
        for last in last_parts(name):
            for pattern, size in self.block_names:
                match = re.search(pattern, last, re.IGNORECASE)
                if match:
                    return int(match[1]) if size is None else size
        return None

    def write_block(self, config: Any, size: int | None) -> None:
        """Store the block size in the configuration, so that saving keeps it under any name."""
        if self.block_field is not None and size is not None:
            setattr(config, self.block_field, size)
        self.settle(config)

    def settle(self, config: Any) -> None:
        """Make a configuration's block size override the one in the checkpoint's name."""
        if self.block_names:
            setattr(config, SETTLED, True)

    def config_class(self) -> Any:
        """The family's configuration class, imported."""
        return named(self.config)

    def network_class(self) -> Any:
        """The family's network class, imported."""
        return named(self.network)


def settled_by(options: Mapping[str, Any]) -> dict[str, bool]:
    """The entry to add to a `config.json` whose block size the user overrides: `SETTLED`."""
    return {} if options.get("block_size") is None else {SETTLED: True}


def named(path: str) -> Any:
    """Import what `module:name` refers to."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def last_parts(name: str) -> list[str]:
    """Last parts of a checkpoint's name and, if it is a folder, of its resolved path.

    The path is needed because "." and links say nothing about the checkpoint by themselves.
    """
    folder = Path(name)
    places = [name, str(folder.resolve())] if name and is_folder(folder) else [name]
    cached = [re.search(HUB_CACHE, place) for place in places]
    return [
        match[1] if match else place.rstrip("/").rpartition("/")[2]
        for place, match in zip(places, cached, strict=True)
    ]
