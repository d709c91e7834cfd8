"""`dlm serve`."""

import socket
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Final

from dlm.cli.generate import BUILT_IN_GEN_LENGTH, GEN_LENGTH
from dlm.cli.inputs import parse_pairs, parse_value
from dlm.cli.loading import load_model, model_name
from dlm.cli.options import (
    COUNT,
    JSON,
    WHOLE,
    Adapter,
    BlockLength,
    BlockSize,
    CacheName,
    CfgScale,
    DecoderName,
    DecoderOptions,
    Device,
    Dtype,
    FamilyName,
    MaskId,
    ModelName,
    PositionTemperature,
    RefreshEvery,
    Seed,
    Steps,
    Temperature,
    TopK,
    TopP,
    decoding,
    server,
    unless_none,
)
from dlm.cli.results import note, print_json

if TYPE_CHECKING:
    from dlm.models.model import Model
    from dlm.serving.app import Served

GRACE: Final = 30
"""Seconds."""


def serve(  # noqa: PLR0913 (the parameters are the command line)
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "auto",
    family: FamilyName = None,
    block_size: BlockSize = None,
    mask_id: MaskId = None,
    adapter: Adapter = None,
    host: Annotated[str, server(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, server(help="0 takes one that is free.", **WHOLE)] = 8000,
    name: Annotated[
        str | None,
        server(help="What requests call the model.", show_default="as --model"),
    ] = None,
    api_key: Annotated[
        str | None,
        server(help="What requests have to bring.", envvar="DLM_API_KEY", show_default="nothing"),
    ] = None,
    batch_size: Annotated[int, server(help="Rows decoded at a time, at most.", **COUNT)] = 16,
    queue_size: Annotated[int, server(help="Rows that wait, at most.", **COUNT)] = 256,
    decoder: DecoderName = "low_confidence",
    option: DecoderOptions = None,
    gen_length: Annotated[
        int | None,
        decoding(
            help="Tokens to decode.",
            show_default=f"{BUILT_IN_GEN_LENGTH} for the built-in model, else {GEN_LENGTH}",
            **WHOLE,
        ),
    ] = None,
    block_length: BlockLength = 32,
    steps: Steps = None,
    position_temperature: PositionTemperature = 0.0,
    cache: CacheName = "none",
    refresh_every: RefreshEvery = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    cfg_scale: CfgScale = 0.0,
    seed: Seed = 0,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Answer OpenAI's API: /v1/completions, /v1/chat/completions, /v1/models.

    How to decode is said here for requests that do not say it themselves.
    """
    if gen_length is None:
        gen_length = BUILT_IN_GEN_LENGTH if model is None else GEN_LENGTH
    defaults: dict[str, Any] = {
        "decoder": decoder,
        "decoder_options": {
            key: parse_value(value) for key, value in parse_pairs("--option", option or []).items()
        },
        "gen_length": gen_length,
        "block_length": unless_none(block_length),
        "steps": steps,
        "position_temperature": position_temperature,
        "cache": cache,
        "refresh_every": refresh_every,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "cfg_scale": cfg_scale,
        "seed": seed,
    }
    check_extra()
    from dlm.settings import Settings

    Settings.of(defaults)  # like the port, before a model is loaded
    called = model_name(model, adapter) if name is None else name
    facts = {"family": family, "block_size": block_size, "mask_id": mask_id}
    with listening(host, port) as listener:
        loaded = load_model(model, device, dtype, adapter=adapter, **facts)
        run(loaded, listener, called, defaults, api_key, batch_size, queue_size, json)


def run(
    model: "Model",
    listener: socket.socket,
    name: str,
    defaults: dict[str, Any],
    api_key: str | None,
    batch_size: int,
    queue_size: int,
    machine: bool,
) -> None:
    """Serve until Ctrl-C or SIGTERM; what is being answered then gets `GRACE` seconds."""
    import uvicorn

    from dlm.serving.app import create_app
    from dlm.serving.engine import Engine

    engine = Engine(model, batch_size=batch_size, queue_size=queue_size)
    try:
        served = partial(tell, machine=machine)
        app = create_app(engine, name=name, defaults=defaults, api_key=api_key, served=served)
        announce(listener, name, batch_size, machine=machine)
        config = uvicorn.Config(
            app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=GRACE
        )
        with suppress(KeyboardInterrupt):  # the usual end
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        engine.close()


def announce(listener: socket.socket, name: str, batch_size: int, *, machine: bool) -> None:
    """Say where requests go."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    if machine:
        print_json({"url": url, "model": name})
        return
    body = '{"messages": [{"role": "user", "content": "Hello"}]}'
    note(f"{name} at {url}, {batch_size} rows at a time; Ctrl-C ends. Such as:")
    note(f"  curl {url}/chat/completions -d '{body}'")


def tell(served: "Served", *, machine: bool) -> None:
    """A line for each request."""
    if machine:
        print_json(asdict(served))
        return
    done = (
        f"{served.choices} of {served.prompt_tokens} tokens, {served.completion_tokens} decoded in "
        f"{served.forwards} forwards"
    )
    said = done if served.error is None else served.error
    note(f"{served.endpoint} {served.status}: {said}, {served.seconds:.2f} s")


def check_extra() -> None:
    """Refuse to begin without what the extra `serve` installs.

    Raises:
        ValueError: it is not installed.
    """
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        raise ValueError("dlm serve needs starlette and uvicorn: pip install 'dlm[serve]'")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use shows before a model is loaded.

    Raises:
        ValueError: no port.
        OSError: no such address, or it is in use.
    """
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port must be an int in [0, 65535], got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
