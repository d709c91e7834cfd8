"""`dlm generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlm.cli.constraints import Choice, JsonSchema, Language, Regex
from dlm.cli.inputs import Row, read_rows, refuse_company
from dlm.cli.job import Job
from dlm.cli.loading import load_model
from dlm.cli.options import (
    BUILT_IN_GEN_LENGTH,
    COUNT,
    GEN_LENGTH,
    JSON,
    WHOLE,
    Adapter,
    AsAuthors,
    Attention,
    BeginSuppressTokens,
    BlockLength,
    BlockSize,
    CacheName,
    CfgScale,
    Chat,
    DecoderName,
    DecoderOptions,
    Device,
    DeviceMap,
    Dtype,
    FamilyName,
    GenLength,
    LogitBias,
    MaskId,
    MinP,
    ModelName,
    PadAfterEos,
    PositionTemperature,
    PromptFile,
    Prompts,
    Quantize,
    RefreshAnswerEvery,
    RefreshAround,
    RefreshDecodedEvery,
    RefreshEvery,
    RefreshPromptEvery,
    Revision,
    Seed,
    Steps,
    StopIds,
    StopsLast,
    SuffixWindow,
    SuppressTokens,
    System,
    Temperature,
    TensorParallel,
    TopK,
    TopP,
    decoding,
    decoding_options,
    model_options,
    output,
    source,
)
from dlm.cli.results import note, try_file

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.outputs import Generation


def generate(  # noqa: PLR0913 (the parameters are the command line)
    context: typer.Context,
    prompts: Prompts = None,
    file: PromptFile = None,
    chat: Chat = None,
    system: System = None,
    infill: Annotated[
        bool,
        source(
            "--infill", help="Fill the blanks in texts: [MASK] is one token, [MASK:8] is eight."
        ),
    ] = False,
    max_gen_length: Annotated[
        int | None,
        source(
            help="With --infill: maximum number of tokens in the blanks of a text. For models "
            "that add and delete blanks, such as DreamOn.",
            **COUNT,
        ),
    ] = None,
    expand_budget: Annotated[
        int | None,
        source(
            help="How often a blank of a text may become two.",
            show_default="twice --max-gen-length",
            **WHOLE,
        ),
    ] = None,
    broadcast_deletion: Annotated[
        bool,
        source("--broadcast-deletion", help="Delete the masks right after a deleted blank, too."),
    ] = False,
    model: ModelName = None,
    device: Device = None,
    device_map: DeviceMap = None,
    tensor_parallel_size: TensorParallel = 1,
    dtype: Dtype = "auto",
    attn_implementation: Attention = None,
    quantize: Quantize = None,
    revision: Revision = None,
    family: FamilyName = None,
    block_size: BlockSize = None,
    mask_id: MaskId = None,
    stop_ids: StopIds = None,
    adapter: Adapter = None,
    batch_size: Annotated[
        int, source(help="Prompts decoded at once; does not change results.", **COUNT)
    ] = 16,
    decoder: DecoderName = "low_confidence",
    option: DecoderOptions = None,
    recommended: AsAuthors = False,
    gen_length: GenLength = None,
    block_length: BlockLength = 32,
    steps: Steps = None,
    position_temperature: PositionTemperature = 0.0,
    stop_at_eos: Annotated[
        bool | None,
        decoding(
            "--stop-at-eos/--no-stop-at-eos",
            help="End an answer at the first stop token.",
            show_default="on; off with --infill",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        decoding(
            metavar="TEXT", help="Text that ends an answer and is left out of it; repeatable."
        ),
    ] = None,
    pad_after_eos: PadAfterEos = False,
    confidence_eos_eot_inf: StopsLast = False,
    regex: Regex = None,
    choice: Choice = None,
    json_schema: JsonSchema = None,
    cache: CacheName = "none",
    refresh_every: RefreshEvery = None,
    refresh_around: RefreshAround = 0,
    refresh_answer_every: RefreshAnswerEvery = None,
    refresh_prompt_every: RefreshPromptEvery = None,
    refresh_decoded_every: RefreshDecodedEvery = None,
    suffix_window: SuffixWindow = None,
    suppress_tokens: SuppressTokens = None,
    begin_suppress_tokens: BeginSuppressTokens = None,
    logit_bias: LogitBias = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    cfg_scale: CfgScale = 0.0,
    seed: Seed = 0,
    watch: Annotated[
        bool, output("--watch", help="Show the canvas of one prompt after each forward pass.")
    ] = False,
    html: Annotated[
        Path | None,
        output(
            metavar="FILE", help="Write an HTML page that plays back all canvases, pass by pass."
        ),
    ] = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Continue prompts, or fill the blanks in texts."""
    given, facts = decoding_options(locals()), model_options(locals())
    refuse_company("dlm generate")
    language = Language(regex, choice, json_schema)
    rows = read_rows(prompts or [], file)
    refuse(rows, watch=watch, json=json, infill=infill, chatty=bool(chat) or system is not None)
    if html is not None:
        refuse_page(html, watch=watch, grows=max_gen_length is not None)
        given["return_trajectory"] = True
    if infill and gen_length is None:
        given.pop("gen_length", None)  # so that the authors' recommended length does not apply
    elif not infill:
        given.setdefault("gen_length", BUILT_IN_GEN_LENGTH if model is None else GEN_LENGTH)
    wrap = not infill and (model is None if chat is None else chat)
    growth = {"max_gen_length": max_gen_length, "expand_budget": expand_budget}
    growth["broadcast_deletion"] = broadcast_deletion or None
    grows = {name: value for name, value in growth.items() if value is not None}
    job = Job(rows, given, chat=wrap, infill=infill, system=system, growth=grows)
    job.check()
    loaded = load_model(model, device, dtype, **facts)
    constraint = language.constraint(loaded)
    if constraint is not None:
        given["constraint"] = constraint
    if watch:
        job.watch(loaded)
        return
    made: dict[int, Generation] = {}
    job.run(loaded, batch_size, machine=json, keep=None if html is None else made.__setitem__)
    if html is not None:
        write_playback(loaded, made, [row.prompt for row in rows], html)


def write_playback(
    model: "Model", made: "dict[int, Generation]", prompts: list[Any], path: Path
) -> None:
    """Write the page that plays back the generation of each prompt."""
    from dlm.generation import together
    from dlm.player import playback

    path.write_text(playback(model, together(made.items()), prompts), encoding="utf-8")
    note(f"{path}: open it in a browser")


def refuse_page(path: Path, *, watch: bool, grows: bool) -> None:
    """Refuse a page that cannot be written, before anything is decoded for it.

    Raises:
        ValueError: the page cannot be written, --watch is given too, or blanks may grow.
    """
    if grows:
        raise ValueError("--html plays canvases that keep their length: leave --max-gen-length out")
    if watch:
        raise ValueError("--watch and --html both show the canvas: give one of them")
    try_file("--html", path)


def refuse(rows: list[Row], *, watch: bool, json: bool, infill: bool, chatty: bool) -> None:
    """Refuse options that cannot be combined.

    Raises:
        ValueError: with the reason.
    """
    if watch and len(rows) != 1:
        raise ValueError(f"--watch draws one prompt, got {len(rows)}")
    if watch and json:
        raise ValueError("--watch and --json both write to stdout: give one of them")
    if watch and infill:
        raise ValueError("--watch draws what follows a prompt: leave --infill out")
    if infill and chatty:
        raise ValueError("--infill takes texts as they stand: leave --chat out, and --system")
    if infill and not all(isinstance(row.prompt, str) for row in rows):
        raise ValueError('--infill takes texts: give "prompt", not "messages"')
