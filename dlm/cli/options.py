"""Option types of the commands: their groups in `--help`, and how their texts are parsed.

The library decides which values are valid. This module only converts a text to a number; if that
fails, it words the error as the library does: the option, the rule, the value.
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
    """A folder or a Hugging Face id; None for the built-in model, also if it is named."""
    return None if text == BUILT_IN_NAME else text


NO_BLOCKS = -1  # stands for `--block-length none` until `unless_none`


def blocks(text: str | int) -> int:
    """Parse an int or "none"; typer also passes defaults through this parser."""
    if str(text).strip().lower() == "none":
        return NO_BLOCKS
    value = whole(str(text))
    if value == NO_BLOCKS:
        raise typer.BadParameter(f"must be an int >= 1, or none, got {str(text)!r}")
    return value


def unless_none(length: int) -> int | None:
    """The block length that `blocks` parsed."""
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

JSON = output("--json", help="Print one JSON object per line instead.")

# Options that several commands have under the same name.
Prompts = Annotated[
    list[str] | None,
    typer.Argument(help="Prompts; if none is given, read from --file or a pipe, one per line."),
]
PromptFile = Annotated[
    Path | None,
    source(
        metavar="FILE",
        help='Prompts, one per line, or JSONL with "prompt" or "messages"; - for stdin.',
    ),
]
Chat = Annotated[
    bool | None,
    source(
        "--chat/--no-chat",
        help="Wrap each prompt as a user message of a chat.",
        show_default="on for the built-in model",
    ),
]
System = Annotated[str | None, source(metavar="TEXT", help="System message before the chat.")]
ModelName = Annotated[
    str | None,
    source(
        help="Model: a folder or a Hugging Face id.",
        parser=named_model,
        metavar="<str>",
        show_default="the built-in tiny model",
    ),
]
Device = Annotated[str | None, source(help="Device, such as cuda.", show_default="cpu")]
DeviceMap = Annotated[
    str | None, source(help="Spread the model over devices, such as auto; not with --device.")
]
TensorParallel = Annotated[
    int,
    source(
        "--tensor-parallel-size",
        help="Number N of GPUs over which to split every layer, 0 to N - 1.",
        **COUNT,
    ),
]
Attention = Annotated[
    str | None,
    source(
        "--attn-implementation",
        help="Attention: sdpa, eager, flash_attention_2 or flex_attention.",
        show_default="sdpa if the network supports it",
    ),
]
Quantize = Annotated[
    str | None,
    source(
        metavar="w8a8|8bit|4bit",
        help="Quantize the weights: w8a8 by dlm, 8bit and 4bit by bitsandbytes.",
    ),
]
Dtype = Annotated[
    str, source(help="float32, bfloat16, float16, float64, or auto (the checkpoint's).")
]
Revision = Annotated[
    str | None, source(metavar="REV", help="Branch, tag or commit of the Hugging Face model.")
]
FamilyName = Annotated[
    str | None,
    source(
        help="Model family, if the files belong to another one than declared: see dlm models.",
        show_default="as declared",
    ),
]
BlockSize = Annotated[
    int | None,
    source(
        help="Tokens in an attention block; with D2F adapters, counted from the end of the prompt.",
        show_default="the checkpoint's",
        **COUNT,
    ),
]
MaskId = Annotated[
    int | None, source(help="Id of the mask token.", show_default="the checkpoint's", **WHOLE)
]
StopIds = Annotated[
    list[int] | None,
    source(
        metavar="ID",
        help="Id of a token that ends a text; repeatable.",
        show_default="the checkpoint's",
        parser=whole,
    ),
]
Adapter = Annotated[
    str | None,
    source(metavar="DIR", help="PEFT LoRA adapter to add to the weights: a folder or an id."),
]

# How to decode.
DecoderName = Annotated[
    str, decoding(help="Decoder, which chooses the tokens to commit: see dlm decoders.")
]
DecoderOptions = Annotated[
    list[str] | None,
    decoding(metavar="KEY=VALUE", help="Option of the decoder; repeatable."),
]
BlockLength = Annotated[
    int,
    decoding(
        help="Tokens in a block, or none for a single block; blocks are decoded left to right.",
        **BLOCKS,
    ),
]
Steps = Annotated[
    int | None,
    decoding(
        help="Budget of forward passes per row.",
        show_default="as many as the decoder needs",
        **WHOLE,
    ),
]
PositionTemperature = Annotated[
    float,
    sampling(help="Draw positions from softmax(score / this); 0 takes the best ones.", **REAL),
]
CacheName = Annotated[
    str, decoding(help="Keys and values that later passes of a block reuse: none, prefix or dual.")
]
RefreshEvery = Annotated[
    int | None,
    decoding(
        help="Recompute the whole row every N forward passes of a block.",
        show_default="only at the first",
        **WHOLE,
    ),
]
RefreshAround = Annotated[
    int, decoding(help="Tokens on either side of a block to recompute with it.", **WHOLE)
]
# These are listed under Sampling, where their names fit in 80 columns.
PadAfterEos = Annotated[
    bool,
    decoding("--pad-after-eos", help="Fill masks after a stop token instead of decoding them."),
]
RefreshAnswerEvery = Annotated[
    int | None,
    sampling(
        help="Minimum number of passes between recomputations of the whole answer.",
        show_default="at every refresh",
        **WHOLE,
    ),
]
RefreshPromptEvery = Annotated[
    int | None,
    sampling(
        help="Minimum number of passes between recomputations of the prompt.",
        show_default="with the answer",
        **WHOLE,
    ),
]
RefreshDecodedEvery = Annotated[
    int | None, sampling(help="Passes between recomputations of a block's decoded tokens.", **WHOLE)
]
SuffixWindow = Annotated[
    int | None,
    sampling(help="Masks after the block that a forward pass sees.", show_default="all", **WHOLE),
]
StopsLast = Annotated[bool, sampling("--confidence-eos-eot-inf", help="Commit stop tokens last.")]
SuppressTokens = Annotated[
    list[int] | None,
    sampling(metavar="ID", help="Id of a token that is never sampled; repeatable.", parser=whole),
]
BeginSuppressTokens = Annotated[
    list[int] | None,
    sampling(
        metavar="ID", help="Id of a token that is never sampled first; repeatable.", parser=whole
    ),
]
LogitBias = Annotated[
    list[str] | None,
    sampling(metavar="ID=VALUE", help="Value added to the logit of a token; repeatable."),
]
Temperature = Annotated[
    float, sampling(help="Sampling temperature; 0 takes the most likely token.", **REAL)
]
TopK = Annotated[int | None, sampling(help="Sample from the k most likely tokens.", **WHOLE)]
TopP = Annotated[
    float | None,
    sampling(
        help="Sample from the most likely tokens that together hold this probability.", **REAL
    ),
]
MinP = Annotated[
    float | None,
    sampling(
        help="Sample from tokens with at least this fraction of the largest probability.", **REAL
    ),
]
CfgScale = Annotated[float, sampling(help="Classifier-free guidance scale; 0 disables it.", **REAL)]
GEN_LENGTH = 256
BUILT_IN_GEN_LENGTH = 64
GenLength = Annotated[
    int | None,
    decoding(
        help="Tokens to decode per prompt.",
        show_default=f"{BUILT_IN_GEN_LENGTH} for the built-in model, else {GEN_LENGTH}",
        **WHOLE,
    ),
]
Seed = Annotated[int, sampling(help="Seed of all noise.", **WHOLE)]
AsAuthors = Annotated[
    bool,
    decoding(
        "--recommended",
        help="Use the decoding options that the checkpoint's authors recommend, except for those "
        "given here: see dlm models NAME.",
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
    """Collect the options of `dlm.generate` that a command was given.

    With `recommended`, the options that the model's authors recommend apply as well, unless the
    command line sets them.

    Raises:
        ValueError: no recommended options are known for the model.
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
    """The options given on the command line, merged over those that the authors recommend.

    Decoder options are merged too if the decoder is the recommended one; otherwise only the given
    ones apply.
    """
    source = context.get_parameter_source
    said = {name: value for name, value in options.items() if not is_default(source(name))}
    own = {"decoder_options": options["decoder_options"]}
    return {**options, **advised(said | own, model)}


def advised(said: Mapping[str, Any], model: str | None, *, infills: bool = False) -> dict[str, Any]:
    """The given options, merged over those that the model's authors recommend.

    With `infills`, the recommended answer length is left out, because the blanks determine it.
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
    """Whether an argument has its default value; compared by name, as typer has its own enum."""
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
"""Options of `load_model` that commands have under the same names, besides device and dtype."""


def model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the options of `load_model` that a command was given."""
    return {name: given[name] for name in FACTS}
