"""The facts of a checkpoint, from its files and its family, checked against each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlm.models.families import ENCODER, family_of, find
from dlm.models.family import Family
from dlm.models.files import absent, read_json
from dlm.models.spec import ModelSpec
from dlm.options import integer, integers


@dataclass(frozen=True, slots=True)
class Declared:
    """The token ids in `generation_config.json`."""

    stop_ids: tuple[int, ...] = ()
    mask_id: int | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user overrode when loading a checkpoint and its configuration cannot store."""

    mask_id: int | None = None
    stop_ids: tuple[int, ...] | None = None
    block_size: int | None = None  # of attention blocks that start after the prompt


def read_config(source: str, family: str | None = None, **where: Any) -> tuple[Any, Family]:
    """Read the configuration of a checkpoint and find its family, ignoring remote code.

    Args:
        source: a folder or a Hugging Face id.
        family: the name that the user gave, if any.
        where: as `dlm.models.files.cached` takes it.

    Raises:
        ValueError: there is no configuration, or none of our families fits it.
    """
    from transformers import AutoConfig, PreTrainedConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(source, **where)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read the configuration of {source!r}{absent(source)}: {error}"
        ) from error
    except TypeError:  # raised for a file that holds a number
        raw = None
    if not isinstance(raw, dict):
        raw = read_json(source, "config.json", **where)  # raises if the file holds no object
    if raw is None or not raw.keys() - {"_commit_hash"}:  # a key that early transformers 5 adds
        there = read_json(source, "config.json", **where) is not None
        fault = "says nothing" if there else "is missing"
        raise ValueError(f"cannot read the configuration of {source!r}: config.json {fault}")
    try:
        found = find(raw, family)
        if found is ENCODER:
            told = AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
            return told, found
        config = found.config_class().from_dict(raw)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the configuration of {source!r} does not fit: {error}") from error
    config.name_or_path = source
    return config, found


def read_generation(source: str, **where: Any) -> Declared:
    """Read the token ids in `generation_config.json`, if there is one.

    Args:
        source: a folder or a Hugging Face id.
        where: as `dlm.models.files.cached` takes it.

    Raises:
        ValueError: the file is corrupt.
    """
    stated = read_json(source, "generation_config.json", **where) or {}
    return Declared(tuple(ids(stated.get("eos_token_id"))), stated.get("mask_token_id"))


def resolve(
    config: Any,
    declared_stops: Iterable[int],
    tokenizer: Any,
    mask_id: int | None = None,
    *,
    block_size: int | None = None,
    declared_mask: int | None = None,
    stops: Sequence[int] | None = None,
) -> ModelSpec:
    """Determine the facts of a checkpoint.

    - The mask id is the argument, or the first that exists of the generation configuration's, the
      configuration's, the family's and the tokenizer's.
    - The stop ids are the argument, or those of both configurations and of the family together, or
      the configuration's padding id.
    - The block size is the argument, or the configuration's own, or the one in the checkpoint's
      name, or the family's.

    Args:
        config: of the network; its `name_or_path` is the checkpoint's name.
        declared_stops: stop ids of the generation configuration.
        tokenizer: of the checkpoint; None if it has none.
        mask_id: overrides the checkpoint's.
        block_size: overrides the checkpoint's.
        declared_mask: mask id of the generation configuration.
        stops: override the checkpoint's stop ids. A row is filled with the first of them after a
            stop token.

    Raises:
        ValueError: there is no mask id, it is outside the vocabulary or contradicts the tokenizer;
            a stop id is invalid; stop ids are given for an encoder; or a block size is given for a
            family without attention in blocks.
    """
    if stops is not None and (isinstance(stops, str) or not isinstance(stops, Sequence)):
        raise ValueError(f"stop_ids must be a sequence of ints, got {stops!r}")
    family = family_of(config)
    size = choose_block(config, family, block_size)
    if family is ENCODER:
        from dlm.models.encoder import encoder_spec

        if stops is not None:
            raise ValueError(
                "stop_ids goes with families that were trained to end a text, and a "
                f"{config.model_type} fills blanks, got {stops!r}"
            )
        return encoder_spec(config, tokenizer, mask_id)
    rows = int(getattr(config, "embedding_size", config.vocab_size))
    owned = range(owned_rows(config, family)) if tokenizer is None else ids_of(tokenizer)
    mask = choose_mask(config, family, tokenizer, mask_id, declared_mask)
    told = others(declared_stops, mask)
    ends = stop_ids(config, family, tokenizer, told, mask) if stops is None else [*stops]
    if not ends or not all(is_id(stop, rows) and stop != mask for stop in ends):
        raise ValueError(
            f"stop ids must be ids below the vocabulary size {rows} other than the mask's "
            f"{mask}, one at least, got {ends}"
        )
    end = min(max(owned) + 1, rows)
    gaps = set(range(end)).difference(owned, ends)
    return ModelSpec(
        family=family.name,
        vocab_size=rows,
        mask_id=mask,
        eos_id=ends[0],
        stop_ids=tuple(ends),
        max_length=int(config.max_position_embeddings),
        unused=(end, rows),
        shift=family.shift,
        block_size=size,
        causal=family.causal,
        reordered=family.reordered,
        anchored=size is not None and family.anchors,
        never=tuple(sorted(gaps - {mask})),
        expand_id=expand_of(tokenizer, family),
        frame=frame_of(tokenizer, family),
        chat_options=family.chat_options,
    )


def choose_block(config: Any, family: Family, asked: int | None) -> int | None:
    """Tokens of an attention block; None for bidirectional attention.

    Raises:
        ValueError: a size is given for a family without attention in blocks, or is no positive int.
    """
    if family.reordered and asked is None:
        return int(config.max_position_embeddings)  # its decoding blocks may have any length
    if asked is None:
        return family.block_of(config, str(config.name_or_path or ""))
    if not (family.blocks or family.anchors):
        looks = "is causal" if family.reordered else "looks both ways"
        raise ValueError(
            f"block_size goes with families whose attention is in blocks, and {family.name} "
            f"{looks}, got {asked!r}"
        )
    return integer("block_size", asked, least=1)


def is_released(config: Any, family: Family) -> bool:
    """Whether the vocabulary has a released size, so that the family's ids are valid."""
    return int(getattr(config, "embedding_size", config.vocab_size)) in family.vocabularies


def owned_rows(config: Any, family: Family) -> int:
    """Rows of the embedding that belong to a token, for a checkpoint without a tokenizer."""
    known = family.tokens if is_released(config, family) else None
    return int(config.vocab_size) if known is None else known


def choose_mask(
    config: Any, family: Family, tokenizer: Any, asked: int | None, declared: int | None
) -> int:
    """The mask id, from the most specific source that has one.

    Raises:
        ValueError: no source has one, it is outside the vocabulary, or the tokenizer disagrees.
    """
    rows = int(getattr(config, "embedding_size", config.vocab_size))
    if asked is not None:
        return integer("mask_id", asked, least=0, most=rows - 1)
    sources = {
        "generation_config.json's mask_token_id": declared,
        "the configuration's mask_token_id": config.mask_token_id,
        f"the mask of {family.name}": family.mask_id if is_released(config, family) else None,
        "the tokenizer's": mask_of(tokenizer, family),
    }
    given = [(name, value) for name, value in sources.items() if value is not None]
    if not given:
        raise ValueError("mask_id is in no file of the checkpoint: pass mask_id")
    name, chosen = given[0]
    if not is_id(chosen, rows):
        raise ValueError(
            f"mask_id must be an id below the vocabulary size {rows}, got {name} {chosen!r}"
        )
    last, read = given[-1]
    if last == "the tokenizer's" and read != chosen:
        raise ValueError(f"{name} {chosen} and the tokenizer's {read} disagree; pass mask_id")
    return int(chosen)


def mask_of(tokenizer: Any, family: Family) -> int | None:
    """A tokenizer's mask id, looked up by the family's mask token if it declares none."""
    if tokenizer is None:
        return None
    declared: int | None = tokenizer.mask_token_id
    named = () if family.mask_token is None else lookup(tokenizer, (family.mask_token,))
    return next(iter(named), None) if declared is None else declared


def expand_of(tokenizer: Any, family: Family) -> int | None:
    """The id of the token that asks for another blank, if the tokenizer has one."""
    named = () if family.expand_token is None else lookup(tokenizer, (family.expand_token,))
    return next(iter(named), None)


def frame_of(tokenizer: Any, family: Family) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The ids before and after a text whose blanks may grow: begin and end of text.

    DreamOn's authors lay out a row in this way (README and eval/generator.py of
    github.com/DreamLM/DreamOn), and their tokenizer adds nothing around a text. The ids are the
    tokenizer's, independent of the `stop_ids`. None if blanks cannot grow.
    """
    if expand_of(tokenizer, family) is None:
        return None
    return tuple(ids(tokenizer.bos_token_id)), tuple(ids(tokenizer.eos_token_id))


def others(stops: Iterable[int], mask: int) -> list[int]:
    """Stop ids of a file without the mask id, which some files list because their code stops there.

    If the mask id is the only one it is kept, and rejected later: it cannot end a text.
    """
    found = list(stops)
    return [stop for stop in found if stop != mask] or found


def stop_ids(
    config: Any, family: Family, tokenizer: Any, declared: Iterable[int], mask: int
) -> list[int]:
    """Ids of end of text and end of turn, without repeats; the first fills a finished row.

    Raises:
        ValueError: no file of the checkpoint has one.
    """
    found = [*declared, *others(ids(config.eos_token_id), mask)]
    found += family.stop_ids if is_released(config, family) else ()
    found += lookup(tokenizer, family.stop_tokens)
    if not found and config.pad_token_id is not None:
        found = [config.pad_token_id]  # ends a text in releases that name no end of text
    if not found:
        raise ValueError("eos_token_id is in no file of the checkpoint: pass stop_ids")
    return list(dict.fromkeys(found))


def with_stops(spec: ModelSpec, stops: Sequence[int], told: Sequence[int]) -> ModelSpec:
    """The facts with other stop ids.

    Args:
        spec: the facts.
        stops: the new stop ids. The facts stay as they are if these are empty, equal to `told`, or
            all stop ids already.
        told: the stop ids that the facts were derived from.

    Raises:
        ValueError: an id is outside the vocabulary or is the mask id.
    """
    if not stops or list(stops) == list(told) or set(spec.stop_ids).issuperset(stops):
        return spec
    integers("eos_token_id", stops, least=0, most=spec.vocab_size - 1)
    if spec.mask_id in stops:
        raise ValueError(f"eos_token_id must not be the mask id {spec.mask_id}")
    return replace(spec, stop_ids=tuple(stops), eos_id=stops[0])


def is_id(value: object, rows: int) -> bool:
    """Whether a value is a token id of an embedding with this number of rows."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < rows


def lookup(tokenizer: Any, tokens: Iterable[str]) -> list[int]:
    """The ids of those of the tokens that the tokenizer has."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens if token in vocabulary]


def ids_of(tokenizer: Any) -> set[int]:
    """All ids that belong to a token."""
    return set(tokenizer.get_vocab().values())


def ids(value: int | Sequence[int] | None) -> list[int]:
    """The token ids in a field or option that holds none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]  # type: ignore[list-item]
