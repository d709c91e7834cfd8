"""The public text API: `generate`, `generate_each` and `stream` over one denoising loop."""

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
from dlm.runtime import Step, listener, no_listener
from dlm.settings import INSTEAD, NAMES, Settings
from dlm.types import AnyDecoder


@partial(names_checked, instead=INSTEAD)
def generate(  # noqa: PLR0913 (the options that users know by these names)
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

    A row's result depends only on its prompt, its key and the options, not on the rest of the
    batch.

    Args:
        model: the model, from `dlm.load`.
        prompts: text (tokenized as it stands), token ids, chat messages (passed through the chat
            template), or a list of those. Token ids may be lists, tensors [P] or [B, P], arrays,
            or a tokenizer's output.
        decoder: a name from `dlm.decoders.DECODERS`, or a decoder instance; by default
            "low_confidence".
        decoder_options: hyperparameters of a decoder that is given by name.
        gen_length: tokens to decode, at least 1 and by default 256; or one number for each prompt.
        block_length: block size in tokens, by default 32. Blocks are decoded left to right; None
            decodes the whole answer as one block. For block-attention models it is lowered to the
            largest divisor of `model.spec.block_size` that does not exceed it; where attention
            blocks may begin anywhere, it is only capped at `block_size`.
        steps: budget of forward passes for a row, shared by its blocks in proportion to their
            blanks (at least one each). None, the default, lets the decoder use as many as it needs.
            Decoders keep the budget by reading `view.quota`; a custom decoder that ignores it may
            exceed it.
        temperature: samples from softmax(logits / temperature); 0, the default, takes the arg max.
        top_k: samples from the k most likely tokens; None keeps all.
        top_p: samples from the most likely tokens that together hold this probability; None keeps
            all.
        min_p: samples from tokens with at least this fraction of the largest probability; None
            keeps all. At temperature 0, `top_k`, `top_p` and `min_p` affect only decoders that
            score by the sampling distribution.
        position_temperature: randomises which positions are unmasked: Gumbel noise of this scale
            is added to the scores that rank positions, so that positions are drawn from
            softmax(score / position_temperature). 0, the default, takes the best. Thresholds are
            compared with scores without noise.
        cfg_scale: classifier-free guidance. Guided logits are l_u + (cfg_scale + 1) (l_c - l_u),
            where l_u sees the prompt masked; 0, the default, disables it.
        cache: which keys and values the later forward passes of a block reuse (Wu et al. 2025,
            Fast-dLLM, arXiv:2505.22618): "none", the default; those before the block ("prefix"); or
            all but those of the block ("dual", which computes least). The first forward pass of a
            block computes the whole row, unless the options below exclude parts of it. Both caches
            are approximations for bidirectional models. For block-attention models the two are the
            same and exact: everything before a block is final and is computed once.
        refresh_every: recompute the whole row at every n-th forward pass of a block, to bound how
            stale the cache gets; None, the default, only at the first. 1 equals no cache, unless
            the options below exclude parts of the row.
        refresh_around: tokens on either side of the block that its forward passes recompute along
            with it, as their keys go stale first (vicinity refresh of Ma et al. 2025, dInfer,
            arXiv:2510.08666); 0, the default, computes the block alone. Only where the cache is an
            approximation.
        refresh_answer_every: fewest forward passes between two recomputations of the whole answer.
            A pass that is due to compute the whole row sooner computes only what the block's other
            passes do; the first pass of a block also starts at the tokens decoded last, which no
            pass has seen. None, the default, recomputes the answer at every refresh.
        refresh_prompt_every: fewest forward passes between two recomputations of the prompt. A pass
            that recomputes the answer sooner leaves out everything before the first block. None,
            the default, recomputes the prompt along with the answer. Both intervals are as in
            dLLM-Cache (Liu et al. 2025, arXiv:2506.06295: response and prompt intervals), and apply
            only where the cache is an approximation.
        refresh_decoded_every: within the block, reuse the keys and values of tokens that were
            already decoded at the last forward pass, and recompute all of the block only once this
            many passes have gone by since a pass that did (Ma et al. 2025, dKV-Cache,
            arXiv:2505.15781). None, the default, recomputes all of it at every pass. An
            approximation for every model.
        suffix_window: mask tokens that a forward pass sees after the active block, or after fixed
            tokens further on (Chen et al. 2025, DPad, arXiv:2508.14148); None, the default, sees
            all. The cost of a pass then follows the text written so far, whatever `gen_length` is.
            The model sees another canvas, so the text differs. Not for block-attention models,
            which never see past a block.
        seed: determines all noise, together with a row's key, a position and a forward pass; 0 by
            default.
        row_keys: one 64-bit int for each prompt that keys its noise; its index by default.
        stop_at_eos: end a row once nothing before a stop token is masked, and fill the rest with
            end of text; on by default. If the decoder may take tokens back, this waits for the end
            of the block; if it reaches back to earlier blocks, for the end of the row.
        pad_after_eos: fill masks after a stop token with end of text as soon as it is written,
            before the text preceding it is decoded, so that forward passes are spent on the text
            alone. The model then sees padding instead of masks, so the text differs. It saves most
            where each pass commits a fixed number of tokens. Off by default. Deferred commitment
            (arXiv:2601.02076) and d3LLM (arXiv:2601.07568) do this in their authors' code. Not for
            decoders that take tokens back or look ahead.
        stop: a text or texts that end a row, as soon as no later forward pass can change one. The
            text is cut before the first of them; the tokens are cut after it and filled with end of
            text. Needs a tokenizer.
        suppress_tokens: ids never sampled.
        begin_suppress_tokens: ids never sampled at the first generated position.
        logit_bias: map from token ids (ints, or the strings JSON makes of them) to values added to
            their logits at every position, after guidance; samples and statistics use the biased
            distribution. A bias of 0 has no effect, and a suppressed token stays suppressed.
        confidence_eos_eot_inf: commit stop tokens last. Confidences are computed as if stop tokens
            did not exist, and a position that sampled one has confidence 0 (LLaDA's option of that
            name, as documented there, at every temperature). Off by default.
        constraint: a `dlm.Constraint` that every text must match up to the stop token or the end of
            the row, so that it is always complete; or a list with one or None for each prompt. Open
            positions of the window are sampled jointly from the product of their distributions,
            restricted to texts that match; at temperature 0 the most likely one is taken (Suresh et
            al. 2025, DINGO, arXiv:2505.23061). Confidence and the other statistics are marginals
            over all such texts. Decoders may still remask committed tokens, but not edit them.
        return_trajectory: keep what every forward pass saw and changed, in
            `Generation.trajectory`.
        return_order: keep which forward pass wrote each token, in `Generation.order`; it costs
            almost nothing.
        return_top_tokens: how many of the most likely tokens to keep for each position, from the
            forward pass that last wrote it and under the distribution confidence is measured by.
            On a GPU the statistics then use PyTorch instead of the fused kernel.
        prompt_cache: a `dlm.PromptCache` that shares keys and values of equal prefixes between
            calls; for block-attention models, with a `cache`.
        batch_size: rows decoded at once; the rest join, in order, as rows end. None, the default,
            decodes all together. It changes no row's result, except through what a prompt cache
            holds for it.

    Returns:
        The generated tokens and texts, row by row in the order of the prompts.

    Raises:
        ValueError: an option or prompt is invalid (the message names it), the network returned NaN,
            or the decoder broke its contract (the message names the row and its forward pass where
            one is to blame, both from 0). No row is returned then, not even finished ones;
            `generate_each` has already yielded those.
    """
    options = {name: value for name, value in locals().items() if name in NAMES}
    options, lengths = lengths_apart(options)
    job = generation_job(model, prompts, Settings(**options), prompt_cache, batch_size, lengths)
    return finish(job)


def lengths_apart(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[int] | None]:
    """Separate per-prompt lengths from the options.

    Returns:
        The options with the largest length as `gen_length`, and all lengths; None for the lengths
        if `gen_length` is a single number.

    Raises:
        ValueError: `gen_length` is no int and no list of ints.
    """
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
    """Continue many prompts, yielding each result as soon as it is done.

    All rows are laid out before the first forward pass, as long as the longest: a few bytes per
    token.

    Args:
        model: the model, from `dlm.load`.
        prompts: as in `generate`.
        batch_size: rows decoded at once, as in `generate`; here 16 by default.
        prompt_cache: as in `generate`.
        tell: a callback for each forward pass, which may abort the job by raising. Reading a
            tensor of the step waits for the device.
        **options: as in `generate`.

    Returns:
        An iterator over pairs: the index of a prompt and the generation of its row alone.

    Raises:
        ValueError: as in `generate`, raised at the call. If a forward pass fails, it is raised in
            place of the next row; finished rows have already been yielded.
    """
    options, lengths = lengths_apart(options)
    settings = Settings.of(options)
    job = generation_job(model, prompts, settings, prompt_cache, batch_size, lengths)
    return outcomes(job, tell=listener(tell))


@partial(names_checked, options=NAMES, instead=INSTEAD)
def stream(
    model: Model,
    prompt: Prompt | Mapping[str, Any],
    *,
    prompt_cache: PromptCache | None = None,
    **options: Any,
) -> Iterator[Snapshot]:
    """Continue one prompt, yielding a snapshot after each forward pass.

    Args:
        model: the model, from `dlm.load`.
        prompt: one prompt, as in `generate`.
        prompt_cache: as in `generate`.
        **options: as in `generate`, except `batch_size` and the `return_` options
            (`return_trajectory`, `return_order`, `return_top_tokens`); `gen_length` is one int.

    Raises:
        ValueError: as in `generate`, raised at the call; or more than one prompt is given.
    """
    settings = Settings.of(options)
    for name in ("return_trajectory", "return_order", "return_top_tokens"):
        if getattr(settings, name):
            raise ValueError(f"{name} is for generate: a snapshot tells what its step did")
    job = generation_job(model, prompt, settings, prompt_cache)
    if len(job.rows) != 1:
        raise ValueError(f"stream takes one prompt, got {len(job.rows)}")
    return snapshots(job)


def finish(job: Job, tell: Callable[[Step], object] = no_listener) -> Generation:
    """Run a job to its end and return all rows; `tell` is called after each forward pass."""
    return together(outcomes(job, tell=tell))


def together(made: Iterable[tuple[int, Generation]]) -> Generation:
    """Combine pairs of a row index and its generation into one generation, in row order."""
    each = [one for _, one in sorted(made, key=itemgetter(0))]

    def joined(name: str) -> Any:
        parts = [getattr(one, name) for one in each]
        return None if parts[0] is None else [part[0] for part in parts]

    return Generation(**{field.name: joined(field.name) for field in fields(Generation)})


@inferring
def outcomes(
    job: Job,
    text_of: Callable[[Model, Sequence[int]], str] = decode_text,
    tell: Callable[[Step], object] = no_listener,
) -> Iterator[tuple[int, Generation]]:
    """Run a job, yielding the index and generation of each row as it ends.

    Args:
        job: the job to run.
        text_of: decodes a row's tokens to text.
        tell: called after each forward pass; ends the job by raising.
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
    """Build the generation of one finished row."""
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
    """Run a job of one row, yielding a snapshot after each forward pass."""
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
        # Columns past the end of a row are clamped to its last position.
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
