"""The validated options of a generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from dlm import foreign
from dlm.constraints.constraint import Constraint
from dlm.decoders import DECODERS
from dlm.given import unpack
from dlm.models.spec import ModelSpec
from dlm.options import boolean, integer, integers, known, number, pairs, plain, writable
from dlm.policy import policy_of
from dlm.traits import CACHES, Traits
from dlm.types import AnyDecoder

LARGEST_SCALE = 1e6
"""Limit of guidance scales and biases: beyond any practical use, and finite in float32, though not
in float16."""
FILTERS = {"top_k": None, "top_p": 1, "min_p": 0}
"""Options that truncate the sampling distribution, with the value (beside None) that truncates
nothing."""
LARGEST_NOISE = 1e30
"""Limit of `position_temperature`: Gumbel noise of this scale is finite in float32."""
SWITCHES = (
    "stop_at_eos", "pad_after_eos", "confidence_eos_eot_inf", "return_trajectory", "return_order",
)  # fmt: skip
"""Boolean options."""
REFRESHES = {
    "refresh_every": None, "refresh_around": 0, "refresh_answer_every": None,
    "refresh_prompt_every": None, "refresh_decoded_every": None,
}  # fmt: skip
"""Refresh options of the cache, with their defaults."""
WITHIN = ("refresh_every", "refresh_decoded_every")
"""Refresh options that also apply where keys and values before a block are final."""
ELSEWHERE = (
    "decoder", "decoder_options", "gen_length", "block_length", "steps", "seed", "row_keys",
    "return_order", "policy", "stop", "logit_bias", "constraint",
)  # fmt: skip
"""Options that no forward pass reads: they act through the decoder, the canvas, its rows or
`biases`, or on what the caller gets."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of `generate`, `stream` and `infill`, validated.

    Raises:
        ValueError: an option is invalid, or two options conflict.
    """

    decoder: str | AnyDecoder = "low_confidence"  # name or instance
    decoder_options: Mapping[str, Any] | None = None  # of a decoder given by name
    gen_length: int = 256  # tokens
    block_length: int | None = 32  # tokens; None for a single block
    steps: int | None = None  # budget of forward passes for a row; None has no limit
    temperature: float = 0.0  # 0 takes the arg max
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    cfg_scale: float = 0.0  # classifier-free guidance
    cache: str = "none"  # key-value cache: "none", "prefix" or "dual"
    refresh_every: int | None = None  # passes between refreshes within a block; None never
    refresh_around: int = 0  # tokens on either side of a block recomputed with it
    refresh_answer_every: int | None = None  # passes; None: at every refresh
    refresh_prompt_every: int | None = None  # passes; None: with every answer refresh
    refresh_decoded_every: int | None = None  # passes; None: at every pass of its block
    suffix_window: int | None = None  # masks visible after a block; None sees all
    seed: int = 0
    position_temperature: float = 0.0  # 0 ranks positions by score alone
    row_keys: Sequence[int] | None = None  # noise key of each row; its index if None
    stop_at_eos: bool = True
    pad_after_eos: bool = False  # fill masks after a stop token before it is final
    stop: str | Sequence[str] = ()  # texts that end a row
    suppress_tokens: Sequence[int] = ()  # never sampled
    begin_suppress_tokens: Sequence[int] = ()  # never sampled at a row's first blank
    logit_bias: Mapping[int, float] | None = None  # token id to the value added to its logit
    confidence_eos_eot_inf: bool = False  # commit stop tokens last
    constraint: Constraint | Sequence[Constraint | None] | None = None  # one, or one per prompt
    return_trajectory: bool = False
    return_order: bool = False
    return_top_tokens: int = 0  # most likely tokens to list for each written one
    policy: AnyDecoder = field(init=False, repr=False, compare=False)
    """The decoder, made once with the settings, as its options may name a large file.
    `dataclasses.replace` makes new settings, and a new decoder if it was given by name."""
    biases: tuple[tuple[int, float], ...] = field(init=False, repr=False, compare=False)
    """Token ids and the values added to their logits, sorted, without those of 0."""

    def __post_init__(self) -> None:
        unpack(self, ("row_keys", "suppress_tokens", "begin_suppress_tokens", "constraint"))
        integer("gen_length", self.gen_length, least=1)
        if self.block_length is not None:
            integer("block_length", self.block_length, least=1)
        if self.steps is not None:
            integer("steps", self.steps, least=1)
        number("temperature", self.temperature, least=0.0)
        self.check_filters()
        warmth = self.position_temperature
        number("position_temperature", warmth, least=0.0, most=LARGEST_NOISE)
        number("cfg_scale", self.cfg_scale, least=-1.0, most=LARGEST_SCALE)
        known("cache", self.cache, CACHES)
        self.check_refreshes()
        if self.suffix_window is not None:
            integer("suffix_window", self.suffix_window, least=0)
            if self.refresh_answer_every is not None:
                raise ValueError(
                    "suffix_window goes with all of an answer that is seen, and must be None with "
                    f"refresh_answer_every, got {self.suffix_window}"
                )
        integer("seed", self.seed, least=-(1 << 63), most=(1 << 64) - 1)
        if self.row_keys is not None:
            integers("row_keys", self.row_keys, least=-(1 << 63), most=(1 << 64) - 1)
        _ = self.stops  # validates `stop`
        object.__setattr__(self, "biases", biases_of(self.logit_bias))
        for name in SWITCHES:
            boolean(name, getattr(self, name))
        integer("return_top_tokens", self.return_top_tokens, least=0)
        object.__setattr__(self, "policy", policy_of(self.decoder, self.decoder_options))
        plain(self)
        traits = Traits.of(self.policy)
        self.check_ranking(traits)
        self.check_cache(traits)
        self.check_padding(traits)
        self.check_constraint()

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a row.

        Raises:
            ValueError: `stop` is no text or sequence of texts, or one of them is empty.
        """
        given = (self.stop,) if isinstance(self.stop, str) else self.stop
        texts = isinstance(given, Sequence) and all(isinstance(x, str) and x for x in given)
        if not texts:
            raise ValueError(f"stop must be a text or several, none empty, got {self.stop!r}")
        return tuple(writable(text, "a text of stop") for text in given)

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled, rather than the most likely taken."""
        return self.temperature > 0

    @property
    def of_steps(self) -> tuple[Any, ...]:
        """The options that forward passes read; rows with equal ones can share forward passes.

        Of the temperature they read only whether tokens are sampled: each row has its own.
        """
        names = [f.name for f in fields(self) if f.name not in (*ELSEWHERE, *FILTERS)]
        kept = [getattr(self, "draws" if name == "temperature" else name) for name in names]
        listed = (isinstance(x, Sequence) and not isinstance(x, str) for x in kept)
        each = (tuple(x) if many else x for x, many in zip(kept, listed, strict=True))
        return (*each, *self.filters.items())

    @property
    def filters(self) -> dict[str, float]:
        """The filters that can truncate anything that is sampled or scored, by name."""
        if not self.draws and Traits.of(self.policy).scores == "model":
            return {}
        given = {name: getattr(self, name) for name in FILTERS}
        return {name: x for name, x in given.items() if x not in (None, FILTERS[name])}

    def check_refreshes(self) -> None:
        """Reject invalid refresh options, and any of them without a cache."""
        for name, default in REFRESHES.items():
            value = getattr(self, name)
            if value is None and default is None:
                continue
            integer(name, value, least=1 if default is None else 0)
            if value != default and self.cache == "none":
                raise ValueError(
                    f"{name} goes with cache 'prefix' or 'dual', got {value} with 'none'"
                )

    def check_cache(self, traits: Traits) -> None:
        """Reject a cache that the decoder is incorrect with."""
        every = self.refresh_decoded_every
        if every not in (None, 1) and not traits.reads_masks:
            does = "looks ahead" if traits.branches > 1 else "reads or changes what is decoded"
            raise ValueError(
                f"refresh_decoded_every must be None or 1 for {traits.name}, which {does}, "
                f"got {every}"
            )
        if self.cache not in traits.caches:
            reason = (
                "it reaches back to earlier blocks"
                if traits.cross_block
                else "it declares that it needs more of the network afresh"
            )
            way = getattr(self.policy, "takes_caches_with", None)
            hint = f"; with decoder_options={way} it takes one" if way else ""
            allowed = " or ".join(map(repr, traits.caches))
            raise ValueError(
                f"cache must be {allowed} for {traits.name}, as {reason}, got {self.cache!r}{hint}"
            )

    def check_padding(self, traits: Traits) -> None:
        """Reject `pad_after_eos` without `stop_at_eos`, or if stop tokens may be taken back."""
        if not self.pad_after_eos:
            return
        if not self.stop_at_eos:
            raise ValueError("pad_after_eos goes with stop_at_eos, got True with False")
        if traits.mutates_committed or traits.branches > 1:
            does = "takes tokens back" if traits.mutates_committed else "looks ahead"
            raise ValueError(f"pad_after_eos must be off for {traits.name}, which {does}, got True")

    def check_filters(self) -> None:
        """Reject invalid filters."""
        if self.top_k is not None:
            integer("top_k", self.top_k, least=1)
        if self.top_p is not None and number("top_p", self.top_p, least=0.0, most=1.0) == 0:
            raise ValueError(f"top_p must be above 0, got {self.top_p!r}")
        if self.min_p is not None:
            number("min_p", self.min_p, least=0.0, most=1.0)

    def check_ranking(self, traits: Traits) -> None:
        """Reject ranking options for a decoder that does not rank by the scores they change."""
        own = "candidate_temperature"
        if self.position_temperature and "position_noise" not in traits.needs:
            raise ValueError(
                f"position_temperature must be 0 for {self.decoder!r}, which does not say that it "
                f"ranks positions by a score with 'position_noise', got {self.position_temperature}"
                + (f"; it has a {own} of its own" if hasattr(self.policy, own) else "")
            )
        if not self.confidence_eos_eot_inf:
            return
        reads = traits.reads_committed or "token_probability" in traits.needs
        if traits.mutates_committed or reads:
            raise ValueError(
                f"confidence_eos_eot_inf ranks masked positions only, and {self.decoder!r} also "
                "ranks committed ones: use suppress_tokens to keep stop tokens away"
            )
        if not traits.needs & {"confidence", "margin", "entropy"}:
            raise ValueError(
                f"confidence_eos_eot_inf changes confidence, margin and entropy, and "
                f"{self.decoder!r} reads none of them: use suppress_tokens"
            )

    def check_constraint(self) -> None:
        """Reject an invalid constraint, and options that conflict with how it ends texts."""
        given: Any = self.constraint
        several = isinstance(given, Sequence)
        each = given if several else [] if given is None else [given]
        kinds = Constraint | None if several else Constraint
        if (several and not given) or not all(isinstance(one, kinds) for one in each):
            raise ValueError(
                "constraint must be made by dlm.Constraint.regex, .choice or .json_schema, or be "
                f"a list of such, one or None for each prompt, got {given!r}"
            )
        if len({one is None for one in each}) > 1 and not self.mixes:
            raise ValueError(
                "constraint must be there for all prompts or for none with a decoder that takes "
                "tokens back, and where the path has a probability, "
                f"got {given!r} with {self.decoder!r}"
            )
        if self.held and self.confidence_eos_eot_inf:
            raise ValueError(
                "confidence_eos_eot_inf must be off where a constraint says how texts end, "
                f"got {self.confidence_eos_eot_inf!r}"
            )

    @property
    def caching(self) -> str:
        """The effective `cache`: "none" if every forward pass recomputes everything."""
        anew = self.refresh_every == 1
        spares = self.refresh_answer_every or self.refresh_prompt_every
        return "none" if anew and not spares else self.cache

    @property
    def held(self) -> bool:
        """Whether any row is constrained."""
        given = self.constraint
        return any(given) if isinstance(given, Sequence) else given is not None

    @property
    def mixes(self) -> bool:
        """Whether constrained and unconstrained rows can share forward passes.

        Not where sharing would change what a decoder remasks or a path's probability.
        """
        traits = Traits.of(self.policy)
        weighs = traits.has_path and self.draws
        return not (traits.mutates_committed or weighs or self.confidence_eos_eot_inf)

    def languages_of(self, count: int) -> list[Constraint | None]:
        """The constraint of each of `count` rows; empty if there is none at all.

        Raises:
            ValueError: a list is given that does not have one for each row.
        """
        given = self.constraint
        if given is None:
            return []
        each: list[Constraint | None]
        each = [given] * count if isinstance(given, Constraint) else [*given]
        if len(each) != count:
            raise ValueError(
                f"constraint must be one, or one for each of the {count} prompts, got {len(each)}"
            )
        return each

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings from keyword options; an unknown option is rejected as in `generate`."""
        for name in options:
            known("option", name, NAMES, INSTEAD)
        return cls(**options)

    def check_model(self, spec: ModelSpec) -> None:
        """Reject options that the model does not support."""
        self.check_tokens(spec)
        traits = Traits.of(self.policy)
        if self.cache != "none" and not spec.caches:
            raise ValueError(
                f"cache must be 'none' for {spec.family}, whose networks keep no keys and values, "
                f"got {self.cache!r}"
            )
        for name, default in REFRESHES.items():
            value = getattr(self, name)
            if value != default and spec.block_size is not None and name not in WITHIN:
                raise ValueError(
                    f"{name} must be {default} for {spec.family}, whose keys and values in front "
                    f"of a block are final, got {value}"
                )
        if spec.block_size is not None and self.suffix_window is not None:
            raise ValueError(
                f"suffix_window must be None for {spec.family}, where no block sees what is behind "
                f"itself, got {self.suffix_window}"
            )
        if spec.causal and not spec.reordered and traits.ahead:
            raise ValueError(
                f"decoder must decode one block at a time for {spec.family}, where one block of a "
                f"row sees all of itself, got {self.decoder!r}, which decodes {1 + traits.ahead}"
            )
        if (spec.shift or spec.reordered) and "leave_one_out" in traits.needs:
            why = "predicts a token from the one before it" if spec.shift else "has masks seen last"
            raise ValueError(
                f"decoder must not ask about a token with a mask in its place for {spec.family}, "
                f"which {why}, got {self.decoder!r}: "
                "'saber', 'remdm' and 'block_refinement' take tokens back without asking"
            )
        if spec.reordered and self.cfg_scale:
            raise ValueError(
                f"cfg_scale must be 0 for {spec.family}, where a prompt of masks would be seen by "
                f"masks alone, got {self.cfg_scale}"
            )

    def check_tokens(self, spec: ModelSpec) -> None:
        """Reject ids outside the vocabulary, and suppression that leaves no token to sample."""
        most = spec.vocab_size - 1
        never = integers("suppress_tokens", self.suppress_tokens, least=0, most=most)
        first = integers("begin_suppress_tokens", self.begin_suppress_tokens, least=0, most=most)
        integers(
            "logit_bias: each token id", [*map(int, self.logit_bias or ())], least=0, most=most
        )
        ends = spec.stop_ids if self.confidence_eos_eot_inf else ()
        away, count = (spec.banned, never, first, ends), spec.vocab_size
        # Lists may overlap; build the set only if the counts alone could cover the vocabulary.
        if sum(map(len, away)) >= count and len(set[int]().union(*away)) >= count:
            beside = " beside the stop tokens of confidence_eos_eot_inf" if ends else ""
            raise ValueError(
                "suppress_tokens and begin_suppress_tokens must leave a token to sample"
                f"{beside}, got {len(never)} and {len(first)} of {spec.vocab_size}"
            )


NAMES = tuple(field.name for field in fields(Settings) if field.init)
"""Names of all options."""


def of_decoders() -> dict[str, str]:
    """The hint for each decoder option that is passed as an option of `generate`."""
    owners: dict[str, list[str]] = {}
    for decoder, kind in DECODERS.items():
        for option in fields(kind):  # type: ignore[arg-type]
            owners.setdefault(option.name, []).append(decoder)
    return {
        option: f"it goes into decoder_options, for the decoder {' or '.join(names)}"
        for option, names in owners.items()
    }


INSTEAD = {**of_decoders(), **foreign.OPTIONS}
"""Hints for names that are not options of `generate`."""


def biases_of(given: Any) -> tuple[tuple[int, float], ...]:
    """Token ids and the values added to their logits, sorted, without those of 0.

    Raises:
        ValueError: an id or a value is invalid.
    """
    bias = {} if given is None else given
    found = pairs("logit_bias", bias, "token id", least=-LARGEST_SCALE, most=LARGEST_SCALE)
    return tuple(sorted((token, value) for token, value in found.items() if value))
