"""Bodies of OpenAI's endpoints for completions and chat, as requests to the engine.

All that can be refused without the network is refused here.
"""

import dataclasses
import inspect
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jinja2 import TemplateError

from dlm import foreign
from dlm.decoders import DECODERS
from dlm.job import check_length, continued
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import NOTHING, integer, known
from dlm.prompts import (
    CONTINUE,
    HoldsMask,
    TooLong,
    check_chat_options,
    encode_prompts,
    tokenizer_of,
    whole_text,
)
from dlm.reading import vocabulary_of
from dlm.serving import fields
from dlm.serving.blanks import read_blanks
from dlm.serving.work import Request
from dlm.settings import Settings
from dlm.traits import CACHES

SEED_BITS = 53  # numbers that JSON's readers keep, whatever they are written in
MOST_ROWS = 1024  # of a request
MOST_TOKENS = 1 << 22  # of all rows of a request together
MOST_STEPS = 1 << 14  # some decoders make all the forwards that they are given
MOST_OF_DECODER = 256  # some decoders hold so much for each token, or add so many forwards

DEFAULTS = ("gen_length", *fields.OPTIONS)
"""Options that a server may be started with."""

FROM_TEMPLATES = (TemplateError, TypeError, ArithmeticError, LookupError, ValueError)
"""What rendering raises: templates refuse roles, and compute with what they are given."""


class UnknownModel(ValueError):
    """A body names a model that is not served."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with what its answer needs beside."""

    request: Request  # choices in the order of the answer: n of the first prompt, n of the next
    chat: bool
    n: int  # choices of each prompt
    prompt_tokens: int  # each prompt once
    fills: bool  # whether a suffix stands behind what is decoded
    stop: tuple[str, ...]  # texts that end a choice
    stream: bool
    include_usage: bool  # at the end of a stream
    logprobs: int | None = None  # likeliest tokens to list beside those of the text; None for none
    echoes: tuple[str, ...] = ()  # texts of the prompts in front of the choices, if they are to be


def read_request(
    data: bytes, *, chat: bool, model: Model, name: str, defaults: Mapping[str, Any]
) -> Asked:
    """What a body asks for.

    Args:
        data: the body.
        chat: whether it is for /v1/chat/completions, else for /v1/completions.
        model: who answers.
        name: of the model, as it is served.
        defaults: options of `dlm.generate` that fields of the body override.

    Raises:
        ValueError: a field breaks its rule, or cannot be honoured; `UnknownModel` for the name.
    """
    names = fields.CHAT if chat else fields.COMPLETION
    body = fields.stated(fields.read_json(data), names)
    check_labels(body, name)
    n = integer("n", body.get("n", 1), least=1, most=fields.MOST_CHOICES)
    fields.refuse_unsupported(body, names, n)
    stop = fields.read_stop(body.get("stop", []))
    if stop:
        tokenizer_of(model, "stop")
    stream, include_usage = fields.read_stream(body)
    logprobs = fields.read_logprobs(body, chat=chat)
    echo = not chat and fields.read_echo(body, logprobs)
    prompts = read_messages(body, model) if chat else read_prompts(body, model, n)
    after = encode_suffix(model, fields.read_suffix(body.get("suffix", "")))
    if after:  # as in `dlm.infill`: what follows is given
        body.setdefault("stop_at_eos", False)
    settings = read_settings(body, defaults, model.spec, len(prompts) * n)
    what = "messages" if chat else "prompt"
    try:
        if chat:
            variables = body.get("chat_template_kwargs", {})
            continues = fields.read_continues(body, prompts)
            encoded = [encode_chat(model, prompts, variables, continues=continues)]
        else:
            encoded = encode_prompts(model, prompts)
    except HoldsMask as error:
        raise ValueError(masked(model, what)) from error
    if fields.read_length(body) is None:  # as long as the server says, where that much is left
        closed = max(map(len, encoded)) + len(after) + len(model.spec.suffix)
        room = max(1, model.spec.max_length - closed)
        if room < settings.gen_length:
            settings = replace(settings, gen_length=room)
    closing = len(after) + len(model.spec.suffix)
    longest = max(map(len, encoded)) + settings.gen_length + closing
    check_length(model, longest, f"{what} and max_tokens")
    length, lists = settings.gen_length, logprobs is not None
    begun, growth = read_blanks(body, model.spec, length, fills=bool(after), lists=lists)
    rows, spans = rows_of(model, encoded, begun, length, after, n)
    if growth is not None:
        growth.check(model, rows, settings)
    follow = stream or bool(stop)
    given = [text_of(model, each) for each in prompts] if echo else []
    return Asked(
        request=Request(rows, spans, settings, follow, lists, logprobs or 0, growth),
        chat=chat,
        n=n,
        prompt_tokens=sum(len(prompt) + len(after) for prompt in encoded),
        fills=bool(after),
        stop=stop,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
        echoes=tuple(text for text in given for _ in range(n)),
    )


def text_of(model: Model, prompt: Any) -> str:
    """A prompt as it was given, of token ids the text without special tokens."""
    return prompt if isinstance(prompt, str) else whole_text(model, prompt)


def check_defaults(defaults: Mapping[str, Any], model: Model) -> None:
    """Refuse options that no request could be answered with.

    Raises:
        ValueError: one is unknown, breaks its rule or does not fit the model.
    """
    for name in defaults:
        known("option of a server", name, DEFAULTS)
    Settings.of(defaults).check_model(model.spec)


def check_labels(body: fields.Body, name: str) -> None:
    """Refuse another model's name, and labels that are not what they should be."""
    asked = body.get("model", name)
    if asked != name:
        raise UnknownModel(f"model must be {name!r}, which is served here, got {asked!r}")
    for label, (kind, said) in fields.LABELS.items():
        if label in body and not isinstance(body[label], kind):
            raise ValueError(f"{label} must be {said}, got {body[label]!r}")


def read_prompts(body: fields.Body, model: Model, n: int) -> list[Any]:
    """Texts or lists of token ids, each to be answered `n` times.

    Raises:
        ValueError: they are something else, or too many or too long.
    """
    if "prompt" not in body:
        raise ValueError("prompt must be there")
    value = body["prompt"]
    # How much there is first: to look at each takes long.
    several = isinstance(value, list) and value and isinstance(value[0], str | list)
    listed = value if several else [value]
    if len(listed) * n > MOST_ROWS:
        raise ValueError(
            f"prompts times n must be at most {MOST_ROWS}, got {len(listed)} times {n}"
        )
    for prompt in listed:
        if isinstance(prompt, str):
            refuse_long(model, "prompt", len(prompt))
        elif isinstance(prompt, list):
            check_length(model, len(prompt), "prompt")
    return fields.read_prompts(value)


def read_messages(body: fields.Body, model: Model) -> list[dict[str, str]]:
    """The messages of a chat.

    Raises:
        ValueError: they are something else, or too long.
    """
    if "messages" not in body:
        raise ValueError("messages must be there")
    messages = fields.read_messages(body["messages"])
    texts = (text for message in messages for text in message.values())
    refuse_long(model, "messages", sum(map(len, texts)))
    return messages


def refuse_long(model: Model, name: str, length: int) -> None:
    """Refuse texts that are too long for any tokens, before these are sought.

    Raises:
        TooLong: they are.
    """
    most = model.spec.max_length
    if length > most * vocabulary_of(tokenizer_of(model, name)).longest:
        raise TooLong(f"{name} must fit the model's {most} positions, got {length} characters")


def read_settings(
    body: fields.Body, defaults: Mapping[str, Any], spec: ModelSpec, rows: int
) -> Settings:
    """The options of a body over those of the server."""
    given = {name: body[name] for name in fields.OPTIONS if name in body}
    length = fields.read_length(body)
    if length is not None:
        given["gen_length"] = length
    if type(given.get("top_k")) is int and given["top_k"] in (-1, 0):  # off, as elsewhere
        given["top_k"] = None
    if "logit_bias" in given:
        given["logit_bias"] = fields.read_bias(given["logit_bias"])
    used = defaults.get("decoder", Settings().decoder)
    kept_cache = defaults.get("cache", "none")
    refuse_names(given)
    refuse_files(given.get("decoder", used), given.get("decoder_options"))
    refuse_work(given, spec)
    gone = set()
    if given.get("decoder", used) != used:
        gone.add("decoder_options")
    if given.get("cache", kept_cache) != kept_cache:
        gone |= {"refresh_every", "refresh_around"}  # they speak of the other cache
    kept = {name: value for name, value in defaults.items() if name not in gone}
    if "seed" not in {*kept, *given}:
        given["seed"] = secrets.randbits(SEED_BITS)  # which the answer tells
    settings = Settings.of({**kept, **given, "row_keys": list(range(rows))})
    settings.check_model(spec)
    return settings


def refuse_names(given: Mapping[str, Any]) -> None:
    """Refuse unknown names here, where long ones are cut.

    Raises:
        ValueError: one is unknown, or the name of an option is long.
    """
    for kind, names, instead in (
        ("decoder", DECODERS, foreign.DECODERS),
        ("cache", CACHES, NOTHING),
    ):
        if isinstance(given.get(kind), str):
            fields.known_name(kind, given[kind], names, instead)
    options = given.get("decoder_options")
    longest = max(map(len, options), default=0) if isinstance(options, Mapping) else 0
    if longest > fields.LONGEST_NAME:
        raise ValueError(
            f"names in decoder_options must be at most {fields.LONGEST_NAME} characters, "
            f"got {longest}"
        )


def refuse_files(decoder: Any, options: Any) -> None:
    """Refuse options of a decoder that would have the server read a file.

    Raises:
        ValueError: one names a file.
    """
    if not isinstance(decoder, str) or decoder not in DECODERS or not isinstance(options, Mapping):
        return  # `Settings` says what is wrong
    hints = get_type_hints(DECODERS[decoder])
    for field in dataclasses.fields(DECODERS[decoder]):  # type: ignore[arg-type]
        value = options.get(field.name)
        names_file = isinstance(value, str) and value != field.default
        if names_file and Path in get_args(hints[field.name]):
            raise ValueError(
                f"{field.name} of {decoder} must name no file in a request, got {value!r}: start "
                "the server with it"
            )


def refuse_work(given: Mapping[str, Any], spec: ModelSpec) -> None:
    """Refuse options that ask for more memory or forwards than a request should take.

    Raises:
        ValueError: one does.
    """
    if given.get("steps") is not None:
        integer("steps", given["steps"], least=1, most=MOST_STEPS)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        value = given.get(name, ())
        if isinstance(value, Sequence) and len(value) > spec.vocab_size:
            raise ValueError(
                f"{name} must be at most the {spec.vocab_size} ids of the vocabulary, "
                f"got {len(value)}"
            )
    options = given.get("decoder_options")
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if isinstance(value, int) and value > MOST_OF_DECODER:
            raise ValueError(
                f"{name} of decoder_options must be at most {MOST_OF_DECODER} in a request, "
                f"got {value}"
            )


def encode_chat(
    model: Model,
    messages: Sequence[Mapping[str, str]],
    chat_options: Any,
    *,
    continues: bool = False,
) -> list[int]:
    """Token ids of messages; what comes next goes on with the last one, or answers it.

    Raises:
        ValueError: the template has no variable of such a name, or does not take the messages.
    """
    if not isinstance(chat_options, Mapping):
        raise ValueError(f"chat_template_kwargs must be an object, got {chat_options!r}")
    refuse_arguments(model, chat_options)
    try:
        (ids,) = encode_prompts(model, messages, {**chat_options, CONTINUE: continues})
    except FROM_TEMPLATES as error:
        if is_ours(error):
            raise
        raise ValueError(f"messages must fit the model's chat template: {error}") from error
    return ids


def is_ours(error: BaseException) -> bool:
    """Whether it is a check of this package that an error comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(error, ValueError) and where.partition(".")[0] == "dlm"


def encode_suffix(model: Model, text: str) -> list[int]:
    """Token ids of what stands behind a completion.

    Raises:
        ValueError: they hold the mask, or the model has no tokenizer.
    """
    if not text:
        return []
    refuse_long(model, "suffix", len(text))
    ids: list[int] = tokenizer_of(model, "suffix")(text, add_special_tokens=False)["input_ids"]
    if model.spec.mask_id in ids:
        raise ValueError(masked(model, "suffix"))
    return ids


def masked(model: Model, what: str) -> str:
    """What is said where a text or token ids have the mask in them."""
    mask, tokenizer = model.spec.mask_id, model.tokenizer
    name = "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(mask)!r}"
    return (
        f"{what} must not hold the mask{name}, id {mask}: it stands for what is decoded, which "
        "comes behind a prompt, or between a prompt and a suffix"
    )


def refuse_arguments(model: Model, chat_options: Mapping[str, Any]) -> None:
    """Refuse variables of a chat template that the tokenizer would take for its own options.

    And those that the template does not read.

    Raises:
        ValueError: one is, such as a template of the client's own.
    """
    if not chat_options:
        return
    tokenizer = tokenizer_of(model, "a chat prompt")
    render = tokenizer.apply_chat_template
    own = inspect.signature(render).parameters.keys() - {"tools", "documents"}
    for name in chat_options:
        cut = name[: fields.LONGEST_NAME]  # a longer one takes long to look for
        if name in own or name != cut:
            raise ValueError(f"chat_template_kwargs must be variables of the template, got {cut!r}")
    if tokenizer.chat_template is not None:
        check_chat_options(tokenizer.get_chat_template(), chat_options, "chat_template_kwargs")


def rows_of(
    model: Model, encoded: Sequence[list[int]], begun: int, most: int, after: Sequence[int], n: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows of each prompt `n` times, with what is to be decoded behind, and where that lies.

    They begin with `begun` blanks each, and grow to `most` of them.
    """
    total = n * sum(len(prompt) + most + len(after) for prompt in encoded)
    if total > MOST_TOKENS:
        raise ValueError(f"all choices must hold at most {MOST_TOKENS} tokens, got {total}")
    copies = [prompt for prompt in encoded for _ in range(n)]
    return continued(model, copies, [begun] * len(copies), after)
