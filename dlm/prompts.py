"""Encoding of prompts to token ids."""

import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

from dlm.given import Array, listed, message_text
from dlm.models.model import Model
from dlm.options import boolean, integer, integers, names_checked, writable

Prompt = str | Sequence[int] | Array | Sequence[Mapping[str, Any]]
"""Text, token ids, or chat messages with `role` and `content`."""
Prompts = Prompt | Iterable[Prompt] | Mapping[str, Any]
"""One or several prompts, or a tokenizer's output for one or several."""

CONTINUE = "continue_final_message"
"""transformers' name for the option to continue a chat's last message instead of answering it."""

BLANK = re.compile(r"\[MASK(?::(\d+))?\]")


class HoldsMask(ValueError):
    """A prompt contains the mask token."""


class TooLong(ValueError):
    """A row is longer than the model supports."""


@names_checked
def encode_prompts(
    model: Model,
    prompts: Prompts,
    chat_options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of one prompt, or of each of several.

    Text is tokenized as it stands; chat messages go through the chat template. The tokens that
    close every row of the model's family (`ModelSpec.suffix`) are removed: they go after what is
    generated.

    Args:
        model: gives the tokenizer and the vocabulary.
        prompts: text, token ids, chat messages, or several of those. Token ids may be tensors or
            arrays, [P] or [B, P], or a tokenizer's output, whose padding is then removed.
        chat_options: variables of the chat template, such as `enable_thinking=False` of Qwen3's.
            `continue_final_message=True` continues the last message of a chat, for example the
            assistant's; otherwise a new assistant message begins after it.

    Raises:
        ValueError: this is no model or no prompt; a prompt is empty; an id is outside the
            vocabulary or is the mask id (`HoldsMask`); the model has no tokenizer for a text; the
            template reads no such chat option; or a chat ends with the assistant and is not to be
            continued.
    """
    check_model(model)
    if chat_options is not None and not isinstance(chat_options, Mapping):
        raise ValueError(f"chat_options must be a mapping, got {chat_options!r}")
    several = as_list(prompts)
    rows = []
    for number, prompt in enumerate(several):
        try:
            rows.append(encode_prompt(model, prompt, chat_options))
        except ValueError as error:
            if len(several) == 1:
                raise
            raise ValueError(f"prompt {number}: {error}") from error
    for number, row in enumerate(rows):
        if model.spec.mask_id in row:
            raise HoldsMask(
                f"prompt {number} holds the mask id {model.spec.mask_id}: use dlm.infill for blanks"
            )
    return [opened(row, model.spec.suffix) for row in rows]


def check_model(model: object) -> None:
    """Reject anything that is not a model, such as the name of one."""
    if not isinstance(model, Model):
        # The repr of a network or pipeline can fill pages.
        named = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise ValueError(
            f"model must be what dlm.load gave, or dlm.as_model made of a network, got {named}"
        )


def opened(row: list[int], suffix: tuple[int, ...]) -> list[int]:
    """A row without the token ids that close it."""
    closed = suffix and tuple(row[-len(suffix) :]) == suffix
    return row[: -len(suffix)] if closed else row


def as_list(prompts: Prompts) -> Sequence[Prompt]:
    """Wrap one prompt in a list; return several as they are."""
    if isinstance(prompts, str):
        return [prompts]
    given = listed(prompts)
    if isinstance(given, Mapping) and "role" in given:
        raise ValueError(f"prompts must be lists of chat messages, got one message: {given!r}")
    if not isinstance(given, Sequence) or not given:
        raise ValueError(
            "prompts must be a text, token ids, chat messages or a non-empty list of those, "
            f"got {prompts!r}"
        )
    first = given[0]
    chats = isinstance(first, Mapping) and "input_ids" not in first
    one = chats or isinstance(first, Number)  # numpy scalars too
    return [given] if one else given


def encode_prompt(
    model: Model, prompt: Prompt, chat_options: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of one prompt."""
    given = listed(prompt)
    if isinstance(prompt, Mapping) and isinstance(given, Sequence) and len(given) == 1:
        given = given[0] if isinstance(given[0], list) else given  # a tokenizer's [1, P]
    several = isinstance(given, Sequence) and not isinstance(given, str)
    chat = several and bool(given) and isinstance(given[0], Mapping)
    if chat_options and not chat:
        raise ValueError(f"chat_options are for chat messages, got the prompt {prompt!r}")
    if isinstance(given, str):
        ids = tokenizer_of(model, "a text prompt")(writable(given, "a prompt"))["input_ids"]
    elif chat:
        ids = encode_chat(model, given, chat_options or {})
    else:
        ids = integers("a prompt's token ids", given, least=0)
    if not ids:
        raise ValueError(f"a prompt must hold at least one token, got {prompt!r}")
    if max(ids) >= model.spec.vocab_size:
        raise ValueError(
            f"token ids must be below the vocabulary size {model.spec.vocab_size}, got {max(ids)}"
        )
    return list(ids)


def encode_chat(
    model: Model, messages: Sequence[Mapping[str, Any]], chat_options: Mapping[str, Any]
) -> list[int]:
    """Token ids of chat messages, up to where the assistant or the last message goes on."""
    tokenizer = tokenizer_of(model, "a chat prompt")
    texts = [checked_message(message) for message in messages]
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: give text or token ids")
    told = dict(chat_options)
    continues = boolean(CONTINUE, told.pop(CONTINUE, False))
    check_chat_options(tokenizer.get_chat_template(), told)
    if messages[-1]["role"] == "assistant" and not continues:
        raise ValueError(
            "a chat must end with a message to the assistant, got one of the assistant: "
            f"dlm.encode_prompts(model, chat, chat_options={{{CONTINUE!r}: True}}) continues it"
        )
    ids: list[int] = tokenizer.apply_chat_template(
        texts,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        return_dict=False,
        **dict(model.spec.chat_options) | told,
    )
    return ids


def check_chat_options(
    template: str, chat_options: Mapping[str, Any], called: str = "chat_options"
) -> None:
    """Reject variables that a chat template ignores, and those that it gets anyway."""
    for name in chat_options:
        read = re.search(rf"\b{re.escape(name)}\b", template)
        if not read or name in ("messages", "add_generation_prompt"):
            raise ValueError(
                f"{called} must hold variables that the chat template reads, beside messages "
                f"and add_generation_prompt, got {name!r}"
            )


def checked_message(message: Any) -> dict[str, Any]:
    """A chat message, with its content as one text.

    Raises:
        ValueError: it is not a chat message.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"a chat message must have texts role and content, got {message!r}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        content = ""
    if content is None:
        raise ValueError(f"a chat message must have texts role and content, got {message!r}")
    writable(message["role"], "a chat message")
    return {**message, "content": message_text(content, "a chat message")}


def encode_texts(model: Model, texts: Prompts) -> list[list[int]]:
    """Token ids of one text with blanks, or of several.

    Raises:
        ValueError: a text has no blank, its blanks exceed the model's positions, or chat messages
            are given.
    """
    given, mask_id = as_list(texts), model.spec.mask_id
    rows = [encode_blanks(model, text) for text in given]
    for number, (text, row) in enumerate(zip(given, rows, strict=True)):
        if mask_id not in row:
            write = "[MASK] or [MASK:8]" if isinstance(text, str) else f"the mask id {mask_id}"
            raise ValueError(
                f"text {number} has no blank: write {write} where tokens are missing, "
                f"got {repr(text)[:80]}"
            )
    return rows


@names_checked
def encode_infill(model: Model, prefix: str, suffix: str, blanks: int) -> list[int]:
    """Token ids of a row with a number of blanks between two texts, laid out as `infill` does.

    They equal those of the text `f"{prefix}[MASK:{blanks}]{suffix}"`, except that `[MASK]` within
    the two texts is plain text here. The row is framed by what the network was trained with, such
    as begin and end of text for DreamOn, unless the texts have it; otherwise by what the tokenizer
    adds. Rows may be longer than the model supports.

    Raises:
        ValueError: `blanks` is no int from 1, this is no model or no text, the model has no
            tokenizer, or a text contains the mask token (`HoldsMask`).
    """
    check_model(model)
    for name, text in (("prefix", prefix), ("suffix", suffix)):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a text, got {text!r}")
        writable(text, f"the {name}")
    row = encode_pieces(model, [prefix, suffix], [integer("blanks", blanks, least=1)])
    if row.count(model.spec.mask_id) != blanks:
        raise HoldsMask(
            f"prefix and suffix must not hold the mask id {model.spec.mask_id}, got "
            f"{row.count(model.spec.mask_id)} of it in a row with {blanks} blanks"
        )
    return row


def encode_blanks(model: Model, text: Prompt) -> list[int]:
    """Token ids of a text with blanks: `[MASK]` is one masked token, `[MASK:8]` eight.

    Token ids may contain the mask id directly, and are returned as they are.
    """
    if not isinstance(text, str):
        ids = listed(text)
        if isinstance(ids, Sequence) and ids and isinstance(ids[0], Mapping):
            raise ValueError(
                "a text with blanks must be a text or token ids, got chat messages: token ids of "
                "a chat are dlm.encode_prompts(model, chat), a blank is model.spec.mask_id"
            )
        return encode_prompt(model, ids)
    tokenizer_of(model, "a text")
    lengths = blank_lengths(writable(text, "a text"), model.spec.max_length)
    return encode_pieces(model, BLANK.split(text)[::2], lengths)


def encode_pieces(model: Model, pieces: Sequence[str], lengths: Sequence[int]) -> list[int]:
    """Token ids of texts with the given numbers of blanks between them.

    They are framed by what the network was trained with (`ModelSpec.frame`), or else by what the
    tokenizer adds around a text.

    Raises:
        ValueError: the tokenizer makes fewer tokens than blanks.
    """
    tokenizer, spec = tokenizer_of(model, "a text"), model.spec
    marks = tokenizer.mask_token_id == spec.mask_id
    ids = (encode_marked if marks else encode_unmarked)(model, pieces, lengths)
    if ids.count(spec.mask_id) < sum(lengths):
        raise ValueError(
            f"the tokenizer must make a token of each blank, got {ids.count(spec.mask_id)} "
            f"of {sum(lengths)}"
        )
    return ids if spec.frame is None else framed(ids, *spec.frame)


def encode_marked(model: Model, pieces: Sequence[str], lengths: Sequence[int]) -> list[int]:
    """Token ids of texts and blanks, for a tokenizer that has a mask token.

    Tokenized in one piece, because the mask token may absorb spaces around it, and so that the
    tokenizer's special tokens go around the whole.
    """
    tokenizer = tokenizer_of(model, "a text")
    blanks = [tokenizer.mask_token * length for length in lengths]
    marked = pieces[0] + "".join(b + p for b, p in zip(blanks, pieces[1:], strict=True))
    return list(tokenizer(marked, add_special_tokens=model.spec.frame is None)["input_ids"])


def encode_unmarked(model: Model, pieces: Sequence[str], lengths: Sequence[int]) -> list[int]:
    """Token ids of texts and blanks, for a tokenizer that has no mask token."""
    tokenizer, spec = tokenizer_of(model, "a text"), model.spec
    front, back = ([], []) if spec.frame else added(tokenizer)
    ids = front + bare(tokenizer, pieces[0])
    for length, piece in zip(lengths, pieces[1:], strict=True):
        ids += [spec.mask_id] * length + bare(tokenizer, piece)
    return [*opened(ids + back, spec.suffix), *spec.suffix]


def bare(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that a tokenizer adds before and after a text."""
    text, whole = bare(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    places = range(len(whole) - len(text) + 1) if text else ()
    begin = next((n for n in places if whole[n : n + len(text)] == text), len(whole))
    return whole[:begin], whole[begin + len(text) :]


def framed(ids: list[int], front: tuple[int, ...], back: tuple[int, ...]) -> list[int]:
    """Token ids with a frame around them, unless the text already has it."""
    begun = tuple(ids[: len(front)]) == front
    closed = tuple(ids[len(ids) - len(back) :]) == back
    return [*(() if begun else front), *ids, *(() if closed else back)]


def blank_lengths(text: str, most: int) -> list[int]:
    """The number of masked tokens of each blank.

    Raises:
        ValueError: a blank is empty, or they exceed `most` in total.
    """
    written = [blank.group(1) or "1" for blank in BLANK.finditer(text)]
    # Python refuses to parse an int of thousands of digits.
    lengths = [
        integer("the length of a blank", int(number.lstrip("0")[:20] or 0), least=1)
        for number in written
    ]
    if sum(lengths) > most:
        raise ValueError(
            f"the blanks of a text must fit the model's {most} positions, got {sum(lengths)} tokens"
        )
    return lengths


def tokenizer_of(model: Model, what: str) -> Any:
    """The tokenizer, which `what` needs.

    Raises:
        ValueError: the model was loaded without one.
    """
    if model.tokenizer is None:
        raise ValueError(f"{what} needs a tokenizer and this model has none: give token ids")
    return model.tokenizer


def whole_text(model: Model, tokens: Sequence[int]) -> str:
    """Text of a whole row, without special tokens."""
    tokenizer = tokenizer_of(model, "decoding")
    text: str = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def decode_text(model: Model, tokens: Sequence[int]) -> str:
    """Text up to the first stop token, without special tokens."""
    end = next((i for i, token in enumerate(tokens) if token in model.spec.stop_ids), len(tokens))
    return whole_text(model, tokens[:end])
