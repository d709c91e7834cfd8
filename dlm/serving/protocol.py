"""Bodies of OpenAI's endpoints for completions and chat, as requests to the engine.

All that can be refused without the network is refused here.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jinja2 import TemplateError

from dlm.decoders import DECODERS
from dlm.generation import check_length, continued
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import integer, known
from dlm.prompts import encode_prompts, tokenizer_of
from dlm.serving import fields
from dlm.serving.work import Request
from dlm.settings import Settings

MOST_ROWS = 1024  # of a request
MOST_TOKENS = 1 << 22  # of all rows of a request together
MOST_STEPS = 1 << 14  # some decoders make all the forwards that they are given
MOST_OF_DECODER = 256  # some decoders hold so much for each token, or add so many forwards

DEFAULTS = ("gen_length", *fields.OPTIONS)
"""Options that a server may be started with."""


class UnknownModel(ValueError):
    """A body names a model that is not served."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with what its answer needs beside."""

    request: Request  # choices in the order of the answer: n of the first prompt, n of the next
    chat: bool
    prompt_tokens: int  # each prompt once
    stop: tuple[str, ...]  # texts that end a choice
    stream: bool
    include_usage: bool  # at the end of a stream


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
    fields.refuse_unsupported(body, n)
    stop = fields.read_stop(body.get("stop", []))
    if stop:
        tokenizer_of(model, "stop")
    stream, include_usage = fields.read_stream(body)
    prompts = read_prompts(body, chat=chat)
    if len(prompts) * n > MOST_ROWS:
        raise ValueError(
            f"prompts times n must be at most {MOST_ROWS}, got {len(prompts)} times {n}"
        )
    settings = read_settings(body, defaults, model.spec, len(prompts) * n)
    encoded = encode(model, prompts, body.get("chat_template_kwargs", {}))
    rows, spans = lay_out(model, encoded, settings.gen_length, n)
    return Asked(
        request=Request(rows, spans, settings, follow=stream or bool(stop)),
        chat=chat,
        prompt_tokens=sum(map(len, encoded)),
        stop=stop,
        stream=stream,
        include_usage=include_usage,
    )


def check_defaults(defaults: Mapping[str, Any], model: Model) -> None:
    """Refuse options that no request could be answered with.

    Raises:
        ValueError: one is unknown, breaks its rule or does not fit the model.
    """
    for name in defaults:
        known("option of a server", name, DEFAULTS)
    Settings.of(defaults).check_model(model.spec)


def check_labels(body: fields.Body, name: str) -> None:
    """Refuse another model's name, and a user that is no text."""
    asked = body.get("model", name)
    if asked != name:
        raise UnknownModel(f"model must be {name!r}, which is served here, got {asked!r}")
    if not isinstance(body.get("user", ""), str):
        raise ValueError(f"user must be a text, got {body['user']!r}")


def read_prompts(body: fields.Body, *, chat: bool) -> list[Any]:
    """What `encode_prompts` takes, one for each prompt."""
    field = "messages" if chat else "prompt"
    if field not in body:
        raise ValueError(f"{field} must be there")
    return [fields.read_messages(body[field])] if chat else fields.read_prompts(body[field])


def read_settings(
    body: fields.Body, defaults: Mapping[str, Any], spec: ModelSpec, rows: int
) -> Settings:
    """The options of a body over those of the server."""
    given = {name: body[name] for name in fields.OPTIONS if name in body}
    length = fields.read_length(body)
    if length is not None:
        given["gen_length"] = length
    used = defaults.get("decoder", Settings().decoder)
    refuse_files(given.get("decoder", used), given.get("decoder_options"))
    refuse_work(given, spec)
    gone = set()
    if given.get("decoder", used) != used:
        gone.add("decoder_options")
    if "cache" in given:
        gone.add("refresh_every")  # it speaks of the other cache
    kept = {name: value for name, value in defaults.items() if name not in gone}
    settings = Settings.of({**kept, **given, "row_keys": list(range(rows))})
    settings.check_model(spec)
    return settings


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


def encode(model: Model, prompts: list[Any], chat_options: Any) -> list[list[int]]:
    """Token ids of each prompt."""
    if not isinstance(chat_options, Mapping):
        raise ValueError(f"chat_template_kwargs must be an object, got {chat_options!r}")
    refuse_arguments(model, chat_options)
    try:
        return encode_prompts(model, prompts, chat_options)
    except (TemplateError, TypeError) as error:  # templates refuse roles, and meet any type
        raise ValueError(f"messages must fit the model's chat template: {error}") from error


def refuse_arguments(model: Model, chat_options: Mapping[str, Any]) -> None:
    """Refuse variables of a chat template that the tokenizer would take for its own options.

    Raises:
        ValueError: one is, such as a template of the client's own.
    """
    if not chat_options:
        return
    render = tokenizer_of(model, "a chat prompt").apply_chat_template
    own = inspect.signature(render).parameters.keys() - {"tools", "documents"}
    for name in chat_options:
        if name in own:
            raise ValueError(
                f"chat_template_kwargs must be variables of the template, got {name!r}"
            )


def lay_out(
    model: Model, encoded: Sequence[list[int]], gen_length: int, n: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Rows of each prompt `n` times, with what is to be decoded behind, and where that lies."""
    check_length(model, max(map(len, encoded)) + gen_length + len(model.spec.suffix))
    total = n * sum(len(prompt) + gen_length for prompt in encoded)
    if total > MOST_TOKENS:
        raise ValueError(f"all choices must hold at most {MOST_TOKENS} tokens, got {total}")
    return continued(model, [prompt for prompt in encoded for _ in range(n)], gen_length)
