"""Loading a checkpoint: through transformers, from safetensors, with no remote code."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dlm.models.model import Model
from dlm.models.spec import ModelSpec
from dlm.options import integer, known

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

BUILT_IN = "tiny"
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
DTYPES = ("auto", "float32", "bfloat16", "float16")

RELEASED_LLADA_VOCAB = 126464
RELEASED_LLADA_TOKENS = 126349
RELEASED_LLADA_EOT = 126348


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
    device_map: Any = None,
    mask_id: int | None = None,
) -> Model:
    """Load a masked-diffusion language model and its tokenizer.

    Args:
        name_or_path: a folder or a Hugging Face id; None for the built-in tiny model.
        device: where to put it, such as "cuda"; the CPU if absent.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16", "float16" or a torch dtype.
        attn_implementation: "sdpa", "eager", "flash_attention_2" or "flex_attention".
        device_map: as in transformers, to spread a large model; excludes `device`.
        mask_id: overrides the checkpoint's mask id.

    Raises:
        ValueError: unknown family, weights that do not fit, an option out of its rule.
        FileNotFoundError: a path that is not there.
    """
    if device is not None and device_map is not None:
        raise ValueError(f"give device or device_map, not both: {device!r} and {device_map!r}")
    known("attn_implementation", attn_implementation, ATTENTION)
    target = check_device(device)
    wanted = check_dtype(dtype)
    if name_or_path is None:
        with as_file(files("dlm") / "assets" / BUILT_IN) as folder:
            source = str(folder)
            return _load(source, target, wanted, attn_implementation, device_map, mask_id)
    source = os.fspath(name_or_path)
    if not source:
        raise ValueError("name_or_path must be a folder or a Hugging Face id, got ''")
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1
    if looks_local and not Path(source).expanduser().is_dir():
        raise FileNotFoundError(f"no model folder at {source!r}")
    if Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser())
    return _load(source, target, wanted, attn_implementation, device_map, mask_id)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the progress bars of transformers off."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, if this machine has it."""
    try:
        target = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"device must be a torch device, got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here")
    return target


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The dtype for transformers."""
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating dtype, got {dtype}")
        return dtype
    known("dtype", dtype, DTYPES)
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def _load(
    source: str,
    device: torch.device,
    dtype: str | torch.dtype,
    attention: str,
    device_map: Any,
    mask_id: int | None,
) -> Model:
    config = read_config(source)
    with contextlib.nullcontext() if sys.stderr.isatty() else silence():
        network = read_network(source, config, dtype, attention, device_map)
    if device_map is None:
        network.to(device)
    tokenizer = read_tokenizer(source)
    spec = resolve(config, read_stops(source), tokenizer, mask_id)
    return Model(network, tokenizer, spec)


def read_config(source: str) -> "PreTrainedConfig":
    """The configuration, of a family we know; no code that it may point to is looked at.

    Raises:
        ValueError: there is none, or it is of another family.
    """
    from transformers import AutoConfig, PreTrainedConfig

    from dlm.models.configs import LladaConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration of {source!r}: {error}") from error
    if not raw.get("model_type"):
        raise ValueError(
            f"cannot read the configuration of {source!r}: "
            "config.json is missing or names no model_type"
        )
    if raw["model_type"] != LladaConfig.model_type:
        raise ValueError(
            f"{source!r} has model_type {raw['model_type']!r}, which is not a masked-diffusion "
            f"family known here. Known: {LladaConfig.model_type}"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the configuration of {source!r} does not fit: {error}") from error
    return config


def read_network(
    source: str, config: Any, dtype: str | torch.dtype, attention: str, device_map: Any
) -> Any:
    """The network with every weight in its place."""
    from safetensors import SafetensorError
    from transformers import AutoModelForMaskedLM

    try:
        network, report = AutoModelForMaskedLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"cannot load the weights of {source!r}: {error}") from error
    wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        listed = "; ".join(f"{kind}: {', '.join(keys[:4])}" for kind, keys in wrong.items())
        raise ValueError(f"the weights of {source!r} do not fit its configuration: {listed}")
    network.requires_grad_(False)
    return network.eval()


def read_tokenizer(source: str) -> "PreTrainedTokenizerBase | None":
    """The tokenizer, or None where a folder holds none.

    Raises:
        ValueError: it is corrupt.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    names = ("tokenizer.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).exists() for name in names):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the tokenizer of {source!r}: {error}") from error
    return tokenizer


def read_stops(source: str) -> list[int]:
    """Stop ids of `generation_config.json`, where there is one.

    Raises:
        ValueError: it is corrupt.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(
        source,
        "generation_config.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return []
    try:
        return _ids(json.loads(Path(path).read_text()).get("eos_token_id"))
    except ValueError as error:
        raise ValueError(f"cannot read generation_config.json of {source!r}: {error}") from error


def resolve(
    config: Any, declared_stops: list[int], tokenizer: Any, mask_id: int | None = None
) -> ModelSpec:
    """The facts of a LLaDA checkpoint, cross-checked.

    The mask id is the argument, else the configuration's, else the tokenizer's. Stop ids are those
    of the configurations, the released end of turn, and the tokenizer's `<|eot_id|>`.

    Raises:
        ValueError: no mask id, one outside the vocabulary, one the tokenizer contradicts, or a
            stop id that is none.
    """
    rows = int(config.embedding_size)
    if mask_id is not None:
        integer("mask_id", mask_id, least=0)
    declared = None if tokenizer is None else tokenizer.mask_token_id
    chosen = next((i for i in (mask_id, config.mask_token_id, declared) if i is not None), None)
    if chosen is None or not 0 <= chosen < rows:
        raise ValueError(f"mask_id must be an id below the vocabulary size {rows}, got {chosen}")
    if mask_id is None and declared is not None and declared != chosen:
        raise ValueError(
            f"the configuration's mask_token_id {chosen} and the tokenizer's {declared} "
            "disagree; pass mask_id"
        )
    stops = [*declared_stops, *_ids(config.eos_token_id)]
    if not stops:
        raise ValueError("the configuration names no eos_token_id")
    released = rows == RELEASED_LLADA_VOCAB
    if released:
        stops.append(RELEASED_LLADA_EOT)
    tokens = RELEASED_LLADA_TOKENS if released else min(int(config.vocab_size), rows)
    if tokenizer is not None:
        tokens = min(len(tokenizer), rows)
        end_of_turn = tokenizer.get_vocab().get("<|eot_id|>")
        stops += [] if end_of_turn is None else [end_of_turn]
    if not all(0 <= stop < rows and stop != chosen for stop in stops):
        raise ValueError(
            f"stop ids must be ids below the vocabulary size {rows} other than the mask's "
            f"{chosen}, got {stops}"
        )
    return ModelSpec(
        family=config.model_type,
        vocab_size=rows,
        mask_id=chosen,
        eos_id=stops[0],
        stop_ids=tuple(dict.fromkeys(stops)),
        max_length=int(config.max_sequence_length),
        unused=(tokens, rows),
    )


def _ids(value: int | list[int] | None) -> list[int]:
    """Token ids of a field that may hold none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
