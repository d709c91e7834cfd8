"""Loading checkpoints: network, tokenizer and facts, without remote code."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from dlm import foreign
from dlm.models.adapter import attach
from dlm.models.catalog import BUILT_IN_NAME
from dlm.models.facts import Overrides, read_config, read_generation, resolve
from dlm.models.families import ENCODER
from dlm.models.family import Family
from dlm.models.model import MASKED, Model
from dlm.models.placement import check_device, check_parts, check_placement
from dlm.models.spec import ModelSpec
from dlm.models.tokenizers import read_tokenizer
from dlm.models.weights import read_directly, read_network
from dlm.options import boolean, integer, is_folder, known, names_checked

BUILT_IN = "tiny"
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")
WHOLE = ("device_map", "quantization_config", "direct", "adapter", "distributed_config")
"""Options that cannot be combined with `tensor_parallel_size`."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@partial(names_checked, instead=foreign.LOAD)
def load(  # noqa: PLR0913 (what users choose about a model)
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    direct: bool = False,
    tensor_parallel_size: int = 1,
    distributed_config: Any = None,
    revision: str | None = None,
    family: str | None = None,
    block_size: int | None = None,
    mask_id: int | None = None,
    stop_ids: Sequence[int] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    merge: bool = False,
) -> Model:
    """Load a masked-diffusion language model and its tokenizer.

    Nothing in a checkpoint is executed: code beside it is never run, and pickles are never read.

    Args:
        name_or_path: a folder, otherwise a Hugging Face id. None or "built-in" loads the built-in
            tiny model.
        device: where to put the model, such as "cuda"; by default the CPU.
        dtype: "auto" (the checkpoint's own, the default), "float32", "bfloat16", "float16",
            "float64", or the torch dtype of that name.
        attn_implementation: "sdpa", "eager", "flash_attention_2" or "flex_attention". The default
            is "sdpa"; for the masked language models of transformers it is transformers' choice.
            Block-attention models and WeDLM need "sdpa" or "eager", which take a mask per query.
        device_map: as in transformers, to spread a large model over devices; excludes `device`.
        quantization_config: a configuration of transformers such as `BitsAndBytesConfig`, or a
            `dlm.W8A8Config` for 8-bit integers.
        direct: read the weights without transformers' loader, onto one device. The weights have
            the same bits either way. Excludes `device_map`, `quantization_config` and
            `distributed_config`. Off by default.
        tensor_parallel_size: split every layer over N processes: with `device="cuda"` over GPUs 0
            to N - 1, on a machine without GPUs over CPU processes. This process starts the others
            and takes the same calls as with a whole model. 1, the default, keeps the model whole.
            Excludes `device_map`, `quantization_config`, `direct`, `adapter` and
            `distributed_config`.
        distributed_config: as in transformers, such as `DistributedConfig(tp_size=2)`: loads this
            process's part of the model. torchrun starts all processes, and each of them has to
            make every call.
        revision: a branch, tag or commit, if the model is a Hugging Face id; by default its main
            branch.
        family: a family name from `dlm models`, for a checkpoint whose files look like those of
            another network.
        block_size: size of an attention block, in tokens, instead of the checkpoint's; for
            block-attention models. For LLaDA and Dream it is the block size of an adapter that
            makes attention block-causal after the prompt (D2F, arXiv:2508.09192): a block sees
            itself, the blocks before it and the prompt, which counts as one block.
        mask_id: overrides the checkpoint's mask id.
        stop_ids: override the checkpoint's stop ids. A row is filled with the first of them after
            a stop token.
        adapter: a LoRA adapter in peft's format that was trained for this model, such as
            `dlm distill certainty` writes: a folder or a Hugging Face id. Needs peft.
        merge: add the adapter to the weights, so that a forward pass costs no more than without
            the adapter. Off by default; with `dlm.W8A8Config` an adapter has to be merged.

    Returns:
        The model, ready for `dlm.generate`.

    Raises:
        ValueError: the family is unknown, the weights do not fit, facts contradict each other, the
            adapter belongs to another model, or an option is invalid.
        FileNotFoundError: a path does not exist or is no folder.
        ChildProcessError: another process of a model that is split over processes failed.
    """
    if integer("tensor_parallel_size", tensor_parallel_size, least=1) > 1:
        return load_parts(locals())
    if attn_implementation is not None:
        known("attn_implementation", attn_implementation, ATTENTION)
    target = check_device(device)
    wanted = check_dtype(dtype)
    maps = {"device_map": device_map, "distributed_config": distributed_config}
    check_placement(device, boolean("direct", direct), maps, quantization_config)
    addition, late = check_adapter(adapter, merge, quantization_config)

    def read(source: str) -> Model:
        where = at(source, revision)
        config, found = read_config(source, family, **where)
        check_parts(config, 1 if distributed_config is None else distributed_config.tp_size)
        declared = read_generation(source, **where)
        tokenizer = read_tokenizer(source, found.tokenizer, **where)
        spec = resolve(
            config,
            declared.stop_ids,
            tokenizer,
            mask_id,
            block_size=block_size,
            declared_mask=declared.mask_id,
            stops=stop_ids,
        )
        backend = attn_implementation or (None if found is ENCODER else "sdpa")
        check_attention(backend, spec)
        from dlm.huggingface.quantization import asked, quantize

        with contextlib.nullcontext() if sys.stderr.isatty() else silence():
            if direct:
                check_direct(source, config, found)
                network = read_directly(source, config, found, target, wanted, str(backend), where)
                network.adjust_generation_fn(None, False, None, source, **where)
            else:
                network = read_network(
                    source,
                    config,
                    found,
                    target,
                    where,
                    dtype=wanted,
                    attn_implementation=backend,
                    quantization_config=None if late else asked(config, quantization_config),
                    **maps,
                )
        if found is not ENCODER:
            ends = None if stop_ids is None else tuple(stop_ids)
            behind = spec.block_size if spec.anchored else None
            network.override(spec.block_size, Overrides(mask_id, ends, behind))
        if addition is not None:
            network = attach(network, addition, merge=merge)
            if late:
                quantize(network.network if found is ENCODER else network, quantization_config)
        return Model(network, tokenizer, spec)

    if name_or_path is None or name_or_path == BUILT_IN_NAME:
        with as_file(files("dlm") / "assets" / BUILT_IN) as folder:
            return read(str(folder))
    return read(locate(name_or_path))


def load_parts(given: Mapping[str, Any]) -> Model:
    """Load a model that is split over processes, with this process as the first.

    Args:
        given: the options of `load`.

    Raises:
        ChildProcessError: another process failed.
        ValueError: an option is invalid or cannot be combined with `tensor_parallel_size`.
    """
    from dlm.parallel.leader import lead

    facts, size = dict(given), given["tensor_parallel_size"]
    for name in WHOLE:
        if facts.pop(name):
            raise ValueError(
                f"{name} does not go with tensor_parallel_size {size}, got {given[name]!r}"
            )
    name = facts["name_or_path"]
    if name is not None and name != BUILT_IN_NAME:  # fails before any process is started
        source = locate(name)
        config, _ = read_config(source, facts["family"], **at(source, facts["revision"]))
        check_parts(config, size)
    return lead(size, facts)


def check_adapter(
    adapter: str | os.PathLike[str] | None, merge: bool, quantization_config: Any
) -> tuple[str | None, bool]:
    """Where the adapter is, and whether weights are quantised only after merging it.

    Raises:
        ValueError: `merge` without an adapter, or `W8A8Config` with an adapter that is not merged.
    """
    if boolean("merge", merge) and adapter is None:
        raise ValueError("merge adds an adapter to the weights: give adapter as well")
    if adapter is None:
        return None, False
    late = getattr(quantization_config, "quant_method", None) == "w8a8"
    if late and not merge:
        raise ValueError(
            "quantization_config W8A8Config goes with an adapter that is merged: give merge=True"
        )
    return locate(adapter, "adapter"), late


def locate(place: str | os.PathLike[str], option: str = "name_or_path") -> str:
    """The path of an existing folder, or a Hugging Face id.

    Args:
        place: what the user gave.
        option: the option that holds it, for messages.

    Raises:
        FileNotFoundError: it is neither.
        ValueError: it is empty or no path.
    """
    source = os.fspath(place) if isinstance(place, str | os.PathLike) else ""
    if not source:
        raise ValueError(f"{option} must be a folder or a Hugging Face id, got {place!r}")
    folder = Path(source).expanduser()
    if is_folder(folder):
        return str(folder)
    if not is_id(source) or folder.exists():  # the name of a file can look like an id
        what = "adapter" if option == "adapter" else "model"
        hint = ", which is a file: give the folder that it is in" if os.path.isfile(folder) else ""
        raise FileNotFoundError(f"no {what} folder at {source!r}{hint}")
    return source


def at(source: str, revision: str | None) -> dict[str, str]:
    """The revision as a keyword of transformers' loading functions; empty if there is none.

    Raises:
        ValueError: the revision is no name, or the source is a folder, which has no revisions.
    """
    if revision is None:
        return {}
    if not isinstance(revision, str) or not revision:
        raise ValueError(f"revision must name a branch, a tag or a commit, got {revision!r}")
    if is_folder(source):
        raise ValueError(
            f"revision goes with a Hugging Face id, and {source!r} is a folder, got {revision!r}"
        )
    return {"revision": revision}


def is_id(name: str) -> bool:
    """Whether this is a valid Hugging Face id: "owner/name" or "name"."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Turn off transformers' progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The dtype as transformers takes it: "auto" or a torch dtype.

    Raises:
        ValueError: it is neither a name in `DTYPES` nor the torch dtype of one.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in [getattr(torch, name) for name in DTYPES[1:]]:
            raise ValueError(f"dtype must be torch's of {', '.join(DTYPES[1:])}, got {dtype}")
        return dtype
    known("dtype", dtype, DTYPES)
    return "auto" if dtype == "auto" else getattr(torch, dtype)


def check_direct(source: str, config: Any, family: Family) -> None:
    """Reject `direct` for networks that only transformers can read.

    Raises:
        ValueError: the network is one of transformers' own, or its weights are quantised.
    """
    if family is ENCODER:
        raise ValueError(
            f"direct must be False for a {config.model_type}, a network of transformers"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"direct must be False for {source!r}, whose weights are quantized")


def check_attention(attn_implementation: str | None, spec: ModelSpec) -> None:
    """Reject an attention backend that does not take the masks that the family needs.

    Raises:
        ValueError: attention is in blocks, and the backend takes no mask per query.
    """
    if spec.block_size is not None and attn_implementation not in MASKED:
        raise ValueError(
            f"attn_implementation must be {' or '.join(map(repr, MASKED))} for {spec.family}, "
            f"whose queries have masks of their own, got {attn_implementation!r}"
        )
