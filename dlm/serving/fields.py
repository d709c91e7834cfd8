"""Reads and checks the fields of a body."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlm.options import NOTHING, boolean, integer, known, pairs, writable
from dlm.serving.names import (
    FOREIGN,
    NOT_OF_CHATS,
    NOT_OF_COMPLETIONS,
    OFF,
    REASONS,
    TOLD_BY_NULL,
    UNSUPPORTED,
)
from dlm.serving.work import MOST_ALTERNATIVES

Body = Mapping[str, Any]

MOST_CHOICES = 128  # per prompt
MOST_STOPS = 16
LONGEST_STOP = 1024  # characters: every piece of text is searched for them
MOST_LOGPROBS = 5
MOST_BIASES = 300  # tokens: each is applied at every position
LARGEST_BIAS = 100.0
OF_STREAMS = ("include_obfuscation", "continuous_usage_stats")  # not supported here
MAYBE_OFF = (*UNSUPPORTED, *NOT_OF_CHATS, *NOT_OF_COMPLETIONS)
"""Fields that endpoints without them accept as long as they ask for nothing."""
OF_CONSTRAINTS = re.compile(r"(?:regex|json_schema|choice|a constraint|constraints) (must|need)s? ")
"""How messages of `dlm.Constraint` begin."""
LONGEST_NAME = 100  # characters: close matches of longer names take long to find


def read_json(data: bytes) -> dict[str, Any]:
    """Parse the JSON object of a body.

    Raises:
        ValueError: it is no JSON object, has a key twice, or has a number that JSON lacks.
    """
    try:
        body = json.loads(data, object_pairs_hook=once, parse_constant=finite)
    except RecursionError:
        raise ValueError("the body must be a JSON object, got one nested too deep") from None
    except ValueError as error:  # also if it is not UTF-8
        raise ValueError(f"the body must be a JSON object: {error}") from error
    if not isinstance(body, dict):
        raise ValueError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing duplicate keys."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"each key must be there once, got {name!r} twice")
        found[name] = value
    return found


def finite(text: str) -> float:
    """Refuse NaN and the infinities."""
    raise ValueError(f"numbers must be finite, got {text}")


def stated(body: Body, names: Sequence[str]) -> dict[str, Any]:
    """The fields that a body states; null states only `block_length` and `steps`.

    For these two it means what None means to `dlm.generate`: one block over the whole answer, and
    as many forward passes as it takes.

    Raises:
        ValueError: a field is unknown; the message says what to use instead, or names the closest
            match.
    """
    told = {k: v for k, v in body.items() if v is not None or k in TOLD_BY_NULL}
    for name in told:
        if name not in MAYBE_OFF:
            known_name("field", name, names, FOREIGN)
    return told


def known_name(
    kind: str, name: Any, names: Iterable[str], instead: Mapping[str, str] = NOTHING
) -> str:
    """Check a name as `dlm.options.known` does, but cut: a client may send a long one."""
    cut = name[:LONGEST_NAME] if isinstance(name, str) else name
    return known(kind, cut, names, instead)


def refuse_unsupported(body: Body, names: Sequence[str], n: int) -> None:
    """Refuse fields other than `names` that ask for something but would be ignored.

    Raises:
        ValueError: a field does.
    """
    for name in MAYBE_OFF:
        if name in body and name not in names and not asks_nothing(name, body[name], n):
            raise unsupported(name, body[name], name)


def unsupported(name: str, value: Any, where: str) -> ValueError:
    """The error for a field that asks for something unsupported."""
    reason = REASONS.get(name, "leave it out")
    return ValueError(f"{where} is not supported, got {value!r}: {reason}")


def under(field: str, message: str) -> ValueError:
    """The error of a constraint, from its message, under the name of the field that asks for it."""
    own = OF_CONSTRAINTS.match(message)
    if own is None:
        return ValueError(message)
    verb = "needs" if own[1] == "need" else "must"
    return ValueError(f"{field} {verb} {message[own.end() :]}")


def asks_nothing(name: str, value: Any, n: int) -> bool:
    """Whether an unsupported field is turned off."""
    if value is None or value in OFF.get(name, ()):
        return True
    if name == "skip_special_tokens":  # False would keep them in the text
        return False
    if name == "best_of":  # every choice is returned
        return bool(value == n)
    return value in (False, "", 0, [], {})


def read_prompts(value: Any) -> list[Any]:
    """The prompts of a completion, each a text or a list of token ids.

    Raises:
        ValueError: they are something else.
    """
    prompts = [value] if isinstance(value, str) else value
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    listed = isinstance(prompts, list) and bool(prompts)
    if listed and all(isinstance(prompt, str) for prompt in prompts):
        return [writable(prompt, "prompt") for prompt in prompts]
    if listed and all(isinstance(prompt, list) and prompt for prompt in prompts):
        for prompt in prompts:
            for token in prompt:
                integer("token ids of prompt", token, least=0)
        return list(prompts)
    raise ValueError(
        "prompt must be a text, token ids, or a list of texts or of lists of token ids, "
        f"got {value!r}"
    )


def read_suffix(value: Any) -> str:
    """The text that follows a completion.

    Raises:
        ValueError: it is not a text.
    """
    if not isinstance(value, str):
        raise ValueError(f"suffix must be a text, got {value!r}")
    return writable(value, "suffix")


def read_stop(value: Any) -> tuple[str, ...]:
    """The texts that end a choice.

    Raises:
        ValueError: they are not texts, are empty, too many or too long.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop must be a text or texts, none of them empty, got {value!r}")
    if len(texts) > MOST_STOPS:
        raise ValueError(f"stop must be at most {MOST_STOPS} texts, got {len(texts)}")
    longest = max(map(len, texts), default=0)
    if longest > LONGEST_STOP:
        raise ValueError(f"texts of stop must be at most {LONGEST_STOP} characters, got {longest}")
    return tuple(writable(text, "stop") for text in texts)


def read_stream(body: Body) -> tuple[bool, bool]:
    """Whether to stream the answer, and whether to end the stream with the usage.

    Raises:
        ValueError: a stream option is unknown or unsupported, or usage is asked for without
            `stream`.
    """
    stream = boolean("stream", body.get("stream", False))
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise ValueError(f"stream_options must be an object, got {options!r}")
    for name, value in options.items():
        known_name("option of stream_options", name, ("include_usage", *OF_STREAMS))
        field = f"stream_options.{name}"
        if value is not None and boolean(field, value) and name in OF_STREAMS:
            raise unsupported(field, value, name)
    usage = bool(options.get("include_usage"))
    if usage and not stream:
        raise ValueError(f"stream_options go with stream true, got {options!r} without")
    return stream, usage


def read_logprobs(body: Body, *, chat: bool) -> int | None:
    """How many of the likeliest tokens to list for each token; None for no log-probabilities.

    Raises:
        ValueError: `logprobs` is not a bool (in a chat) or an int in range (in a completion), or
            `top_logprobs` is out of range, without `logprobs`, or in a completion.
    """
    value, top = body.get("logprobs", False), body.get("top_logprobs", 0)
    integer("top_logprobs", top, least=0, most=MOST_ALTERNATIVES)
    if chat and not boolean("logprobs", value):
        if top:
            raise ValueError(f"top_logprobs must go with logprobs true, got {top} without")
        return None
    if chat:
        return int(top)
    if top:
        raise ValueError(f"top_logprobs is for chats: logprobs is the number here, got {top}")
    return None if value is False else integer("logprobs", value, least=0, most=MOST_LOGPROBS)


def read_bias(value: Any) -> dict[int, float]:
    """The values added to the logits of tokens, by token id.

    Raises:
        ValueError: not an object of ids and numbers, or too many or too large ones.
    """
    if isinstance(value, dict) and len(value) > MOST_BIASES:
        raise ValueError(f"logit_bias must be of at most {MOST_BIASES} tokens, got {len(value)}")
    return pairs("logit_bias", value, "token id", least=-LARGEST_BIAS, most=LARGEST_BIAS)


def read_echo(body: Body, logprobs: int | None) -> bool:
    """Whether the text of a completion begins with its prompt.

    Raises:
        ValueError: it is not a bool, or the prompt would need log-probabilities.
    """
    echo = boolean("echo", body.get("echo", False))
    if echo and logprobs is not None:
        raise ValueError(
            "echo must be without logprobs, got both: a masked-diffusion model gives the tokens of "
            "a prompt no log-probabilities from left to right"
        )
    return echo


def read_length(body: Body) -> int | None:
    """Number of tokens to decode, if stated.

    Raises:
        ValueError: not an int of at least 1, or two fields that differ.
    """
    names = ("max_tokens", "max_completion_tokens")
    lengths = {name: integer(name, body[name], least=1) for name in names if name in body}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"max_tokens and max_completion_tokens mean the same, got {lengths['max_tokens']} "
            f"and {lengths['max_completion_tokens']}"
        )
    return next(iter(lengths.values()), None)
