"""Checks rows to decode and lays them out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from dlm.batch import Change, Rows, Terms, denoise
from dlm.binding import bind
from dlm.canvas import Canvas, active_length, build
from dlm.constraints.constraint import Constraint
from dlm.endings import StopTexts
from dlm.execution import Execution
from dlm.models.model import Model
from dlm.options import integer
from dlm.prompt_cache import PromptCache
from dlm.prompts import Prompts, TooLong, encode_prompts, tokenizer_of
from dlm.runtime import Step
from dlm.settings import Settings
from dlm.traits import Traits
from dlm.types import AnyDecoder
from dlm.waiting import Queue


@dataclass(frozen=True, slots=True)
class Job:
    """Rows to decode, checked and laid out."""

    model: Model
    rows: list[list[int]]
    spans: list[tuple[int, int]]  # of each row, the part to return
    canvas: Canvas
    settings: Settings
    decoder: AnyDecoder  # bound to the model
    execution: Execution  # how steps are run
    prompt_cache: PromptCache | None  # keys and values shared with other jobs
    batch_size: int | None  # rows decoded at a time; None for all

    def steps(self, change: Callable[[], Change] = Change) -> Iterator[Step]:
        """Every forward pass of the job; `change` is asked after each one for rows to drop."""
        terms = Terms.of(self.model, self.settings, self.decoder, self.execution, self.canvas.span)
        lengths = [len(row) for row in self.rows]
        languages = self.settings.languages_of(len(lengths))
        rows = Rows(self.canvas, lengths, range(len(lengths)), languages)
        if self.batch_size is None or self.batch_size >= len(lengths):
            yield from denoise(terms, rows, change, self.prompt_cache)
            return
        apart = self.settings.caching != "none"
        queue = Queue(rows, self.batch_size, self.execution, apart=apart)
        while queue.waiting:  # again, if all rows of the batch ended at once
            fill = partial(queue.fill, change)
            for step in denoise(terms, queue.batch(), fill, self.prompt_cache):
                queue.saw(step)
                yield step

    def stop_texts(self) -> StopTexts:
        """The reader that ends rows at the texts of `stop`."""
        return StopTexts(self.model, self.spans, Traits.of(self.decoder), self.settings.stops)


def check_length(model: Model, length: int, what: str = "prompt and generation") -> None:
    """Reject rows longer than the model supports, with `TooLong`."""
    if length > model.spec.max_length:
        raise TooLong(
            f"{what} must fit the model's {model.spec.max_length} positions, got {length} tokens"
        )


def lay_out(
    model: Model,
    rows: Sequence[list[int]],
    settings: Settings,
    execution: Execution,
    keys: Sequence[int],
) -> Canvas:
    """Lay out rows, with the mask id at every position to decode, on a canvas.

    Args:
        model: decodes the rows.
        rows: token ids.
        settings: the options.
        execution: how steps are run.
        keys: noise keys of the rows.

    Raises:
        ValueError: the rows do not fit the model, or an option does not fit them.
    """
    spec = model.spec
    longest = max(map(len, rows))
    check_length(model, longest)
    settings.check_model(spec)
    begun = [number for number, row in enumerate(rows) if row[0] == spec.mask_id]
    if spec.shift and begun:
        raise ValueError(
            f"a row must not begin with a mask for {spec.family}, which predicts a token from the "
            f"one before it, got one in row {begun[0]}"
        )
    return build(
        rows,
        mask_id=spec.mask_id,
        pad_id=spec.eos_id,
        block_length=active_length(settings.block_length, spec) or longest,
        steps=settings.steps,
        row_keys=keys,
        seed=settings.seed,
        temperature=settings.temperature,
        device=model.device,
        surplus=Traits.of(settings.policy).max_forwards is not None,
        grid=spec.grid,
        columns=execution.columns(longest, spec.max_length),
    )


def row_keys(rows: Sequence[list[int]], settings: Settings) -> Sequence[int]:
    """Noise keys of the rows: the given ones, or else their indices.

    Raises:
        ValueError: the number of keys is not that of rows.
    """
    keys = range(len(rows)) if settings.row_keys is None else settings.row_keys
    if len(keys) != len(rows):
        raise ValueError(
            f"row_keys must hold one int for each of the {len(rows)} prompts, got {len(keys)}"
        )
    return keys


def make_job(
    model: Model,
    rows: list[list[int]],
    spans: list[tuple[int, int]],
    settings: Settings,
    prompt_cache: PromptCache | None = None,
    batch_size: int | None = None,
) -> Job:
    """A job that decodes rows with the mask id at every position to decode.

    Raises:
        ValueError: the rows do not fit the model, or an option does not fit them.
    """
    if batch_size is not None:
        integer("batch_size", batch_size, least=1)
    if prompt_cache is not None:
        check_prompt_cache(prompt_cache, model, settings)
    if settings.stops:
        tokenizer_of(model, "stop")
    execution = Execution.of(model)
    canvas = lay_out(model, rows, settings, execution, row_keys(rows, settings))
    block_length = active_length(settings.block_length, model.spec)
    bound = bind(settings.policy, model, canvas, block_length)
    settings.check_ranking(Traits.of(bound))
    return Job(model, rows, spans, canvas, settings, bound, execution, prompt_cache, batch_size)


def check_prompt_cache(prompt_cache: object, model: Model, settings: Settings) -> None:
    """Reject an invalid prompt cache, one of another model, and options that cannot use it."""
    if not PromptCache.checked(prompt_cache, model).serves(settings):
        raise ValueError(
            "prompt_cache goes with cache 'prefix' or 'dual' and without cfg_scale and a "
            f"refresh_every of 1, got {settings.cache!r}, {settings.cfg_scale} and "
            f"{settings.refresh_every}"
        )


def generation_job(
    model: Model,
    prompts: Prompts,
    settings: Settings,
    prompt_cache: PromptCache | None = None,
    batch_size: int | None = None,
    lengths: Sequence[int] | None = None,
) -> Job:
    """A job for prompts: each is followed by its number of masks and the family's closing tokens.

    Raises:
        ValueError: as in `make_job`, or the number of lengths is not that of prompts.
    """
    encoded = encode_prompts(model, prompts)
    if lengths is not None and len(lengths) != len(encoded):
        raise ValueError(
            f"gen_length must be an int, or one for each of the {len(encoded)} prompts, "
            f"got {len(lengths)}"
        )
    each = [settings.gen_length] * len(encoded) if lengths is None else lengths
    if settings.held:
        check_languages(model, settings, each)
    rows, spans = continued(model, encoded, each)
    return make_job(model, rows, spans, settings, prompt_cache, batch_size)


def check_languages(model: Model, settings: Settings, lengths: Sequence[int]) -> None:
    """Reject rows that are too short for any text of their constraint."""
    settings.check_tokens(model.spec)
    shortest: dict[Constraint, int] = {}
    for language, length in zip(settings.languages_of(len(lengths)), lengths, strict=True):
        if language is None:
            continue
        shortest[language] = min(length, shortest.get(language, length))
    never, first = settings.suppress_tokens, settings.begin_suppress_tokens
    for language, length in shortest.items():
        language.check(model, length, never, first)


def continued(
    model: Model, prompts: Sequence[list[int]], lengths: Sequence[int]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows with masks after each prompt, and the spans of those masks.

    The family's closing tokens follow the masks.

    Raises:
        ValueError: a row is longer than the model supports.
    """
    closing = model.spec.suffix
    pairs = list(zip(prompts, lengths, strict=True))
    spans = [(len(prompt), len(prompt) + length) for prompt, length in pairs]
    number, longest = max(enumerate(end for _, end in spans), key=itemgetter(1))
    which = "prompt" if len(spans) == 1 else f"prompt {number}"
    check_length(model, longest + len(closing), f"{which} and generation")
    mask_id = model.spec.mask_id
    return [[*prompt, *[mask_id] * length, *closing] for prompt, length in pairs], spans
