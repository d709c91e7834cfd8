"""The input of the benchmarks that run whole decodings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dlm.bench.shapes import Shape, build, shape_of
from dlm.bench.timing import Told, silent
from dlm.generation import generate
from dlm.models.model import Model
from dlm.options import integer
from dlm.outputs import Generation
from dlm.settings import Settings


@dataclass(frozen=True, slots=True)
class Work:
    """A network and what to decode with it; prompts are random tokens.

    Raises:
        ValueError: an option is out of range.
    """

    shape: str
    batch_sizes: tuple[int, ...]
    prompt_length: int
    gen_length: int
    block_length: int
    layers: int | None = None
    device: str | None = None
    dtype: str = "auto"
    decoder: str = "low_confidence"
    decoder_options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    cache: str = "none"
    refresh_answer_every: int | None = None
    refresh_prompt_every: int | None = None
    refresh_decoded_every: int | None = None
    repeats: int = 5
    told: Told = silent  # called before every timed call

    def __post_init__(self) -> None:
        for name in ("prompt_length", "repeats"):
            integer(name, getattr(self, name), least=1)
        for size in self.batch_sizes:
            integer("batch_size", size, least=1)
        Settings(**self.options)
        shape_of(self.shape, self.layers)

    @property
    def block(self) -> int:
        """Tokens in a block; at most the tokens to decode."""
        return min(self.block_length, self.gen_length)

    @property
    def options(self) -> dict[str, Any]:
        """Options of a generation, which never stops early: a random network would by chance."""
        return {
            "decoder": self.decoder,
            "decoder_options": {**self.decoder_options},
            "gen_length": self.gen_length,
            "block_length": self.block_length,
            "steps": self.steps,
            "cache": self.cache,
            **self.intervals,
            "stop_at_eos": False,
        }

    @property
    def intervals(self) -> dict[str, int | None]:
        """Intervals at which cached keys and values are recomputed."""
        names = ("refresh_answer_every", "refresh_prompt_every", "refresh_decoded_every")
        return {name: getattr(self, name) for name in names}

    @property
    def sizes(self) -> Shape:
        """The shape of the network."""
        return shape_of(self.shape, self.layers)

    def model(self) -> Model:
        """Create the network."""
        return build(self.sizes, self.device, self.dtype)

    def case(self, model: Model, **more: Any) -> dict[str, Any]:
        """The case that a result describes."""
        return {
            "shape": self.shape,
            "layers": self.sizes.layers,
            "device": model.device.type,
            "dtype": str(model.network.dtype).removeprefix("torch."),
            "decoder": self.decoder,
            **({"decoder_options": {**self.decoder_options}} if self.decoder_options else {}),
            "steps": self.steps,
            "cache": self.cache,
            **{name: every for name, every in self.intervals.items() if every},
            "prompt_length": self.prompt_length,
            "gen_length": self.gen_length,
            "block_length": self.block_length,
            "repeats": self.repeats,
            **more,
        }

    def decode(self, model: Model, prompts: list[list[int]], **more: Any) -> Generation:
        """Decode prompts; `more` overrides the options."""
        return generate(model, prompts, **{**self.options, **more})


def random_prompts(model: Model, lengths: list[int]) -> list[list[int]]:
    """Random token ids below the stop tokens and the mask, which end the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    least = min(model.spec.stop_ids)
    return [torch.randint(least, (n,), generator=generator).tolist() for n in lengths]


def agreement(one: list[list[int]], other: list[list[int]]) -> float:
    """Share of positions with equal tokens."""
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
