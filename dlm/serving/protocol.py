"""Parses the bodies of OpenAI's completion and chat endpoints into requests for the engine.

Whatever can be refused without running the network is refused here.
"""

import dataclasses
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dlm import foreign
from dlm.decoders import DECODERS
from dlm.job import check_length
from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import NOTHING, integer, known
from dlm.prompts import tokenizer_of
from dlm.serving import encoding, fields, names
from dlm.serving.blanks import read_blanks
from dlm.serving.constraints import Constraints
from dlm.serving.encoding import Around
from dlm.serving.rules import Rule, read_rule
from dlm.serving.tools import Tools, read_tools
from dlm.serving.work import Request
from dlm.settings import REFRESHES, Settings
from dlm.traits import CACHES

SEED_BITS = 53  # integers that JSON parsers of all languages keep exactly
MOST_TOKENS = 1 << 22  # of all rows of a request together
MOST_STEPS = 1 << 14  # some decoders use all forward passes of their budget
MOST_OF_DECODER = 256  # some decoders store this much per token, or add as many passes

APART = ("suffix_window", "refresh_answer_every")
"""Options that a request may not combine: stating one drops the server's default for the other."""
# The decoder for bodies that name none.
USUAL = next(each.default for each in dataclasses.fields(Settings) if each.name == "decoder")

DEFAULTS = ("gen_length", *names.OPTIONS)
"""Options that a server may be started with."""


class UnknownModel(ValueError):
    """The body names a model that is not served."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the engine, and what else its answer needs."""

    request: Request  # choices in the order of the answer: n of the first prompt, n of the next
    chat: bool
    n: int  # choices per prompt
    prompt_tokens: int  # counting each prompt once
    fills: bool  # whether a suffix follows what is decoded
    stop: tuple[str, ...]  # texts that end a choice
    stream: bool
    include_usage: bool  # at the end of a stream
    logprobs: int | None = None  # likeliest tokens to list per token; None: no log-probabilities
    echoes: tuple[str, ...] = ()  # texts of the prompts, to put before the choices
    tools: Tools | None = None  # functions that the choices may call


def read_request(
    data: bytes,
    *,
    chat: bool,
    model: Model,
    name: str,
    defaults: Mapping[str, Any],
    constraints: Constraints | None = None,
) -> Asked:
    """Parse the body of a request.

    Args:
        data: the body.
        chat: whether it was sent to /v1/chat/completions; otherwise to /v1/completions.
        model: the model that answers.
        name: the name under which the model is served.
        defaults: options of `dlm.generate`; fields of the body override them.
        constraints: the cache of the model's constraints; None compiles what is asked for.

    Raises:
        ValueError: a field breaks its rule or cannot be honoured; `UnknownModel` for the name.
        Busy: too many requests are waiting for their constraints.
    """
    taken = names.CHAT if chat else names.COMPLETION
    body = fields.stated(fields.read_json(data), taken)
    check_labels(body, name)
    n = integer("n", body.get("n", 1), least=1, most=fields.MOST_CHOICES)
    fields.refuse_unsupported(body, taken, n)
    stop = fields.read_stop(body.get("stop", []))
    if stop:
        tokenizer_of(model, "stop")
    stream, include_usage = fields.read_stream(body)
    logprobs = fields.read_logprobs(body, chat=chat)
    echo = not chat and fields.read_echo(body, logprobs)
    tools = read_tools(body) if chat else None
    prompts = encoding.read_messages(body, model) if chat else encoding.read_prompts(body, model, n)
    suffix = fields.read_suffix(body.get("suffix", ""))
    rule = read_rule(body, tools)
    if rule is not None and suffix:
        raise ValueError(
            f"{rule.field} must stand without suffix: what is in front of one is no text by itself"
        )
    if suffix:  # as in `dlm.infill`: what follows is given
        body.setdefault("stop_at_eos", False)
    if body.get("stop_at_eos") is False:  # the server's pad_after_eos needs rows that end
        body.setdefault("pad_after_eos", False)
    settings = read_settings(body, defaults, model.spec, (1 if chat else len(prompts)) * n)
    if chat:
        around = [encoding.encode_chat(body, model, prompts, tools)]
    else:
        around = encoding.encode_completions(model, prompts, suffix)
    settings = fitted(body, model, settings, around)
    if rule is not None:
        settings = held(body, model, settings, rule, constraints or Constraints())
    lists = logprobs is not None
    begun, growth = read_blanks(
        body, model.spec, settings.gen_length, fills=bool(suffix), lists=lists
    )
    rows, spans = rows_of(model, around, begun, settings.gen_length, n)
    if growth is not None:
        growth.check(model, rows, settings)
    follow = stream or bool(stop)
    given = [encoding.text_of(model, each) for each in prompts] if echo else []
    return Asked(
        request=Request(rows, spans, settings, follow, lists, logprobs or 0, growth),
        chat=chat,
        n=n,
        prompt_tokens=sum(map(len, around)),
        fills=bool(suffix),
        stop=stop,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
        echoes=tuple(text for text in given for _ in range(n)),
        tools=tools,
    )


def fitted(
    body: fields.Body, model: Model, settings: Settings, around: Sequence[Around]
) -> Settings:
    """Shorten the server's default length to the room that is left; other lengths have to fit.

    Raises:
        TooLong: there is not enough room.
    """
    closed = max(map(len, around)) + len(model.spec.suffix)
    if fields.read_length(body) is None:  # the server's default, if that much is left
        room = max(1, model.spec.max_length - closed)
        if room < settings.gen_length:
            settings = replace(settings, gen_length=room)
    parts = {
        "messages" if "messages" in body else "prompt": max(len(each.before) for each in around),
        "suffix": max(len(each.behind) for each in around),
    }
    given = sorted(filter(parts.__getitem__, parts), key=parts.__getitem__, reverse=True)
    what = f"{', '.join(given)} and max_tokens"  # the longest first, as it is to blame
    check_length(model, closed + settings.gen_length, what)
    return settings


def held(
    body: fields.Body, model: Model, settings: Settings, rule: Rule, constraints: Constraints
) -> Settings:
    """The settings, with the constraint of a rule.

    Raises:
        ValueError: the rule allows no text that fits.
        Busy: too many requests are waiting for their constraints.
    """
    made = constraints.of(model, rule)
    never, first = settings.suppress_tokens, settings.begin_suppress_tokens
    try:
        made.check(model, settings.gen_length, never, first)
    except ValueError as error:
        length = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        named = length if length in body else "max_tokens"
        raise ValueError(re.sub("^gen_length ", f"{named} ", str(error))) from error
    return replace(settings, constraint=made)


def check_defaults(defaults: Mapping[str, Any], model: Model) -> None:
    """Refuse server options with which no request could be answered.

    Raises:
        ValueError: an option is unknown, breaks its rule or does not fit the model.
    """
    for name in defaults:
        known("option of a server", name, DEFAULTS)
    Settings.of(defaults).check_model(model.spec)


def check_labels(body: fields.Body, name: str) -> None:
    """Refuse another model's name, and labels of the wrong type."""
    asked = body.get("model", name)
    if asked != name:
        raise UnknownModel(f"model must be {name!r}, which is served here, got {asked!r}")
    for label, (kind, said) in names.LABELS.items():
        if label in body and not isinstance(body[label], kind):
            raise ValueError(f"{label} must be {said}, got {body[label]!r}")


def read_settings(
    body: fields.Body, defaults: Mapping[str, Any], spec: ModelSpec, rows: int
) -> Settings:
    """Merge the options of a body with the server's defaults."""
    given = {name: body[name] for name in names.OPTIONS if name in body}
    length = fields.read_length(body)
    if length is not None:
        given["gen_length"] = length
    if type(given.get("top_k")) is int and given["top_k"] in (-1, 0):  # off, as on other servers
        given["top_k"] = None
    if "logit_bias" in given:
        given["logit_bias"] = fields.read_bias(given["logit_bias"])
    used = defaults.get("decoder", USUAL)
    kept_cache = defaults.get("cache", "none")
    refuse_names(given)
    refuse_files(given.get("decoder", used), given.get("decoder_options"))
    refuse_work(given, spec)
    gone = set()
    if given.get("decoder", used) != used:
        gone |= {"decoder_options", "refresh_decoded_every"}  # not every decoder takes the latter
    if given.get("cache", kept_cache) != kept_cache:
        gone |= {*REFRESHES}  # they are for the other cache
    for one, other in (APART, APART[::-1]):
        if given.get(one) is not None and other not in given:
            gone.add(other)
    kept = {name: value for name, value in defaults.items() if name not in gone}
    if "seed" not in {*kept, *given}:
        given["seed"] = secrets.randbits(SEED_BITS)  # the answer reports it
    settings = Settings.of({**kept, **given, "row_keys": list(range(rows))})
    settings.check_model(spec)
    return settings


def refuse_names(given: Mapping[str, Any]) -> None:
    """Refuse unknown names here, where long ones are cut before they are compared.

    Raises:
        ValueError: a name is unknown, or the name of a decoder option is too long.
    """
    for kind, there, instead in (
        ("decoder", DECODERS, foreign.DECODERS),
        ("cache", CACHES, NOTHING),
    ):
        if isinstance(given.get(kind), str):
            fields.known_name(kind, given[kind], there, instead)
    options = given.get("decoder_options")
    longest = max(map(len, options), default=0) if isinstance(options, Mapping) else 0
    if longest > fields.LONGEST_NAME:
        raise ValueError(
            f"names in decoder_options must be at most {fields.LONGEST_NAME} characters, "
            f"got {longest}"
        )


def refuse_files(decoder: Any, options: Any) -> None:
    """Refuse decoder options that would make the server read a file.

    Raises:
        ValueError: an option names a file.
    """
    if not isinstance(decoder, str) or decoder not in DECODERS or not isinstance(options, Mapping):
        return  # `Settings` reports what is wrong
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
    """Refuse options that need more memory or forward passes than a request may take.

    Raises:
        ValueError: an option does.
    """
    if given.get("steps") is not None:
        integer("steps", given["steps"], least=1, most=MOST_STEPS)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        refuse_list(name, given.get(name), spec)
    options = given.get("decoder_options")
    for name, value in options.items() if isinstance(options, Mapping) else ():
        refuse_list(f"{name} of decoder_options", value, spec)
        if isinstance(value, int) and value > MOST_OF_DECODER:
            raise ValueError(
                f"{name} of decoder_options must be at most {MOST_OF_DECODER} in a request, "
                f"got {value}"
            )


def refuse_list(name: str, value: Any, spec: ModelSpec) -> None:
    """Refuse lists longer than the vocabulary, before their entries are read."""
    if isinstance(value, list) and len(value) > spec.vocab_size:
        raise ValueError(
            f"{name} must hold at most one entry for each of the {spec.vocab_size} ids of the "
            f"vocabulary, got {len(value)}"
        )


def rows_of(
    model: Model, around: Sequence[Around], begun: int, most: int, n: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Lay out `n` rows for each prompt; returns them, and the span to decode in each.

    A row begins with `begun` blanks and may grow to `most`.
    """
    total = n * sum(len(each) + most for each in around)
    if total > MOST_TOKENS:
        raise ValueError(f"all choices must hold at most {MOST_TOKENS} tokens, got {total}")
    copies = [each for each in around for _ in range(n)]
    blanks, closing = [model.spec.mask_id] * begun, model.spec.suffix
    rows = [[*each.before, *blanks, *each.behind, *closing] for each in copies]
    return rows, [(len(each.before), len(each.before) + begun) for each in copies]
