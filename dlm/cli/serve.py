"""`dlm serve`."""

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dlm.cli.loading import devices_of, load_model, model_name
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
    Temperature,
    TensorParallel,
    TopK,
    TopP,
    decoding,
    decoding_options,
    model_options,
    sampling,
    server,
)
from dlm.cli.results import note, print_json
from dlm.options import number

KEY: Final = "DLM_API_KEY"  # environment variable

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.prompt_cache import PromptCache
    from dlm.serving.app import Served


def serve(  # noqa: PLR0913 (the parameters are the command line)
    context: typer.Context,
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
    host: Annotated[
        str, server(help="Address to listen on; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, server(help="Port to listen on; 0 chooses a free one.", **WHOLE)] = 8000,
    name: Annotated[
        str | None,
        server(help="Name of the model in requests.", show_default="as --model"),
    ] = None,
    api_key: Annotated[
        str | None,
        server(help="API key that requests must send.", envvar=KEY, show_default="none required"),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        server(
            help="Origin of web pages that may send requests, such as https://example.org, or * "
            "for all; repeatable.",
            show_default="none",
        ),
    ] = None,
    data_parallel_size: Annotated[
        int,
        server(help="Copies of the model, each on its own GPU, that share the requests.", **COUNT),
    ] = 1,
    batch_size: Annotated[
        int, server(help="Maximum number of rows that each copy decodes at once.", **COUNT)
    ] = 16,
    queue_size: Annotated[
        int, server(help="Maximum number of rows that wait for each copy.", **COUNT)
    ] = 256,
    prompt_cache: Annotated[
        float | None,
        server(
            help="Prompt cache of each copy in GiB: keeps keys and values for requests that "
            "begin alike. For block-attention families, with a --cache; 0 disables it.",
            metavar="GIB",
            show_default="1/16 of a GPU's memory, or 1",
        ),
    ] = None,
    decoder: DecoderName = "low_confidence",
    option: DecoderOptions = None,
    recommended: AsAuthors = False,
    gen_length: GenLength = None,
    block_length: BlockLength = 32,
    steps: Steps = None,
    position_temperature: PositionTemperature = 0.0,
    stop_at_eos: Annotated[
        bool,
        decoding("--stop-at-eos/--no-stop-at-eos", help="End an answer at the first stop token."),
    ] = True,
    pad_after_eos: PadAfterEos = False,
    confidence_eos_eot_inf: StopsLast = False,
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
    seed: Annotated[
        int | None,
        sampling(help="Seed of all noise.", show_default="drawn for each request", **WHOLE),
    ] = None,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Serve OpenAI's API: /v1/completions, /v1/chat/completions, /v1/models.

    The decoding options given here are defaults for requests that do not set them.
    """
    defaults, facts = decoding_options(locals()), model_options(locals())
    defaults.setdefault("gen_length", BUILT_IN_GEN_LENGTH if model is None else GEN_LENGTH)
    check_extra()
    check_key(api_key)
    check_origins(cors_origin or [])
    access = {"api_key": api_key, "cors_origins": cors_origin or []}
    from dlm.settings import Settings

    Settings.of(defaults)  # checked, like the port, before a model is loaded
    if prompt_cache is not None:
        number("--prompt-cache", prompt_cache, least=0.0)
    called = model_name(model, adapter, revision) if name is None else name
    places = devices_of(device, data_parallel_size, facts)
    with listening(host, port) as listener:
        loaded = [load_model(model, place, dtype, **facts) for place in places]
        sizes = {"batch_size": batch_size, "queue_size": queue_size}
        run(loaded, listener, called, defaults, access, sizes, prompt_cache, json)


def make_prompt_cache(model: "Model", gib: float | None) -> "PromptCache | None":
    """Create a prompt cache of this size, none for 0; by default if the family supports one."""
    from dlm.prompt_cache import PromptCache

    if gib == 0 or (gib is None and not PromptCache.suits(model)):
        return None
    return PromptCache(model, gib=gib)


def run(
    models: Sequence["Model"],
    listener: socket.socket,
    name: str,
    defaults: dict[str, Any],
    access: dict[str, Any],
    sizes: dict[str, int],
    prompt_gib: float | None,
    machine: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from dlm.serving.app import create_app
    from dlm.serving.engine import Engine
    from dlm.serving.front import run_until_signal
    from dlm.serving.replicas import Replicas

    engines = [
        Engine(model, **sizes, prompt_cache=make_prompt_cache(model, prompt_gib))
        for model in models
    ]
    engine = Replicas(engines)
    try:
        served = partial(tell, machine=machine)
        app = create_app(engine, name=name, defaults=defaults, served=served, **access)
        guarded = access["api_key"] is not None
        announce(listener, name, engine.batch_size, guarded=guarded, machine=machine)
        run_until_signal(app, engine, listener)
    finally:
        engine.close()


def announce(
    listener: socket.socket, name: str, batch_size: int, *, guarded: bool, machine: bool
) -> None:
    """Print the address of the server."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    if machine:
        print_json({"url": url, "model": name})
        return
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    lines = [
        f"{name} at {url}, {batch_size} rows at a time; Ctrl-C ends. Such as:",
        f"  curl {url}/chat/completions -d '{body}'",
    ]
    if not (guarded or ip_address(host).is_loopback):
        lines.append("Whoever reaches this address may ask: --api-key says who may")
    with suppress(OSError):  # the user may not read these lines, or not all of them
        note("\n".join(lines))


def tell(served: "Served", *, machine: bool) -> None:
    """Print a line for each request; ignored if stderr or stdout is closed."""
    with suppress(OSError):
        if machine:
            print_json(asdict(served))
        else:
            note(line_of(served))


def line_of(served: "Served") -> str:
    """Describe a request on one line, without control characters that an error may contain."""
    said = served.error
    if said is None:
        told = "" if served.forwards is None else f" in {served.forwards} forwards"
        cached = f", {served.cached_tokens} of them kept" if served.cached_tokens else ""
        said = (
            f"{served.choices} of {served.prompt_tokens} tokens{cached}, "
            f"{served.completion_tokens} decoded{told}"
        )
    shown = "".join(letter if letter.isprintable() else " " for letter in said)
    return (
        f"{served.endpoint} {served.status}: {shown}, {served.seconds:.2f} s, {served.request_id}"
    )


def check_extra() -> None:
    """Refuse to start without the packages of the extra `serve`.

    Raises:
        ValueError: they are not installed.
    """
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        raise ValueError('dlm serve needs starlette and uvicorn: pip install -e ".[serve]"')


def check_key(key: str | None) -> None:
    """Refuse a key that would lock everybody out, or let everybody in by mistake.

    Raises:
        ValueError: the key is empty, or an HTTP header cannot hold it unchanged.
    """
    if key is None and os.environ.get(KEY) == "":  # click treats an empty variable as not set
        raise ValueError(f"{KEY} must not be empty: unset it to serve without a key")
    if key is not None and not re.fullmatch("[!-~]+( +[!-~]+)*", key):
        raise ValueError("--api-key must be printable ASCII, with no space around it")


def check_origins(origins: list[str]) -> None:
    """Refuse what no browser sends as the origin of a page.

    Raises:
        ValueError: an origin is not exactly a scheme, a host and optionally a port.
    """
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@A-Z]+", origin):
            raise ValueError(
                "--cors-origin must be a scheme, a host and maybe a port, all in small letters, "
                f"with no path, such as https://example.org, or *, got {origin!r}"
            )


def listening(host: str, port: int) -> socket.socket:
    """Open a listening socket, so that a port in use is reported before a model is loaded.

    Raises:
        ValueError: the host or the port is invalid.
        OSError: the address is in use, or belongs to another machine.
    """
    if not host:
        raise ValueError("--host must not be empty: 0.0.0.0 stands for all addresses")
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port must be an int in [0, 65535], got {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"--host must be an address or its name, got {host!r}: {error}") from None
    return socket.create_server(address[:2], family=family, backlog=128)
