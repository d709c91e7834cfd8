"""Kinds of options: where `--help` lists them, and how their texts are read.

What a value may be is the library's to say. Here a text only becomes a number, with the library's
wording where it does not: the option, the rule, the value.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dlm.cli.inputs import parse_bias, parse_options
from dlm.models.catalog import BUILT_IN_NAME


def whole(text: str) -> int:
    """An int."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be an int, got {text!r}") from None


def count(text: str) -> int:
    """An int >= 1."""
    value = whole(text)
    if value < 1:
        raise typer.BadParameter(f"must be an int >= 1, got {text!r}")
    return value


def named_model(text: str) -> str | None:
    """A folder or a Hugging Face id; None for the built-in model, under its name too."""
    return None if text == BUILT_IN_NAME else text


NO_BLOCKS = -1  # what stands for --block-length none until it is one


def blocks(text: str | int) -> int:
    """An int, or "none"; typer passes defaults through too."""
    if str(text).strip().lower() == "none":
        return NO_BLOCKS
    value = whole(str(text))
    if value == NO_BLOCKS:
        raise typer.BadParameter(f"must be an int >= 1, or none, got {str(text)!r}")
    return value


def unless_none(length: int) -> int | None:
    """What `blocks` read."""
    return None if length == NO_BLOCKS else length


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, got {text!r}") from None


WHOLE: dict[str, Any] = {"parser": whole, "metavar": "<int>"}
COUNT: dict[str, Any] = {"parser": count, "metavar": "<int>"}
REAL: dict[str, Any] = {"parser": real, "metavar": "<float>"}
BLOCKS: dict[str, Any] = {"parser": blocks, "metavar": "<int>"}

source = partial(typer.Option, rich_help_panel="Prompts and model")
decoding = partial(typer.Option, rich_help_panel="Decoding")
sampling = partial(typer.Option, rich_help_panel="Sampling")
data = partial(typer.Option, rich_help_panel="Data")
optimiser = partial(typer.Option, rich_help_panel="Optimiser")
network = partial(typer.Option, rich_help_panel="Network")
run = partial(typer.Option, rich_help_panel="Run")
server = partial(typer.Option, rich_help_panel="Server")
output = partial(typer.Option, rich_help_panel="Output")

JSON = output("--json", help="One JSON object a line, for machines.")

# What several commands take by the same name.
Prompts = Annotated[
    list[str] | None, typer.Argument(help="Prompts; if none, one a line from --file or a pipe.")
]
PromptFile = Annotated[
    Path | None,
    source(
        metavar="FILE",
        help='Prompts one a line, or JSONL with "prompt" or "messages"; - for stdin.',
    ),
]
Chat = Annotated[
    bool | None,
    source(
        "--chat/--no-chat",
        help="Make each prompt a user message.",
        show_default="on for the built-in model",
    ),
]
System = Annotated[str | None, source(metavar="TEXT", help="System message in front of a chat.")]
ModelName = Annotated[
    str | None,
    source(
        help="Folder or Hugging Face id.",
        parser=named_model,
        metavar="<str>",
        show_default="the built-in tiny model",
    ),
]
Device = Annotated[str | None, source(help="Such as cuda.", show_default="cpu")]
DeviceMap = Annotated[
    str | None, source(help="Spread over devices, such as auto; excludes --device.")
]
TensorParallel = Annotated[
    int,
    source(
        "--tensor-parallel-size",
        help="Cut every layer over so many GPUs, 0 to N - 1.",
        **COUNT,
    ),
]
Attention = Annotated[
    str | None,
    source(
        "--attn-implementation",
        help="sdpa, eager, flash_attention_2, flex_attention.",
        show_default="sdpa where the network has it",
    ),
]
Quantize = Annotated[
    str | None,
    source(
        metavar="w8a8|8bit|4bit",
        help="Smaller weights: w8a8 by dlm, the others by bitsandbytes.",
    ),
]
Dtype = Annotated[
    str, source(help="float32, bfloat16, float16, float64, or auto: the checkpoint's.")
]
Revision = Annotated[
    str | None, source(metavar="REV", help="Branch, tag or commit of a Hugging Face id.")
]
FamilyName = Annotated[
    str | None,
    source(help="For files of another network: see dlm models.", show_default="as declared"),
]
BlockSize = Annotated[
    int | None,
    source(
        help="Tokens of a block of attention; with D2F's adapters, from the prompt's end on.",
        show_default="the checkpoint's",
        **COUNT,
    ),
]
MaskId = Annotated[
    int | None, source(help="Of the mask.", show_default="the checkpoint's", **WHOLE)
]
StopIds = Annotated[
    list[int] | None,
    source(
        metavar="ID",
        help="Token that ends a text; repeatable.",
        show_default="the checkpoint's",
        parser=whole,
    ),
]
Adapter = Annotated[
    str | None,
    source(metavar="DIR", help="LoRA of peft, a folder or id, added to the weights."),
]

# How to decode.
DecoderName = Annotated[str, decoding(help="Which tokens to commit: see dlm decoders.")]
DecoderOptions = Annotated[
    list[str] | None,
    decoding(metavar="KEY=VALUE", help="Option of the decoder; repeatable."),
]
BlockLength = Annotated[
    int,
    decoding(help="Tokens of a block, or none; blocks are decoded left to right.", **BLOCKS),
]
Steps = Annotated[
    int | None,
    decoding(help="Forwards budget.", show_default="as many as the decoder needs", **WHOLE),
]
PositionTemperature = Annotated[
    float, sampling(help="Draw positions from softmax(score / this); 0 takes the best.", **REAL)
]
CacheName = Annotated[
    str, decoding(help="What later forwards of a block reuse: none, prefix or dual.")
]
RefreshEvery = Annotated[
    int | None,
    decoding(help="Forwards until a cache is made anew.", show_default="each block", **WHOLE),
]
RefreshAround = Annotated[
    int, decoding(help="Tokens on either side of a block to compute with it.", **WHOLE)
]
# Among the options of sampling, where their names have room in 80 columns.
PadAfterEos = Annotated[
    bool, decoding("--pad-after-eos", help="Do not decode what is behind a stop token.")
]
RefreshAnswerEvery = Annotated[
    int | None,
    sampling(
        help="Forwards until a whole answer is made anew.", show_default="each block", **WHOLE
    ),
]
RefreshPromptEvery = Annotated[
    int | None,
    sampling(help="Forwards until a prompt is made anew.", show_default="the answer", **WHOLE),
]
RefreshDecodedEvery = Annotated[
    int | None, sampling(help="Forwards until what is decoded of a block is made anew.", **WHOLE)
]
SuffixWindow = Annotated[
    int | None,
    sampling(help="Masks behind a block that a forward sees.", show_default="all", **WHOLE),
]
StopsLast = Annotated[bool, sampling("--confidence-eos-eot-inf", help="Commit stop tokens last.")]
SuppressTokens = Annotated[
    list[int] | None,
    sampling(metavar="ID", help="Token never sampled; repeatable.", parser=whole),
]
BeginSuppressTokens = Annotated[
    list[int] | None,
    sampling(metavar="ID", help="Token never sampled first; repeatable.", parser=whole),
]
LogitBias = Annotated[
    list[str] | None,
    sampling(metavar="ID=VALUE", help="Added to the logit of a token; repeatable."),
]
Temperature = Annotated[float, sampling(help="0 takes the likeliest token.", **REAL)]
TopK = Annotated[int | None, sampling(help="Sample among the k likeliest tokens.", **WHOLE)]
TopP = Annotated[
    float | None,
    sampling(help="Sample among the likeliest tokens that hold this probability.", **REAL),
]
MinP = Annotated[
    float | None,
    sampling(help="Sample among tokens of this times the likeliest one's probability.", **REAL),
]
CfgScale = Annotated[float, sampling(help="Classifier-free guidance; 0 for none.", **REAL)]
GEN_LENGTH = 256
BUILT_IN_GEN_LENGTH = 64
GenLength = Annotated[
    int | None,
    decoding(
        help="Tokens to decode.",
        show_default=f"{BUILT_IN_GEN_LENGTH} for the built-in model, else {GEN_LENGTH}",
        **WHOLE,
    ),
]
Seed = Annotated[int, sampling(help="Decides all noise.", **WHOLE)]
AsAuthors = Annotated[
    bool,
    decoding(
        "--recommended",
        help="In what is not said here decode as the authors of the checkpoint do: see dlm models "
        "NAME.",
    ),
]

DECODING: Final = (
    "decoder",
    "gen_length",
    "stop",
    "steps",
    "position_temperature",
    "stop_at_eos",
    "pad_after_eos",
    "confidence_eos_eot_inf",
    "cache",
    "refresh_every",
    "refresh_around",
    "refresh_answer_every",
    "refresh_prompt_every",
    "refresh_decoded_every",
    "suffix_window",
    "suppress_tokens",
    "begin_suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "cfg_scale",
    "seed",
)
"""Options of `dlm.generate` that commands have under the same names."""


def decoding_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `dlm.generate` among a command's arguments, without those that were not given.

    With `recommended` those of the model's authors, where the command line does not say others.

    Raises:
        ValueError: of the model none are known.
    """
    options = {name: given[name] for name in DECODING if given.get(name) is not None}
    options["decoder_options"] = parse_options(given["option"])
    if given["logit_bias"]:
        options["logit_bias"] = parse_bias(given["logit_bias"])
    options |= {"block_length": unless_none(given["block_length"])}
    return (
        as_authors(options, given["model"], given["context"]) if given["recommended"] else options
    )


def as_authors(
    options: Mapping[str, Any], model: str | None, context: typer.Context
) -> dict[str, Any]:
    """Those options that the command line says, over those that the model's authors recommend.

    Options of a decoder are put over theirs; with another decoder they stand alone.
    """
    source = context.get_parameter_source
    said = {name: value for name, value in options.items() if not is_default(source(name))}
    own = {"decoder_options": options["decoder_options"]}
    return {**options, **advised(said | own, model)}


def advised(said: Mapping[str, Any], model: str | None, *, infills: bool = False) -> dict[str, Any]:
    """Options that were said, over those that the model's authors recommend.

    With `infills` without the length of an answer, as blanks are there.
    """
    from dlm.recommendation import recommended

    advice = recommended(BUILT_IN_NAME if model is None else model)
    if infills:
        advice.pop("gen_length", None)
    theirs = advice.pop("decoder_options", {})
    same = said.get("decoder", advice["decoder"]) == advice["decoder"]
    own = (theirs if same else {}) | said["decoder_options"]
    return {**advice, **said, "decoder_options": own}


def is_default(source: Any) -> bool:
    """Whether an argument is there because none was given: by name, as typer brings its own."""
    return source is None or source.name in ("DEFAULT", "DEFAULT_MAP")


FACTS: Final = (
    "device_map",
    "tensor_parallel_size",
    "attn_implementation",
    "quantize",
    "revision",
    "family",
    "block_size",
    "mask_id",
    "stop_ids",
    "adapter",
)
"""Options of `load_model` that commands have under the same names, beside device and dtype."""


def model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load_model` among a command's arguments."""
    return {name: given[name] for name in FACTS}
