"""The file of a distilled decoding schedule: reveal counts and logit scales per forward pass.

For Learnable Sampler Distillation (arXiv:2509.19962). The paper defines no file; this format is
ours: one line of JSON with sorted keys, no spaces, ASCII, and floats as their shortest text, so
that equal schedules are equal bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import torch
from torch import Tensor

from dlm.decoders.resample import MAX_LENGTH, apportion, apportion_table, fractions
from dlm.options import boolean, integer, known, number

FORMAT = "mdlm-schedule"
VERSION = 1
KINDS = ("lsd", "lsd+")
SCOPES = ("block", "generation")

FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The model that a schedule was made for."""

    vocab: int  # rows of the logits
    mask_id: int
    id: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)
        put("vocab", integer("model.vocab", self.vocab, least=1))
        put("mask_id", integer("model.mask_id", self.mask_id, least=0, most=self.vocab - 1))
        for name in ("id", "revision"):
            if getattr(self, name) is not None:
                _text(f"model.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleArtefact:
    """A decoding schedule: forward k scales the logits by a_k and reveals n_k tokens.

    Learnable Sampler Distillation, specialised to masks. N = len(reveal) forward passes decode one
    block, or the whole generation with scope "generation"; steps = N x blocks is the total budget.
    Counts for another number of masks follow from `cum_fraction` (`dlm.decoders.resample`).

    Raises:
        ValueError: A field is invalid; the message has the field, the rule and the value.
    """

    format: str = FORMAT
    version: int = VERSION
    kind: str = "lsd"  # "lsd": a is learned; "lsd+": n too
    model: ModelFacts
    base_policy: str = "low_confidence"  # the decoder that ranks; `Schedule.bind` checks the name
    gen_length: int  # tokens
    block_length: int  # tokens
    steps: int  # forward passes, N x ceil(gen_length / block_length), or N by scope
    scope: str = "block"
    reveal: tuple[int, ...]  # [N] n, tokens, sums to block_length, or gen_length by scope
    cum_fraction: tuple[float, ...]  # [N] c, strictly increasing to 1, rounds to `reveal`
    logit_scale: tuple[float, ...]  # [N] a > 0
    scale_confidence: bool = True  # whether the scores of the base policy see the scale a
    temperature: float = 0.0  # at which it was learned; a record like `training`, no effect here
    training: str = "{}"  # any JSON object; kept in canonical form
    checksum: str = field(init=False, compare=False)  # sha256 of all else in canonical form, hex

    def __post_init__(self) -> None:
        _check_header(self.format, self.version)
        known("kind", self.kind, KINDS)
        known("scope", self.scope, SCOPES)
        if not isinstance(self.model, ModelFacts):
            raise ValueError(f"model must be ModelFacts, got {self.model!r}")
        _text("base_policy", self.base_policy)
        boolean("scale_confidence", self.scale_confidence)
        put = partial(object.__setattr__, self)
        put("gen_length", integer("gen_length", self.gen_length, least=1, most=MAX_LENGTH))
        put("block_length", integer("block_length", self.block_length, least=1))
        put("steps", integer("steps", self.steps, least=1))
        put("temperature", _real("temperature", self.temperature) + 0.0)  # -0.0 is 0.0
        put("reveal", _tuple("reveal", self.reveal, partial(integer, least=1)))
        put("cum_fraction", _tuple("cum_fraction", self.cum_fraction, _real))
        put("logit_scale", _tuple("logit_scale", self.logit_scale, _scale))
        put("training", _training(self.training))
        self._check_lengths()
        self._check_fractions()
        put("checksum", hashlib.sha256(canonical(self._rest()).encode()).hexdigest())

    @property
    def length(self) -> int:
        """Number of masks that `reveal` is for: block_length, or gen_length by scope (tokens)."""
        return self.block_length if self.scope == "block" else self.gen_length

    @classmethod
    def identity(cls, length: int, vocab: int, mask_id: int, steps: int | None = None) -> Self:
        """The schedule that changes nothing: a = 1, n_k = m // S + 1[k < m mod S].

        LLaDA's quota (Nie et al. 2025, arXiv:2502.09992). Forward passes that would reveal nothing,
        where S > m, are left out.

        Args:
            length: m, tokens of the single block.
            vocab: rows of the logits.
            mask_id: id of the mask token.
            steps: S, forward passes; by default m, which is one token per forward pass.

        Raises:
            ValueError: An argument is invalid.
        """
        length = integer("length", length, least=1, most=MAX_LENGTH)
        budget = length if steps is None else integer("steps", steps, least=1)
        forwards = min(budget, length)
        each, more = divmod(length, forwards)
        reveal = (each + 1,) * more + (each,) * (forwards - more)
        return cls(
            model=ModelFacts(vocab=vocab, mask_id=mask_id),
            gen_length=length,
            block_length=length,
            steps=forwards,
            reveal=reveal,
            cum_fraction=fractions(reveal),
            logit_scale=(1.0,) * forwards,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a schedule and check all of it, including the checksum if one is given.

        Whitespace, key order and 1 for 1.0 may vary; the checksum is that of the canonical form.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a schedule, misses a key, or has an unknown key, an invalid
                value or a wrong checksum. The message has the file, key, rule and value.
        """
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ValueError(f"path must be the path of a schedule file, got {path!r}")
        shown = repr(os.fspath(path))
        try:
            text = Path(path).expanduser().read_bytes().decode()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no schedule file at {shown}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the schedule {shown}: {error}") from error
        try:
            return cls._from_json(_parse(text))
        except (RecursionError, ValueError) as error:
            raise ValueError(f"the schedule {shown} does not fit: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule atomically: readers find the complete old file or the new one.

        Raises:
            OSError: The folder does not exist or cannot be written to.
        """
        target = Path(path).expanduser()
        part = target.with_name(f"{target.name}.{uuid4().hex}.part")
        try:
            with part.open("wb") as file:
                file.write(self.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def to_json(self) -> str:
        """The canonical text, which `save` writes."""
        return canonical(self._rest() | {"checksum": self.checksum}) + "\n"

    def check_model(self, vocab: int, mask_id: int) -> None:
        """Refuse a model with other token ids.

        Args:
            vocab: rows of that model's logits.
            mask_id: id of its mask token.

        Raises:
            ValueError: `vocab` or `mask_id` is not the schedule's; the message has both.
        """
        if (vocab, mask_id) != (self.model.vocab, self.model.mask_id):
            made_for = "" if self.model.id is None else f" ({self.model.id})"
            raise ValueError(
                f"the schedule was made for vocab {self.model.vocab} and mask_id "
                f"{self.model.mask_id}{made_for}; this model has vocab {vocab} and "
                f"mask_id {mask_id}"
            )

    def counts(self, length: int) -> tuple[int, ...]:
        """The n_k for `length` masks: min(N, length) ints >= 1 that sum to it (tokens).

        With more forward passes than masks, each reveals one and the last ones are dropped. At the
        schedule's own length this is `reveal`, as `cum_fraction` must round to it.

        Raises:
            ValueError: `length` is not an int in [0, MAX_LENGTH].
        """
        masks = integer("length", length, least=0, most=MAX_LENGTH)
        return apportion(self.cum_fraction, masks)

    def plan(self, length: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """(n, a) for `length` masks; the scales of dropped forward passes are dropped too.

        Raises:
            ValueError: `length` is not an int in [0, MAX_LENGTH].
        """
        counts = self.counts(length)
        return counts, self.logit_scale[: len(counts)]

    def counts_table(self, max_length: int) -> Tensor:
        """Row m is `counts(m)`, padded with zeros. int64 [max_length + 1, N], on the CPU.

        Raises:
            ValueError: `max_length` is not an int in [0, MAX_LENGTH].
        """
        most = integer("max_length", max_length, least=0, most=MAX_LENGTH)
        return apportion_table(self.cum_fraction, most)

    def scales_table(self, max_length: int) -> Tensor:
        """Row m is the scales of `plan(m)`, then ones. float32 [max_length + 1, N], on the CPU.

        Raises:
            ValueError: `max_length` is not an int in [0, MAX_LENGTH].
        """
        most = integer("max_length", max_length, least=0, most=MAX_LENGTH)
        scales = torch.tensor(self.logit_scale, dtype=torch.float32)
        left = torch.arange(len(scales)) < torch.arange(most + 1)[:, None]
        return torch.where(left, scales, 1.0)

    @classmethod
    def _from_json(cls, data: object) -> Self:
        """Build the schedule of a parsed file."""
        if not isinstance(data, dict):
            raise ValueError(f"a schedule must be a JSON object, got {type(data).__name__}")
        # Another version may have other keys: naming the version says more than naming a key.
        _check_header(data.get("format", FORMAT), data.get("version", VERSION))
        data.setdefault("checksum", None)  # absent from a file written by hand
        _check_keys("the schedule", data, (f.name for f in fields(cls)))
        if not isinstance(data["model"], dict):
            raise ValueError(f"model must be a JSON object, got {data['model']!r}")
        _check_keys("model", data["model"], (f.name for f in fields(ModelFacts)))
        stated = data.pop("checksum")
        data["training"] = json.dumps(data["training"])
        data["model"] = ModelFacts(**data["model"])
        artefact = cls(**data)
        if stated not in (None, artefact.checksum):
            raise ValueError(
                f"checksum must be the sha256 of the rest, {artefact.checksum}, got {stated!r}"
            )
        return artefact

    def _rest(self) -> dict[str, Any]:
        """Everything in the file except the checksum."""
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "checksum"}
        model = {f.name: getattr(self.model, f.name) for f in fields(ModelFacts)}
        return rest | {"model": model, "training": json.loads(self.training)}

    def _check_lengths(self) -> None:
        """Check the lengths and sums that must agree."""
        if self.block_length > self.gen_length:
            raise ValueError(
                f"block_length must be <= gen_length {self.gen_length}, got {self.block_length}"
            )
        forwards = len(self.reveal)
        if sum(self.reveal) != self.length:
            unit = "block_length" if self.scope == "block" else "gen_length"
            raise ValueError(
                f"reveal must sum to {unit} {self.length} for scope {self.scope!r}, "
                f"got {sum(self.reveal)}"
            )
        for name in ("cum_fraction", "logit_scale"):
            if len(getattr(self, name)) != forwards:
                raise ValueError(
                    f"{name} must have one value for each of the {forwards} of reveal, "
                    f"got {len(getattr(self, name))}"
                )
        blocks = 1 if self.scope == "generation" else -(-self.gen_length // self.block_length)
        if self.steps != forwards * blocks:
            raise ValueError(
                f"steps must be {forwards} forwards x {blocks} blocks = {forwards * blocks}, "
                f"got {self.steps}"
            )

    def _check_fractions(self) -> None:
        """Check that `cum_fraction` increases to 1 and rounds to `reveal`."""
        for k, (before, now) in enumerate(pairwise((0.0, *self.cum_fraction))):
            if not before < now:
                raise ValueError(f"cum_fraction[{k}] must be > {before!r}, got {now!r}")
        if self.cum_fraction[-1] != 1:
            raise ValueError(f"cum_fraction must end in 1, got {self.cum_fraction[-1]!r}")
        rounded = apportion(self.cum_fraction, self.length)
        for k, (wanted, found) in enumerate(zip(self.reveal, rounded, strict=True)):
            if wanted != found:
                raise ValueError(
                    f"cum_fraction must round to reveal, reveal[{k}] is {wanted}, got {found}"
                )


def canonical(value: object) -> str:
    """JSON with sorted keys, no spaces, in ASCII, and floats as their shortest text.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parse(text: str) -> object:
    """Parse JSON and refuse duplicate keys: the checksum would cover only one of them."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"each key must be there once, got {key!r} twice")
        found[key] = value
    return found


def _check_header(form: object, version: object) -> None:
    if form != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}, got {form!r}")
    integer("version", version, least=VERSION, most=VERSION)


def _check_keys(where: str, data: Mapping[str, object], names: Iterable[str]) -> None:
    wanted = list(names)
    for key in data:
        known(f"key of {where}", key, wanted)
    missing = [name for name in wanted if name not in data]
    if missing:
        raise ValueError(f"{where} must have all of {', '.join(wanted)}, misses {missing}")


def _training(text: object) -> str:
    """Return `text` in canonical form if it is a JSON object."""
    rule = "training must be a JSON object (text, where it is given in Python)"
    if not isinstance(text, str):
        raise ValueError(f"{rule}, got {text!r}")
    try:
        facts = _parse(text)
        form = canonical(facts)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{rule}: {error}, got {text[:80]!r}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{rule}, got {text[:80]!r}")
    return form


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, got {value!r}")
    return value


def _tuple(name: str, values: object, check: Callable[[str, object], Any]) -> tuple[Any, ...]:
    """Return `values` as a tuple, each one checked under its own index."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} must be a list of numbers, one or more, got {values!r}")
    return tuple(check(f"{name}[{k}]", value) for k, value in enumerate(values))


def _real(name: str, value: object) -> float:
    """Return `value` as a float if it is finite and >= 0."""
    return number(name, value, least=0)


def _scale(name: str, value: object) -> float:
    """Return `value` if it is finite and > 0 in the decoder's float32."""
    scale = _real(name, value)
    if not FLOAT32.tiny <= scale <= FLOAT32.max:
        raise ValueError(f"{name} must be finite and > 0 in float32, got {value!r}")
    return scale
