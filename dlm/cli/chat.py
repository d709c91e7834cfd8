"""`dlm chat`."""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dlm.cli.errors import WRONG, message_of
from dlm.cli.inputs import decode, refuse_company
from dlm.cli.loading import load_model
from dlm.cli.options import (
    BUILT_IN_GEN_LENGTH,
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
    Quantize,
    RefreshAnswerEvery,
    RefreshAround,
    RefreshDecodedEvery,
    RefreshEvery,
    RefreshPromptEvery,
    Revision,
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
    sampling,
)
from dlm.cli.results import note, print_json, summary
from dlm.options import known, writable

if TYPE_CHECKING:
    from dlm.cli.conversation import Conversation

CLEAR: Final = "/clear"
EXIT: Final = "/exit"
HELP: Final = f"{CLEAR} begins anew; {EXIT} or Ctrl-D ends; Ctrl-C stops an answer"
PUZZLE: Final = 'puzzles for the built-in model, /clear between them: "Sudoku: 3102200002100320"'


def chat(  # noqa: PLR0913 (the parameters are the command line)
    context: typer.Context,
    system: System = None,
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
    decoder: DecoderName = "low_confidence",
    option: DecoderOptions = None,
    recommended: AsAuthors = False,
    gen_length: GenLength = None,
    block_length: BlockLength = 32,
    steps: Steps = None,
    stop_at_eos: Annotated[
        bool,
        decoding("--stop-at-eos/--no-stop-at-eos", help="End the answer at the first stop token."),
    ] = True,
    cache: CacheName = "none",
    refresh_every: RefreshEvery = None,
    refresh_around: RefreshAround = 0,
    refresh_answer_every: RefreshAnswerEvery = None,
    refresh_prompt_every: RefreshPromptEvery = None,
    refresh_decoded_every: RefreshDecodedEvery = None,
    suffix_window: SuffixWindow = None,
    position_temperature: PositionTemperature = 0.0,
    pad_after_eos: PadAfterEos = False,
    confidence_eos_eot_inf: StopsLast = False,
    suppress_tokens: SuppressTokens = None,
    begin_suppress_tokens: BeginSuppressTokens = None,
    logit_bias: LogitBias = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    cfg_scale: CfgScale = 0.0,
    seed: Annotated[
        int, sampling(help="Seed of the first answer; each further answer adds 1.", **WHOLE)
    ] = 0,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Chat with a model, one line a turn; also reads questions from a pipe.

    Type /clear to start a new conversation. /exit, Ctrl-D, or Ctrl-C at the prompt ends the chat.
    """
    given, facts = decoding_options(locals()), model_options(locals())
    refuse_company("dlm chat")
    given.setdefault("gen_length", BUILT_IN_GEN_LENGTH if model is None else GEN_LENGTH)
    if system is not None:
        writable(system, "--system")
    from dlm.settings import Settings

    Settings.of(given)  # before a model is loaded
    loaded = load_model(model, device, dtype, **facts)
    from dlm.cli.conversation import Conversation

    live = sys.stdin.isatty()
    conversation = Conversation(loaded, given, system)
    if live:
        note(HELP if model is not None else f"{PUZZLE}. {HELP}")
    if not talk(conversation, live=live, machine=json) and not live:
        raise typer.Exit(WRONG)  # the user was not there to see the errors


def talk(conversation: "Conversation", *, live: bool, machine: bool) -> bool:
    """Answer questions until there are none left; returns whether none was refused."""
    well = True
    for line in lines(live=live):
        if line == EXIT:
            break
        try:
            if isinstance(line, ValueError):
                raise line
            if re.fullmatch(r"/\w+", line):
                known("command", line, (CLEAR, EXIT))
                conversation.clear()
            else:
                answer(conversation, line, live=live, machine=machine)
        except Exception as error:
            message = message_of(error)
            if message is None:
                raise
            note(f"error: {message}")
            well = False
    return well


def answer(conversation: "Conversation", question: str, *, live: bool, machine: bool) -> None:
    """Show the answer to a question, and its cost.

    Raises:
        KeyboardInterrupt: the answer was stopped, and no user is there to ask another question.
    """
    result = conversation.ask(question, show=not machine)
    if result is not None and machine:
        print_json(result.record())
    elif result is not None:
        note(summary(result.forwards, result.tokens_per_forward, result.seconds))
    elif not live:
        raise KeyboardInterrupt
    elif conversation.messages[-1:] and conversation.messages[-1]["role"] == "assistant":
        note("stopped: what is above is the answer that the conversation goes on with")
    else:
        note("stopped: nothing was final yet, and the question is taken back")


def lines(*, live: bool) -> Iterator[str | ValueError]:
    """Yield the lines that the user types or that the pipe holds, without empty lines.

    A line that is not valid text is yielded as a ValueError.
    """
    if not live:
        for number, data in enumerate(sys.stdin.buffer, start=1):
            try:
                text = decode(data, f"line {number} of stdin").strip()
            except ValueError as error:
                yield error
                continue
            if text:
                yield text
        return
    with suppress(ImportError):
        import readline  # noqa: F401 (input() has a history and can be edited with it)
    prompt = "> " if sys.stdout.isatty() else ""
    while True:
        if not prompt:  # stdout holds only answers
            typer.echo("> ", nl=False, err=True)
        try:
            text = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo(err=True)
            return
        if text:
            yield text
