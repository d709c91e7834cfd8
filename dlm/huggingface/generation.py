"""`model.generate` of transformers, implemented with `dlm.generate`.

Shapes: B rows, P prompt columns, N new tokens.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig
from transformers.utils import logging
from transformers.utils.generic import ModelOutput

from dlm.generation import finish
from dlm.huggingface import adapters, batch, streamers
from dlm.huggingface.checkpoint import Origin
from dlm.huggingface.config import DiffusionGenerationConfig, left_aside
from dlm.huggingface.options import (
    copies,
    inherited,
    merge,
    own,
    refuse_arguments,
    settings,
    stated,
)
from dlm.job import generation_job
from dlm.models.facts import Overrides, ids, is_released, resolve, with_stops
from dlm.models.families import family_of
from dlm.models.int8 import check_move
from dlm.models.model import Model
from dlm.models.weights import refuse_adapted, refuse_pickles
from dlm.options import integer, names_checked
from dlm.outputs import Generation
from dlm.trajectory import Likeliest, Trajectory

UNREAD: Final = object()
"""Marks a tokenizer that has not been looked up yet."""


@dataclass
class DiffusionGenerationOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`."""

    sequences: Tensor | None = None  # int64 [B, P + N], the given prompts first
    forwards: Tensor | None = None  # int64 [B], forward passes of each row (NFE)
    tokens_per_forward: Tensor | None = None  # float32 [B], positions committed / forwards
    order: Tensor | None = None  # int64 [B, N], see `dlm.Generation`; with return_order
    trajectory: list[Trajectory] | None = None  # one per row; with return_trajectory
    top_tokens: list[list[Likeliest]] | None = None  # one per row; with return_top_tokens


class DiffusionGenerationMixin:
    """Adds `generate` to a network, decoding by masked diffusion."""

    generation_config_class: type[GenerationConfig] = DiffusionGenerationConfig
    generation_config: GenerationConfig
    config: Any
    device: Any
    dtype: Any
    output_modalities = ("text",)
    _origin: Origin | None = None  # where the weights were loaded from
    _tokenizer: Any = UNREAD  # read from `_origin` on first use; None if there is none
    _declared: list[int] | None = None  # stop ids as loaded: `generation_config` may change
    _overrides: Overrides = Overrides()  # replace the facts of the checkpoint
    _leader: Any = None  # a `dlm.parallel.leader.Leader` if processes share the network

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        check_move(self, fn)  # type: ignore[arg-type]
        return super()._apply(fn, recurse)  # type: ignore[misc]

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a projection to the vocabulary."""
        return hasattr(cls, "project")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        **options: Any,
    ) -> Any:
        """Load as in transformers, but only safetensors unless `use_safetensors` is False.

        Raises:
            ValueError: the folder's weights are pickled.
        """
        place = pretrained_model_name_or_path
        if options.get("use_safetensors") is not False:
            options["use_safetensors"] = True
            if place is not None:
                folder = Path(place, options.get("subfolder") or "")
                refuse_pickles(str(folder))
        return super().from_pretrained(place, *model_args, **options)  # type: ignore[misc]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load as in torch. Released names work too, so Trainer can read what it has saved."""
        from dlm.models.conversions import received

        state = received(state_dict, self, strict=strict, assign=assign)
        return super().load_state_dict(state, strict=strict, assign=assign)  # type: ignore[misc]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **options: Any
    ) -> None:
        """Save as in transformers: the whole weights, or the adapter that transformers loaded.

        Raises:
            ValueError: peft put an adapter into the layers, so that the weights would get names
                that loading does not know; or the network is split over processes.
        """
        if self._leader is not None:
            raise ValueError(
                "save_pretrained must get a whole network, and this one is cut over processes: "
                "load it without tensor_parallel_size"
            )
        if not getattr(self, "_hf_peft_config_loaded", False):
            refuse_adapted(self)
        family_of(self.config).settle(self.config)  # also for a network that was not loaded
        super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str] | None = None,
        adapter_name: str | None = None,
        *others: Any,
        **options: Any,
    ) -> Any:
        """Load as in transformers, if the network has a layer for every weight of the adapter.

        Raises:
            ValueError: some weights have none, for example because their layers are named as in the
                released code. Names are checked before the network changes; what they cannot show
                is checked afterwards.
        """
        load = super().load_adapter  # type: ignore[misc]
        told = signature(load).bind(peft_model_id, adapter_name, *others, **options)
        adapters.refuse_misplaced(self, told.arguments)
        report = load(*told.args, **told.kwargs)
        adapters.refuse_partial(peft_model_id, report.unexpected_keys)  # names cannot show all
        return report

    def prepare_inputs_for_generation(self, input_ids: Tensor, **arguments: Any) -> dict[str, Any]:
        """Inputs for transformers' own loop, which peft requires; `generate` does not call it."""
        return {"input_ids": input_ids, **arguments}

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> Tensor | DiffusionGenerationOutput:
        """Continue every prompt by `max_new_tokens` tokens, as `dlm.generate` does.

        Options are merged from the model's `generation_config`, `generation_config` and `options`;
        later ones win. A row is the same as if it were generated alone with the same row key.

        Args:
            input_ids: integer [B, P], padded on either side; by default the begin-of-text token.
                transformers' other name for it, `inputs`, works too.
            attention_mask: [B, P], 0 at padding.
            generation_config: a `DiffusionGenerationConfig`, or one of transformers.
            streamer: follows one row: `put` gets the prompt, then final tokens; `put_draft`, if
                there is one, gets tokens that may still change; `end` is called last.
            tokenizer: source of facts that the configuration lacks, such as stop ids; by default
                the one beside the checkpoint.
            **options: as in `DiffusionGenerationConfig`; `decoder` may also be an instance.

        Returns:
            int64 [B, P + N]: the given prompts, then the new tokens, with `pad_token_id` (by
            default end of text) after a stop token; `num_return_sequences` adjacent rows for each
            prompt. With `return_dict_in_generate`, a `DiffusionGenerationOutput`.

        Raises:
            ValueError: an option or prompt is invalid; the message names it.
        """
        adapters.refuse_learned_prompts(self)
        input_ids = batch.named_so(input_ids, options)
        config, arguments = self._prepare_generation_config(generation_config, **options)
        refuse_arguments(arguments)
        asked = stated(config)
        for name in ("return_order", "return_top_tokens", "return_trajectory"):
            if asked.get(name) and not asked.get("return_dict_in_generate"):
                raise ValueError(
                    f"{name} must go with return_dict_in_generate=True, as token ids alone have no "
                    f"room for it, got {asked[name]!r} without"
                )
        input_ids = batch.checked(input_ids, asked.get("bos_token_id"), self.device)
        pad = asked.get("pad_token_id")
        model = self.model_for(asked, tokenizer)
        if pad is not None:
            integer("pad_token_id", pad, least=0, most=model.spec.vocab_size - 1)
        rows = batch.prompts(input_ids, attention_mask, pad)
        count = copies(asked)
        chosen = settings(asked, input_ids.shape[1], count)
        if chosen.stops:
            model = replace(model, tokenizer=tokenizer or self.checkpoint_tokenizer())
        if streamer is not None:
            streamers.check(streamer, len(rows) * count, chosen.stops)
        job = generation_job(model, [row for row in rows for _ in range(count)], chosen)
        stops = model.spec.stop_ids if chosen.stop_at_eos else ()
        if streamer is None:
            out = finish(job)
        else:
            streamer.put(input_ids.cpu())
            out = finish(job, streamers.Follower(streamer, job, stops))
            streamer.end()
        fill = model.spec.eos_id if pad is None else pad
        repeated = input_ids.repeat_interleave(count, 0)
        sequences = batch.sequences(repeated, out.tokens, stops, fill)
        return output(sequences, out) if asked.get("return_dict_in_generate") else sequences

    def model_for(self, asked: Mapping[str, Any], tokenizer: Any) -> Model:
        """The network with the facts that decoding needs; a call may override some of them.

        Raises:
            ValueError: the facts contradict each other, or the tokenizer cannot be read.
        """
        own_mask = stated(self.generation_config).get("mask_token_id")
        mask_id = asked.get("mask_token_id")
        model = as_model(self, tokenizer, mask_id=None if mask_id == own_mask else mask_id)
        written = ids(self.generation_config.eos_token_id)
        spec = with_stops(model.spec, ids(asked.get("eos_token_id")), written)
        # Without a tokenizer, as only tokens are returned.
        return Model(self, None, spec, leader=self._leader)

    def checkpoint_tokenizer(self) -> Any:
        """The tokenizer beside the checkpoint, read once; None if there is none.

        Raises:
            ValueError: it cannot be read.
        """
        if self._origin is None:
            return None
        if self._tokenizer is UNREAD:
            self._tokenizer = self._origin.tokenizer(family_of(self.config).tokenizer)
        return self._tokenizer

    def override(self, block_size: int | None, tokens: Overrides) -> None:
        """Store facts that replace those of the checkpoint in all later calls.

        Args:
            block_size: size of attention blocks in tokens; written to the configuration.
            tokens: mask id, stop ids and the size of blocks after a prompt; not saved.
        """
        family_of(self.config).write_block(self.config, block_size)
        self._overrides = tokens

    def keep_tokens(self) -> None:
        """Write the mask id and stop ids of a released vocabulary to the generation config."""
        if is_released(self.config, family_of(self.config)):
            spec, config = as_model(self).spec, self.generation_config
            vars(config).update(mask_token_id=spec.mask_id, eos_token_id=list(spec.stop_ids))
            self._declared = list(spec.stop_ids)
            self._overrides = replace(self._overrides, stop_ids=spec.stop_ids)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None = None, **options: Any
    ) -> tuple[DiffusionGenerationConfig, dict[str, Any]]:
        """Merge all that is stated into one configuration; return it and the other keywords.

        Raises:
            ValueError: `generation_config` is not a configuration, or a layer contradicts itself.
        """
        layers = [stated(self.generation_config)]
        aside = left_aside(self.generation_config)
        if generation_config is not None:
            if not isinstance(generation_config, GenerationConfig):
                raise ValueError(
                    "generation_config must be a DiffusionGenerationConfig, "
                    f"got {generation_config!r}"
                )
            layers.append(stated(generation_config))
            aside |= left_aside(generation_config)
        tell(aside)
        names = {*own(), *inherited()}
        layers.append({k: v for k, v in options.items() if k in names})
        config = DiffusionGenerationConfig()
        config.__dict__.update(merge(*layers))
        lifted = {k for k, v in options.items() if v is None and k in aside}
        return config, {k: v for k, v in options.items() if k not in names | lifted}

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        **where: Any,
    ) -> None:
        """Read `generation_config.json` and the block size, which a checkpoint's name may state.

        transformers calls this once the weights are loaded.

        Raises:
            ValueError: the file is corrupt, or the block size is invalid.
        """
        if pretrained_model_name_or_path is not None:
            self._origin = Origin.of(pretrained_model_name_or_path, where)
            family = family_of(self.config)
            # Kept in the configuration, as the network may be saved under any name.
            family.write_block(self.config, family.block_of(self.config, *self._origin.names()))
        if generation_config is not None:
            self.generation_config = DiffusionGenerationConfig.of(generation_config)
        elif self._origin is not None:
            options = self._origin.options(where.get("token"))
            if options is not None:
                self.generation_config = DiffusionGenerationConfig.from_dict(options)
        self._declared = ids(self.generation_config.eos_token_id)


@names_checked
def as_model(
    network: Any,
    tokenizer: Any = None,
    *,
    block_size: int | None = None,
    mask_id: int | None = None,
) -> Model:
    """Turn a network that transformers loaded into what `dlm.load` returns.

    Facts overridden in `dlm.load` stay so; those overridden here hold for the returned model only.

    Args:
        network: a network of dlm, from an Auto class or from a model of `dlm.load`.
        tokenizer: the model's tokenizer; by default the one beside the checkpoint.
        block_size: overrides the checkpoint's, tokens; for families with attention in blocks.
        mask_id: overrides the checkpoint's mask id.

    Raises:
        ValueError: the network is not one of dlm's with a vocabulary projection, its facts
            contradict each other, or the tokenizer cannot be read.
    """
    if not isinstance(network, DiffusionGenerationMixin) or not network.can_generate():
        raise ValueError(
            f"network must be one of ours with a vocabulary projection, got a "
            f"{type(network).__name__}: dlm.load takes what else there is"
        )
    if tokenizer is None:
        tokenizer = network.checkpoint_tokenizer()
    if block_size is None and network._origin is not None:
        # Loading has settled the size: the checkpoint's name no longer counts.
        written_size = family_of(network.config).written_block(network.config)
        block_size = network._overrides.block_size or written_size
    declared = stated(network.generation_config)
    written = ids(declared.get("eos_token_id"))
    told = written if network._declared is None else network._declared
    spec = resolve(
        network.config,
        told,
        tokenizer,
        network._overrides.mask_id if mask_id is None else mask_id,
        block_size=block_size,
        declared_mask=declared.get("mask_token_id"),
        stops=network._overrides.stop_ids,
    )
    spec = with_stops(spec, written, told)
    return Model(network, tokenizer, spec, leader=network._leader)


def tell(aside: Collection[str]) -> None:
    """Warn that keys of `generation_config.json` are ignored, once for the same keys."""
    if aside:
        # Logged by transformers' logger, whose verbosity users set.
        logging.get_logger("transformers").warning_once(
            f"generation_config.json holds {', '.join(sorted(aside))} for the code of the "
            "checkpoint, which is not run: left aside. A file whose options are those of dlm names "
            "a decoder"
        )


def output(sequences: Tensor, out: Generation) -> DiffusionGenerationOutput:
    """Build the output of a finished batch, on the device of the sequences."""
    device, order = sequences.device, None
    if out.order is not None:
        tokens = torch.tensor(out.tokens, device=device)
        padded = sequences[:, -tokens.shape[1] :] != tokens  # pad tokens in place of end of text
        order = torch.tensor(out.order, device=device).masked_fill(padded, -1)
    forwards = torch.tensor(out.forwards, device=device)
    return DiffusionGenerationOutput(
        sequences=sequences,
        forwards=forwards,
        tokens_per_forward=torch.tensor(out.decoded, device=device) / forwards,
        order=order,
        trajectory=out.trajectory,
        top_tokens=out.top_tokens,
    )
