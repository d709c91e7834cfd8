"""What is true of all checkpoints of one family, and how one of them tells its block size."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from dlm.options import integer, is_folder

HUB_CACHE = r"models--(?:[^/]+?--)?([^/]+)/snapshots/[0-9a-f]+/?$"
"""Where the Hub's cache keeps a checkpoint; its last part is no name."""

SETTLED = "block_size_settled"
"""Key of a configuration whose block size, the family's too, goes before what any name tells."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family; ids hold for the released vocabulary only."""

    name: str
    model_type: str  # as released
    architectures: tuple[str, ...]  # as released; the first is the network's class
    config: str  # module:class
    network: str  # module:class
    vocabularies: tuple[int, ...] = ()  # rows of the embedding in the releases
    mask_id: int | None = None  # where no configuration has it
    mask_token: str | None = None  # for a tokenizer that does not know it for the mask
    stop_ids: tuple[int, ...] = ()  # beside those a configuration names
    stop_tokens: tuple[str, ...] = ()  # the same, to be looked up in the tokenizer
    expand_token: str | None = None  # with which a network asks for another blank
    tokens: int | None = None  # ids that the released tokenizer has
    shift: bool = False  # whether the output at i predicts token i + 1
    block_size: int | None = None  # tokens of a block of attention; None looks both ways
    block_field: str | None = None  # where a configuration holds the block size
    block_switch: str | None = None  # the field that turns it on, where there is one
    causal: bool = False  # whether what is before a block sees nothing behind itself
    reordered: bool = False  # whether attention is causal once all masks stand behind all tokens
    anchors: bool = False  # whether adapters are released that put blocks behind the prompt (D2F)
    block_names: tuple[tuple[str, int | None], ...] = ()
    """Patterns in the name of a checkpoint, and the block size each stands for; None for what the
    pattern's group says."""
    opt_in: bool = False  # whether its files are those of another network, so that one must ask
    any_type: bool = False  # whether its architecture alone tells it: others have its model type
    any_architecture: bool = False  # whether its model type alone tells it
    tokenizer: str | None = None  # where its checkpoints come without one
    chat_options: tuple[tuple[str, bool], ...] = ()  # that it was trained with

    @property
    def blocks(self) -> bool:
        """Whether the attention of a checkpoint may be in blocks."""
        return self.block_field is not None or bool(self.block_names)

    def written_block(self, config: Any) -> int | None:
        """Block size that a configuration tells, else the family's.

        Raises:
            ValueError: it is none.
        """
        if self.block_switch is not None and not getattr(config, self.block_switch):
            return None
        written = None if self.block_field is None else getattr(config, self.block_field, None)
        if written is None:
            return self.block_size
        return integer(str(self.block_field), written, least=1)

    def block_of(self, config: Any, *names: str) -> int | None:
        """Block size of a checkpoint: its configuration's own, else its name's, else the family's.

        Releases of other block sizes were seen to keep the family's in their file, which is the
        configuration's own only where it is `SETTLED`. Of several names the first that tells a
        size counts.

        Raises:
            ValueError: that of the configuration is none.
        """
        written = self.written_block(config)
        if written != self.block_size or getattr(config, SETTLED, False):
            return written
        return next((size for size in map(self.named_block, names) if size), written)

    def named_block(self, name: str) -> int | None:
        """Block size that the name of a checkpoint tells, else that of the folder it leads to."""
        for last in last_parts(name):
            for pattern, size in self.block_names:
                match = re.search(pattern, last, re.IGNORECASE)
                if match:
                    return int(match[1]) if size is None else size
        return None

    def write_block(self, config: Any, size: int | None) -> None:
        """Keep the block size in the configuration, so that what is saved has it under any name."""
        if self.block_field is not None and size is not None:
            setattr(config, self.block_field, size)
        self.settle(config)

    def settle(self, config: Any) -> None:
        """Have the block size of a configuration count, whatever the name of the checkpoint."""
        if self.block_names:
            setattr(config, SETTLED, True)

    def config_class(self) -> Any:
        """The class of its configuration."""
        return named(self.config)

    def network_class(self) -> Any:
        """The class of its network."""
        return named(self.network)


def settled_by(options: Mapping[str, Any]) -> dict[str, bool]:
    """What a `config.json` says beside its own if a block size is given in its place."""
    return {} if options.get("block_size") is None else {SETTLED: True}


def named(path: str) -> Any:
    """What `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def last_parts(name: str) -> list[str]:
    """Last parts of a name that may be a folder, and of where that folder really is.

    "." and links are names too, which tell nothing of the checkpoint by themselves.
    """
    folder = Path(name)
    places = [name, str(folder.resolve())] if name and is_folder(folder) else [name]
    cached = [re.search(HUB_CACHE, place) for place in places]
    return [
        match[1] if match else place.rstrip("/").rpartition("/")[2]
        for place, match in zip(places, cached, strict=True)
    ]
