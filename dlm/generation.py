"""Text in, text out: `generate` and `stream` over the one denoising loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from numbers import Integral
from operator import itemgetter
from typing import Any

from dlm.constraints.constraint import Constraint
from dlm.endings import End, StopTexts, ended
from dlm.given import Array, listed
from dlm.inferring import inferring
from dlm.job import Job, generation_job
from dlm.models.model import Model
from dlm.notes import Notes
from dlm.options import integers, names_checked
from dlm.outputs import Generation, Snapshot
from dlm.prompt_cache import PromptCache
from dlm.prompts import Prompt, Prompts, decode_text
from dlm.runtime import Step, heard, unheard
from dlm.settings import INSTEAD, NAMES, Settings
from dlm.types import AnyDecoder


@partial(names_checked, instead=INSTEAD)
def generate(  # noqa: PLR0913 (the options users know by these names)
    model: Model,
    prompts: Prompts,
    *,
    decoder: str | AnyDecoder = "low_confidence",
    decoder_options: Mapping[str, Any] | None = None,
    gen_length: int | Sequence[int] | Array = 256,
    block_length: int | None = 32,
    steps: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    position_temperature: float = 0.0,
    cfg_scale: float = 0.0,
    cache: str = "none",
    refresh_every: int | None = None,
    refresh_around: int = 0,
    refresh_answer_every: int | None = None,
    refresh_prompt_every: int | None = None,
    refresh_decoded_every: int | None = None,
    suffix_window: int | None = None,
    seed: int = 0,
    row_keys: Sequence[int] | None = None,
    stop_at_eos: bool = True,
    pad_after_eos: bool = False,
    stop: str | Sequence[str] = (),
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
    logit_bias: Mapping[int, float] | None = None,
    confidence_eos_eot_inf: bool = False,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    return_trajectory: bool = False,
    return_order: bool = False,
    return_top_tokens: int = 0,
    prompt_cache: PromptCache | None = None,
    batch_size: int | None = None,
) -> Generation:
    """Continue every prompt by `gen_length` tokens, decoded block by block.

    A row depends on its prompt, its key and the options alone, never on the rest of the batch.

    Args:
        model: what `dlm.load` gave.
        prompts: text (as it stands), token ids, chat messages (through the chat template), or
            several of those; token ids in lists, tensors [P] or [B, P], arrays, or as a tokenizer
            gave them.
        decoder: name out of `dlm.decoders.DECODERS`, or an instance.
        decoder_options: hyperparameters for a name.
        gen_length: tokens to decode, at least 1; or a number for each prompt.
        block_length: tokens that may be committed at a time, left to right; None for all. Where
            attention is in blocks it is lowered to a divisor of `model.spec.block_size`, the
            largest that is no longer; where those may begin anywhere, to `block_size`.
        steps: forwards budget of a row, shared by its blocks in proportion to their blanks (one
            each at least); None lets the decoder use as many as it needs. Decoders keep to it by
            `view.quota`: one of your own that does not read that takes what it takes.
        temperature: samples from softmax(logits / temperature); 0 takes the arg max.
        top_k: samples among the k most likely tokens.
        top_p: samples among the most likely tokens that hold this much probability.
        min_p: samples among tokens of at least this times the probability of the likeliest. At
            temperature 0 these three matter to decoders that go by the sampled law alone.
        position_temperature: adds Gumbel noise of this size to the scores that positions are ranked
            by, so that they are drawn from softmax(score / position_temperature); 0 takes the best.
            Thresholds see scores without noise.
        cfg_scale: guided logits are l_u + (cfg_scale + 1) (l_c - l_u), with the prompt masked
            in l_u; 0 for none.
        cache: what the forwards of a block after its first one reuse (Wu et al. 2025, Fast-dLLM,
            arXiv:2505.22618): "none"; the keys and values in front of the block ("prefix"); or
            all but those of the block ("dual"). The first forward of a block computes the whole
            row, but for what the options below leave out. Both are approximations for networks that
            look both ways. Where attention is in blocks they are one and exact: what is in front of
            a block is final, and computed once.
        refresh_every: compute the whole row again after so many forwards of a block; None never.
            1 is no cache, where the options below leave nothing out.
        refresh_around: tokens on either side of a block that its forwards compute along with it,
            those that saw it change most (Ma et al. 2025, dInfer, arXiv:2510.08666, vicinity
            refresh); 0 computes the block alone. Only where a cache is an approximation.
        refresh_answer_every: a forward that would compute the whole row computes what the others of
            the block do, its first one from the last tokens on that were decoded, until the last
            one that computed all behind the prompt is so many forwards ago; None never.
        refresh_prompt_every: a forward that computes all behind the prompt leaves out what stands
            before the first block until the last one that did not is so many forwards ago; None
            never. Both as in dLLM-Cache (Liu et al. 2025, arXiv:2506.06295, intervals of response
            and prompt), and only where a cache is an approximation.
        refresh_decoded_every: the forwards of a block leave out what is decoded of it, and was at
            the last one, until the last one that did not is so many forwards ago (Ma et al. 2025,
            dKV-Cache, arXiv:2505.15781); None never. An approximation for every network.
        suffix_window: masks that a forward sees behind the active block, or behind what is given
            there (Chen et al. 2025, DPad, arXiv:2508.14148); None sees all. With it a forward
            costs what is written so far, whatever `gen_length` is. Another canvas for the network,
            and so another text. Not where attention is in blocks, which see nothing behind them.
        seed: with a row's key, a position and a forward, decides all noise.
        row_keys: one 64-bit int for each prompt, its index by default.
        stop_at_eos: end a row once a stop token has nothing masked left of it, and fill the rest
            with end of text. Where the decoder may take tokens back that waits for the end of the
            block, and where it reaches back to earlier blocks for the end of the row.
        pad_after_eos: fill masks behind a stop token with end of text as soon as it is written,
            before what is in front of it is decoded, so that forwards are spent on the text alone.
            The network sees padding there in the place of masks: another text than without, in
            fewer forwards the more of them commit a fixed number of tokens. Deferred commitment
            (arXiv:2601.02076) and d3LLM (arXiv:2601.07568) decode so in their authors' code. Not
            for decoders that take tokens back or look ahead.
        stop: texts that end a row: once no later forward can change one it is given up. Its text is
            cut in front of the first, its tokens behind it; end of text follows. Needs a tokenizer.
        suppress_tokens: ids never sampled.
        begin_suppress_tokens: ids never sampled at the first generated position.
        logit_bias: token ids, ints or as JSON writes them, and what is added to their logits at
            every position, after guidance: all is drawn and measured by the law with it. 0 means
            nothing, and a suppressed token stays suppressed.
        confidence_eos_eot_inf: commit stop tokens last: confidences are taken as if stop tokens
            did not exist, and a position that drew one has confidence 0 (LLaDA's option of that
            name, as documented there, at every temperature).
        constraint: the language that texts are of (`dlm.Constraint`), or one or None for each
            prompt: up to the stop token or the end of the row, so that a text is always whole.
            Open positions of the window are drawn together from the product of their distributions,
            restricted to texts of the language; at temperature 0 the likeliest of those is taken
            (Suresh et al. 2025, DINGO, arXiv:2505.23061). Confidence and the other statistics are
            of each position over all such texts. What stands is taken back by decoders that do
            so, but not edited.
        return_trajectory: keep what every forward saw and changed.
        return_order: keep which forward wrote each token, at next to no cost: `Generation.order`.
        return_top_tokens: of each token keep so many of the likeliest, by the forward that wrote it
            last and the law that confidence is of. On a GPU statistics take torch's way then.
        prompt_cache: keys and values that rows of earlier calls left for those that begin alike,
            and that these leave for others; for families with blocks of attention, with a cache.
        batch_size: rows decoded at a time, in their order; as some end others take their places.
            None decodes all together. Changes no row, but for what a prompt cache has for it.

    Raises:
        ValueError: a bad option or prompt, named in the message; or the network returned NaN, or
            the decoder broke a rule: at which forward of which row, both from 0. No row is given
            then, those that were done included: `generate_each` has yielded them.
    """
    options = {name: value for name, value in locals().items() if name in NAMES}
    options, lengths = lengths_apart(options)
    job = generation_job(model, prompts, Settings(**options), prompt_cache, batch_size, lengths)
    return finish(job)


def lengths_apart(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[int] | None]:
    """Options with the longest of several lengths, and all of those; None where there is one."""
    given = options.get("gen_length")
    if given is None or isinstance(given, str | Integral | float):
        return {**options}, None
    several = listed(given)
    if not isinstance(several, Sequence) or not several:
        raise ValueError(f"gen_length must be an int, or one for each prompt, got {given!r}")
    lengths = integers("gen_length", several, least=1)
    return {**options, "gen_length": max(lengths)}, lengths


@partial(names_checked, options=NAMES, instead=INSTEAD)
def generate_each(
    model: Model,
    prompts: Prompts,
    *,
    batch_size: int = 16,
    prompt_cache: PromptCache | None = None,
    tell: Callable[[Step], object] | None = None,
    **options: Any,
) -> Iterator[tuple[int, Generation]]:
    """Continue many prompts, yielding each as soon as it is done.

    All are laid out before the first forward, as long as the longest: a few bytes a token.

    Args:
        model: what `dlm.load` gave.
        prompts: as in `generate`.
        batch_size: as in `generate`.
        prompt_cache: as in `generate`.
        tell: is told of each forward, and may end it all by an exception. What the step has on the
            device is waited for where it is read.
        **options: as in `generate`.

    Returns:
        The number of a prompt, and the generation of its row alone.

    Raises:
        ValueError: as in `generate`, when called; where a forward fails, instead of the next row:
            those that were done before it have been yielded.
    """
    options, lengths = lengths_apart(options)
    settings = Settings.of(options)
    job = generation_job(model, prompts, settings, prompt_cache, batch_size, lengths)
    return outcomes(job, tell=heard(tell))


@partial(names_checked, options=NAMES, instead=INSTEAD)
def stream(
    model: Model,
    prompt: Prompt | Mapping[str, Any],
    *,
    prompt_cache: PromptCache | None = None,
    **options: Any,
) -> Iterator[Snapshot]:
    """Continue one prompt, yielding a snapshot after each forward.

    Args:
        model: what `dlm.load` gave.
        prompt: one prompt, as in `generate`.
        prompt_cache: as in `generate`.
        **options: as in `generate`, without `batch_size` and what is returned (`return_order`,
            ...); `gen_length` is one int.

    Raises:
        ValueError: as in `generate`, when called; and more than one prompt.
    """
    settings = Settings.of(options)
    for name in ("return_trajectory", "return_order", "return_top_tokens"):
        if getattr(settings, name):
            raise ValueError(f"{name} is for generate: a snapshot tells what its step did")
    job = generation_job(model, prompt, settings, prompt_cache)
    if len(job.rows) != 1:
        raise ValueError(f"stream takes one prompt, got {len(job.rows)}")
    return snapshots(job)


def finish(job: Job, tell: Callable[[Step], object] = unheard) -> Generation:
    """Run a job to its end; `tell` is told of each forward."""
    return together(outcomes(job, tell=tell))


def together(made: Iterable[tuple[int, Generation]]) -> Generation:
    """All rows together, of the number and the generation of each alone."""
    each = [one for _, one in sorted(made, key=itemgetter(0))]

    def joined(name: str) -> Any:
        parts = [getattr(one, name) for one in each]
        return None if parts[0] is None else [part[0] for part in parts]

    return Generation(**{field.name: joined(field.name) for field in fields(Generation)})


@inferring
def outcomes(
    job: Job,
    text_of: Callable[[Model, Sequence[int]], str] = decode_text,
    tell: Callable[[Step], object] = unheard,
) -> Iterator[tuple[int, Generation]]:
    """Run a job, yielding the number of each row as it ends and its generation alone.

    Args:
        job: to run.
        text_of: how a row's tokens read.
        tell: is told of each forward, and ends the job by an exception.
    """
    notes, stopping = Notes(job), job.stop_texts()
    for step in job.steps(stopping.change):
        tell(step)
        notes.add(step)
        for row, end in ended(step, stopping.look(step)):
            yield row, alone(job, row, end, stopping, notes, text_of)


def alone(
    job: Job,
    row: int,
    end: End,
    stopping: StopTexts,
    notes: Notes,
    text_of: Callable[[Model, Sequence[int]], str],
) -> Generation:
    """The generation of one row, which has ended."""
    model, (begin, stop) = job.model, job.spans[row]
    decoded = tokens = end.tokens[begin:stop]
    path = end.path_of(job.rows[row].count(model.spec.mask_id))
    text = None if model.tokenizer is None else text_of(model, tokens)
    if job.settings.stops:
        text, cut = stopping.read(row, tokens)
        if cut is not None:
            tokens, path = cut, None
    return Generation(
        tokens=[tokens],
        texts=None if text is None else [text],
        decoded=[end.decoded],
        forwards=[end.forwards],
        query_tokens=[end.queries],
        path_log_probability=None if end.path is None else [path],
        **notes.of(row, decoded, tokens),
    )


@inferring
def snapshots(job: Job) -> Iterator[Snapshot]:
    """The forwards of a job of one row, as snapshots."""
    model, (begin, end) = job.model, job.spans[0]
    stopping = job.stop_texts()
    for step in job.steps(stopping.change):
        span = step.tokens[0, begin:end].tolist()
        done = step.done[0] or bool(stopping.look(step))
        final = span.index(model.spec.mask_id) if model.spec.mask_id in span else len(span)
        text = None if model.tokenizer is None else decode_text(model, span[:final])
        if done and job.settings.stops:
            text, cut = stopping.read(0, span)
            span = span if cut is None else cut
        masks = (step.decision.commit, step.decision.remask, step.decision.edit)
        places, sampled = step.view.positions[0] - begin, step.view.sampled[0]
        committed, remasked, edited = (
            [] if mask is None else places[mask[0]].tolist() for mask in masks
        )
        # Columns behind the end of a row stand at its last position.
        taken = [sampled[mask[0]].tolist() for mask in masks[::2] if mask is not None]
        drawn = zip([*committed, *edited], chain(*taken), strict=True)
        yield Snapshot(
            forward=step.number + 1,
            tokens=span,
            text=text,
            committed=committed,
            remasked=remasked,
            edited=edited,
            done=done,
            filled=[place for place, token in drawn if span[place] != token],
        )
