"""Conversion of lm-eval's texts and dicts to options of `dlm`."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

import dlm
from dlm.cli.inputs import parse_value
from dlm.cli.loading import check_quantize, quantization
from dlm.eval.plan import NOT_OPTIONS
from dlm.options import boolean, integer, known, number

OPTION = "option."
LOAD = (
    "adapter", "attn_implementation", "block_size", "device_map", "dtype", "family", "mask_id",
    "merge", "revision", "tensor_parallel_size",
)  # fmt: skip
QUANTIZE = "quantize"  # the name that commands use for a `quantization_config`
SCORE = ("estimator", "order", "samples", "mc_batch_size", "greedy")
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
GEN_KWARGS = ("until", "do_sample", "temperature", "top_k", "top_p", "min_p", "num_beams", *LENGTHS)
HARNESS_DEVICE = "cuda:0"  # passed by lm-eval if the user named no device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The model_args, grouped by the function that takes them."""

    load: dict[str, Any]
    generate: dict[str, Any]
    score: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Group arguments as lm-eval parsed them.

        Raises:
            ValueError: an argument is unknown, or given under two names.
        """
        values = {name: plain(value) for name, value in given.items()}
        dotted = [name for name in values if name.startswith(OPTION)]
        options = {name.removeprefix(OPTION): values.pop(name) for name in dotted}
        if options and "decoder_options" in values:
            raise ValueError(f"give decoder_options or {dotted[0]}, not both")
        if options:
            values["decoder_options"] = options
        elif isinstance(values.get("decoder_options"), str):
            values["decoder_options"] = parse_value(values["decoder_options"])
        if "mc_num" in values:  # the name in LLaDA's code
            if "samples" in values:
                raise ValueError("give samples or mc_num, not both: they are the same")
            values["samples"] = values.pop("mc_num")
        generate = [n for n in inspect.signature(dlm.generate).parameters if n not in NOT_OPTIONS]
        for name in values:
            shown = ("pretrained", "batch_size", "device", "mc_num", f"{OPTION}<name>")
            known("model argument", name, (*LOAD, QUANTIZE, *generate, *SCORE, *shown))
        load, decode, score = (
            {k: values[k] for k in names if k in values} for names in (LOAD, generate, SCORE)
        )
        if (width := values.get(QUANTIZE)) is not None:
            check_quantize(width)
            load["quantization_config"] = quantization(width)
        return cls(load, decode, score)


def plain(value: Any) -> Any:
    """Undo what lm-eval's parsers do: "none" stays a text, and -1 becomes the float -1.0."""
    if isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    if isinstance(value, float) and value < 0 and value.is_integer():
        return int(value)
    return value


def from_harness(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that lm-eval passes besides model_args: `--batch_size` and `--device`.

    Raises:
        ValueError: `--max_batch_size` is given, which belongs to the batch size "auto".
    """
    values = {name: value for name, value in (given or {}).items() if value is not None}
    if "max_batch_size" in values:
        raise ValueError(
            "max_batch_size goes with batch_size=auto, which dlm does not take: give batch_size, "
            f"got {values['max_batch_size']!r}"
        )
    if values.get("device") == HARNESS_DEVICE:
        values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        if values["device"] == "cpu":
            log.warning("device %s, lm-eval's default, is not here: using the CPU", HARNESS_DEVICE)
    return values


def read_gen_kwargs(given: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The stop strings and the options of `dlm.generate` that a request asks for.

    `do_sample=False` means temperature 0, whatever else is given. `do_sample=True` without a
    temperature means temperature 1.

    Raises:
        ValueError: a name is unknown, a value is out of range, or two lengths differ.
    """
    for name in given:
        known("generation argument", name, GEN_KWARGS)
    values = {name: value for name, value in given.items() if value is not None}
    if values.get("num_beams", 1) != 1:
        raise ValueError(f"num_beams must be 1: there is no beam, got {values['num_beams']!r}")
    asked: dict[str, Any] = {}
    lengths = {name: integer(name, values[name], least=1) for name in LENGTHS if name in values}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"give one length, got {lengths}")
    if lengths:
        asked["gen_length"] = next(iter(lengths.values()))
    if "temperature" in values:
        asked["temperature"] = number("temperature", values["temperature"], least=0.0)
    if "do_sample" in values:
        sampled = boolean("do_sample", values["do_sample"])
        asked["temperature"] = asked.get("temperature", 1.0) if sampled else 0.0
    if "top_k" in values:
        asked["top_k"] = integer("top_k", values["top_k"], least=0) or None  # 0 turns it off
    for name in ("top_p", "min_p"):
        if name in values:
            asked[name] = number(name, values[name], least=0.0, most=1.0)
    return read_until(values.get("until", ())), asked


def read_until(until: Any) -> tuple[str, ...]:
    """Parse one or several stop strings; an empty one is ignored, as in lm-eval.

    Raises:
        ValueError: the value is something else.
    """
    texts = [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"until must be a text or a list of texts, got {until!r}")
    return tuple(text for text in texts if text)


def cut(text: str, until: Iterable[str]) -> str:
    """The text before the first stop string."""
    found = [place for place in map(text.find, until) if place >= 0]
    return text[: min(found, default=len(text))]
