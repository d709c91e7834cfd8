"""Encodes what surrounds the blanks of a request: prompts, chats and suffixes."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from dlm.job import check_length
from dlm.models.model import Model
from dlm.prompts import (
    CONTINUE,
    HoldsMask,
    TooLong,
    check_chat_options,
    encode_infill,
    encode_prompts,
    opened,
    tokenizer_of,
    whole_text,
)
from dlm.reading import vocabulary_of
from dlm.serving import fields, messages
from dlm.serving.tools import Tools, check_template

MOST_ROWS = 1024  # of a request

FROM_TEMPLATES = (
    *(TemplateError, TypeError, ArithmeticError, LookupError, ValueError),
    RecursionError,  # from deeply nested values
)
"""Errors of rendering: templates refuse roles, and compute with what they are given."""


@dataclass(frozen=True, slots=True)
class Around:
    """Token ids around what is decoded, without those that close every row of the family."""

    before: list[int]
    behind: list[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.behind)


def read_prompts(body: fields.Body, model: Model, n: int) -> list[Any]:
    """Texts or lists of token ids, each to be answered `n` times.

    Raises:
        ValueError: they are something else, too many or too long.
    """
    if "prompt" not in body:
        raise ValueError("prompt must be there")
    value = body["prompt"]
    # The amount is checked first, because reading every prompt takes long.
    several = isinstance(value, list) and value and isinstance(value[0], str | list)
    listed = value if several else [value]
    if len(listed) * n > MOST_ROWS:
        raise ValueError(f"prompt times n must be at most {MOST_ROWS}, got {len(listed)} times {n}")
    for prompt in listed:
        if isinstance(prompt, str):
            refuse_long(model, "prompt", len(prompt))
        elif isinstance(prompt, list):
            check_length(model, len(prompt), "prompt")
    return fields.read_prompts(value)


def read_messages(body: fields.Body, model: Model) -> list[dict[str, Any]]:
    """The messages of a chat.

    Raises:
        ValueError: they are something else, or too long.
    """
    if "messages" not in body:
        raise ValueError("messages must be there")
    read = messages.read_messages(body["messages"])
    parts = (part for message in read for part in message.values())
    texts = (part if isinstance(part, str) else json.dumps(part) for part in parts)
    refuse_long(model, "messages", sum(map(len, texts)))
    return read


def refuse_long(model: Model, name: str, length: int) -> None:
    """Refuse texts that are too long however they are tokenized, before they are.

    Raises:
        TooLong: a text is.
    """
    most = model.spec.max_length
    if length > most * vocabulary_of(tokenizer_of(model, name)).longest:
        raise TooLong(f"{name} must fit the model's {most} positions, got {length} characters")


def encode_chat(
    body: fields.Body, model: Model, given: Sequence[Mapping[str, Any]], tools: Tools | None
) -> Around:
    """Token ids of a chat, whose last message is answered or continued.

    Raises:
        ValueError: the template does not have such a variable, does not take the messages, or has
            no calls.
    """
    chat_options = body.get("chat_template_kwargs", {})
    continues = messages.read_continues(body, given)
    if not isinstance(chat_options, Mapping):
        raise ValueError(f"chat_template_kwargs must be an object, got {chat_options!r}")
    refuse_arguments(model, chat_options)
    if tools is not None or any("tool_calls" in message for message in given):
        check_template(model)
    if tools is not None:
        if "tools" in chat_options:
            raise ValueError("tools must not be in chat_template_kwargs as well")
        chat_options = {**chat_options, "tools": tools.listed}
    try:
        (ids,) = encode_prompts(model, given, {**chat_options, CONTINUE: continues})
    except HoldsMask as error:
        raise ValueError(masked(model, "messages")) from error
    except FROM_TEMPLATES as error:
        if is_ours(error):
            raise
        raise ValueError(f"messages must fit the model's chat template: {error}") from error
    return Around(ids, [])


def is_ours(error: BaseException) -> bool:
    """Whether an error comes from a check of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and where.partition(".")[0] == "dlm"


def encode_completions(model: Model, prompts: Sequence[Any], suffix: str) -> list[Around]:
    """What surrounds the blanks of completions; with a suffix, as `dlm.infill` lays out a text.

    Raises:
        ValueError: a text holds the mask, or the model has no tokenizer for it.
    """
    behind = encode_suffix(model, suffix) if suffix else []
    try:
        if suffix:
            return [Around(encode_front(model, prompt), behind) for prompt in prompts]
        return [Around(ids, behind) for ids in encode_prompts(model, prompts)]
    except HoldsMask as error:
        raise ValueError(masked(model, "prompt")) from error


def encode_front(model: Model, prompt: Any) -> list[int]:
    """Token ids of a prompt before a suffix. It may be empty: a blank may be the first token.

    Raises:
        ValueError: it is empty, and the model predicts a token from the one before it.
    """
    if not isinstance(prompt, str):
        return encode_prompts(model, [prompt])[0]
    row = encode_infill(model, prompt, "", 1)
    ids = row[: row.index(model.spec.mask_id)]
    if model.spec.shift and not ids:
        raise ValueError(
            f"prompt must not be empty for {model.spec.family}, which predicts a token from the "
            f"one before it, got {prompt!r}"
        )
    return ids


def encode_suffix(model: Model, text: str) -> list[int]:
    """Token ids of the text that follows a completion.

    Raises:
        ValueError: they hold the mask, or the model has no tokenizer.
    """
    refuse_long(model, "suffix", len(text))
    try:
        row = encode_infill(model, "", text, 1)
    except HoldsMask as error:
        raise ValueError(masked(model, "suffix")) from error
    return opened(row[row.index(model.spec.mask_id) + 1 :], model.spec.suffix)


def masked(model: Model, what: str) -> str:
    """The error message if a text or token ids hold the mask."""
    mask, tokenizer = model.spec.mask_id, model.tokenizer
    name = "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(mask)!r}"
    return (
        f"{what} must not hold the mask{name}, id {mask}: it stands for what is decoded, which "
        "comes behind a prompt, or between a prompt and a suffix"
    )


def refuse_arguments(model: Model, chat_options: Mapping[str, Any]) -> None:
    """Refuse template variables that the tokenizer would take for its own options.

    Variables that the template does not read are refused, too.

    Raises:
        ValueError: there is such a variable, for example a template of the client's own.
    """
    if not chat_options:
        return
    tokenizer = tokenizer_of(model, "a chat prompt")
    render = tokenizer.apply_chat_template
    own = inspect.signature(render).parameters.keys() - {"tools", "documents"}
    for name in chat_options:
        cut = name[: fields.LONGEST_NAME]  # close matches of longer names take long to find
        if name in own or name != cut:
            raise ValueError(f"chat_template_kwargs must be variables of the template, got {cut!r}")
    if tokenizer.chat_template is not None:
        check_chat_options(tokenizer.get_chat_template(), chat_options, "chat_template_kwargs")


def text_of(model: Model, prompt: Any) -> str:
    """The text of a prompt; for token ids, their text without special tokens."""
    return prompt if isinstance(prompt, str) else whole_text(model, prompt)
