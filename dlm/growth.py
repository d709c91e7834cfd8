"""Blanks that grow and shrink while they are filled, so that rows change their length.

Wu et al. 2026 (DreamOn, arXiv:2602.01326), by the rules of its code, which takes one row at a time.
A masked position that samples the token `expand` becomes two masks. One that samples `delete`, the
end of text, is removed, along with the masks right after it if deletion is broadcast. A row whose
blanks hold as many tokens as they may, or that has grown as often as it may, does not sample
`expand`.

Between two changes of its length, a row is decoded like any other. Then it leaves the batch, is
laid out again, and rejoins; the decoder's state for it is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dlm.batch import Change, Rows, Terms, denoise
from dlm.binding import bind
from dlm.canvas import active_length
from dlm.endings import End, ended
from dlm.execution import Execution
from dlm.job import check_length, lay_out, row_keys
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import LARGEST, boolean, integer
from dlm.runtime import Step, no_listener
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.waiting import Places

WEYL: Final = 0x9E3779B97F4A7C15
"""Step between the noise keys of a row before and after a change of its length: odd, so that they
do not repeat, and far from the differences between keys of rows."""
WHOLE: Final = {
    "steps": "how many forwards a row takes shows as it grows",
    "stop_at_eos": "end of text takes a blank away",
    "pad_after_eos": "end of text takes a blank away",
    "cfg_scale": "what is filled would be hidden like a prompt",
    "begin_suppress_tokens": "the first blank of a row does not stay the first",
    "return_trajectory": "positions move",
    "return_order": "positions move",
    "return_top_tokens": "positions move",
}
"""Options that rows of changing length do not support, and why."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How far blanks may grow.

    Raises:
        ValueError: a number is out of range.
    """

    most: int  # tokens that the blanks of a row may hold in total
    budget: int  # how often a blank of a row may become two
    broadcast: bool = False  # whether the masks right after a removed blank are removed

    @classmethod
    def of(
        cls, max_gen_length: int, expand_budget: int | None, broadcast_deletion: object = False
    ) -> "Growth":
        """From the options; by default, rows may grow twice `max_gen_length` times."""
        most = integer("max_gen_length", max_gen_length, least=1)
        budget = min(2 * most, LARGEST) if expand_budget is None else expand_budget
        integer("expand_budget", budget, least=0)
        return cls(most, int(budget), boolean("broadcast_deletion", broadcast_deletion))

    def check(self, model: Model, rows: Sequence[list[int]], settings: Settings) -> None:
        """Reject networks without an expand token, unsupported options, and rows that are too long.

        Raises:
            ValueError: one of these applies.
        """
        spec = model.spec
        if spec.expand_id is None:
            raise ValueError(
                "max_gen_length is for networks that ask for blanks by a token, as "
                f"Dream-org/DreamOn-v0-7B does, got {self.most} for {spec.family}"
            )
        self.check_settings(settings)
        for number, row in enumerate(rows):
            blanks = row.count(spec.mask_id)
            if blanks > self.most:
                raise ValueError(
                    f"max_gen_length must hold the blanks of each text, got {self.most} for the "
                    f"{blanks} of text {number}"
                )
            check_length(model, len(row) - blanks + self.most, "a text with max_gen_length")

    def check_settings(self, settings: Settings) -> None:
        """Reject options that rows of changing length do not support.

        Raises:
            ValueError: one of these is set.
        """
        for name, reason in WHOLE.items():
            if value := getattr(settings, name):
                raise ValueError(f"{name} is not for blanks that grow: {reason}, got {value!r}")
        traits = Traits.of(settings.policy)
        if traits.branches > 1:
            raise ValueError(
                "decoder must not look ahead where blanks grow, as a token that changes their "
                f"number is no text, got {settings.decoder!r} with {traits.branches} branches"
            )
        if traits.mutates_committed:
            raise ValueError(
                "decoder must not take tokens back where blanks grow, as rows are laid out anew "
                f"with what is filled, got {settings.decoder!r}"
            )


@dataclass(frozen=True, slots=True)
class Part:
    """A row until its length changes."""

    name: int
    key: int  # of its noise
    tokens: list[int]
    spec: ModelSpec
    growth: Growth  # what is left of the limits
    times: int = 0  # how often its length has changed
    decoded: int = 0  # tokens decoded in its blanks
    forwards: int = 0
    queries: int = 0

    @property
    def masks(self) -> int:
        """Number of blanks to fill."""
        return self.tokens.count(self.spec.mask_id)

    @property
    def grows(self) -> bool:
        """Whether the row may still grow."""
        return self.masks < self.growth.most and self.growth.budget > 0

    @property
    def noise(self) -> int:
        """Noise key of this part alone."""
        return (self.key + self.times * WEYL) % (1 << 64)

    def after(self, end: End) -> "Part":
        """The row after the last forward pass of this part, laid out for the next."""
        mask_id, expand, delete = self.spec.mask_id, self.spec.expand_id, self.spec.eos_id
        pairs = list(zip(self.tokens, end.tokens, strict=False))
        if self.growth.broadcast:
            pairs = broadcast(pairs, mask_id, delete)
        filled = [now for was, now in pairs if was == mask_id]
        room = min(self.growth.most - len(filled) + filled.count(delete), self.growth.budget)
        tokens: list[int] = []
        more = 0
        for was, now in pairs:
            if was == mask_id and now == expand:
                two = more < room  # one forward pass may ask for more than there is room
                more += two
                tokens += [mask_id] * (2 if two else 1)
            elif was != mask_id or now != delete:
                tokens.append(now)
        kept = sum(token not in (mask_id, expand, delete) for token in filled)
        most, budget = self.growth.most - kept, self.growth.budget - more
        return replace(
            self,
            tokens=tokens,
            growth=replace(self.growth, most=most, budget=budget),
            times=self.times + 1,
            decoded=self.decoded + kept,
            forwards=self.forwards + end.forwards,
            queries=self.queries + end.queries,
        )


def broadcast(pairs: Sequence[tuple[int, int]], mask_id: int, delete: int) -> list[tuple[int, int]]:
    """Pairs of tokens before and after, with deletion spread to the masks right after it."""
    spread: list[tuple[int, int]] = []
    gone = False
    for was, now in pairs:
        gone = was == mask_id and (now == delete or (gone and now == mask_id))
        spread.append((was, delete if gone else now))
    return spread


class Growing:
    """Decodes rows until their lengths stay: at a time, those that may grow or the others."""

    def __init__(
        self, model: Model, rows: Sequence[list[int]], settings: Settings, growth: Growth
    ) -> None:
        """Take rows that contain masks.

        Raises:
            ValueError: they do not fit the model, or an option does not fit them.
        """
        growth.check(model, rows, settings)
        keys, spec = row_keys(rows, settings), model.spec
        self.settings = settings
        self.execution = Execution.of(model)
        self.models = {False: model, True: replace(model, spec=spec.growing)}
        self.waiting: dict[bool, list[Part]] = {False: [], True: []}
        for name, (key, row) in enumerate(zip(keys, rows, strict=True)):
            self.wait(Part(name, key, row, spec, growth))
        canvas = self.laid(list(self.parts)).canvas
        block_length = active_length(settings.block_length, spec)
        self.span = canvas.reach(growth.most)
        self.decoder = bind(settings.policy, self.models[True], canvas, block_length, self.span)
        settings.check_ranking(Traits.of(self.decoder))
        self.inside: dict[int, Part] = {}
        self.leaving: frozenset[int] = frozenset()

    @property
    def parts(self) -> Iterator[Part]:
        """The waiting rows."""
        yield from self.waiting[True]
        yield from self.waiting[False]

    def wait(self, part: Part) -> None:
        """Put a row in the queue of its kind."""
        self.waiting[part.grows].append(part)

    def laid(self, parts: Sequence[Part]) -> Rows:
        """Lay out rows on a canvas."""
        rows, keys = [part.tokens for part in parts], [part.noise for part in parts]
        canvas = lay_out(self.models[False], rows, self.settings, self.execution, keys)
        return Rows(canvas, [*map(len, rows)], [part.name for part in parts])

    def take(self, count: int, *, grows: bool) -> Rows:
        """Take the next rows from the queue."""
        some, self.waiting[grows] = self.waiting[grows][:count], self.waiting[grows][count:]
        self.inside |= {part.name: part for part in some}
        return self.laid(some)

    def run(self, batch_size: int, tell: Callable[[Step], object] = no_listener) -> Iterator[Part]:
        """Decode the rows, yielding each as it is done; `tell` is called at each forward pass."""
        places = Places(batch_size, apart=self.settings.caching != "none")
        while any(self.waiting.values()):
            grows = bool(self.waiting[True])
            options = (self.models[grows], self.settings, self.decoder, self.execution, self.span)

            def change(grows: bool = grows) -> Change:
                room = places.room(len(self.inside), len(self.waiting[grows]))
                join = self.take(room, grows=grows) if room else None
                leaving, self.leaving = self.leaving, frozenset()
                return Change(leaving, join)

            rows = self.take(batch_size, grows=grows)
            for step in denoise(Terms.of(*options), rows, change):
                tell(step)
                yield from self.saw(step)

    def saw(self, step: Step) -> Iterator[Part]:
        """Record what a forward pass changed, yielding the rows that are done."""
        gone = changed(step, self.models[False].spec)
        for name, end in ended(step, gone):
            part = self.inside.pop(name).after(end)
            if part.masks:
                self.wait(part)
            else:
                yield part
        self.leaving |= gone


def changed(step: Step, spec: ModelSpec) -> frozenset[int]:
    """Unfinished rows in which a mask just took a token that changes their length.

    Waits for the device.

    Args:
        step: a forward pass.
        spec: of a network with an expand token.
    """
    assert spec.expand_id is not None
    asked = (step.tokens == spec.expand_id) | (step.tokens == spec.eos_id)
    lines = (asked & (step.before.tokens == spec.mask_id)).any(-1).tolist()
    rows = zip(step.names, step.live, step.done, lines, strict=True)
    return frozenset(name for name, live, done, yes in rows if live and yes and not done)
