"""The options of a generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dlm.decoders import make
from dlm.options import integer, known, number
from dlm.types import AnyDecoder

CACHES = ("none",)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of `generate`, `stream` and `infill`, validated.

    Raises:
        ValueError: an option breaks its rule, or two cannot work together.
    """

    decoder: str | AnyDecoder = "low_confidence"  # name or instance
    decoder_options: Mapping[str, Any] = field(default_factory=dict)  # for a name
    gen_length: int = 256  # tokens
    block_length: int | None = 32  # tokens; None for one block over all
    steps: int | None = None  # forwards budget of a row; None for as many as it takes
    temperature: float = 0.0  # 0 takes the arg max
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 0.0  # classifier-free guidance
    cache: str = "none"
    seed: int = 0
    row_keys: Sequence[int] | None = None  # keys the noise of each row; its index if None
    stop_at_eos: bool = True
    suppress_tokens: Sequence[int] = ()  # never sampled
    begin_suppress_tokens: Sequence[int] = ()  # never sampled at a row's first blank
    confidence_eos_eot_inf: bool = False  # commit stop tokens last
    return_trajectory: bool = False

    def __post_init__(self) -> None:
        integer("gen_length", self.gen_length, least=1)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)
        if self.steps is not None:
            integer("steps", self.steps, least=1)
        number("temperature", self.temperature, least=0.0)
        if self.top_k is not None:
            integer("top_k", self.top_k, least=1)
        if self.top_p is not None and number("top_p", self.top_p, least=0.0, most=1.0) == 0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p!r}")
        number("cfg_scale", self.cfg_scale, least=-1.0)
        known("cache", self.cache, CACHES)
        sixty_four_bits("seed", self.seed)
        for key in self.row_keys or ():
            sixty_four_bits("row_keys", key)
        policy = self.policy()
        if self.confidence_eos_eot_inf and "token_probability" in policy.needs:
            raise ValueError(
                f"confidence_eos_eot_inf ranks masked positions only, and {self.decoder!r} also "
                "ranks committed ones: use suppress_tokens to keep stop tokens away"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings out of keyword options, naming the close match of an unknown one."""
        for name in options:
            known("option", name, (f.name for f in fields(cls)))
        return cls(**options)

    def policy(self) -> AnyDecoder:
        """The decoder, made from its name if need be."""
        if isinstance(self.decoder, str):
            return make(self.decoder, **self.decoder_options)
        if self.decoder_options:
            raise ValueError(
                "decoder_options go with a decoder's name; this decoder is an instance, "
                f"got {dict(self.decoder_options)}"
            )
        return self.decoder

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse suppressed ids outside the vocabulary."""
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            for token in getattr(self, name):
                if integer(name, token, least=0) >= vocab_size:
                    raise ValueError(
                        f"{name} must hold ids below the vocabulary size {vocab_size}, got {token}"
                    )


def sixty_four_bits(name: str, value: int) -> None:
    """Refuse what is no int in [-2^63, 2^64)."""
    if integer(name, value, least=-(1 << 63)) >= 1 << 64:
        raise ValueError(f"{name} must be below 2^64, got {value}")
