"""`model.generate` as users of transformers know it, over `dlm.generate`.

Shapes: B rows, P columns of prompt, N new tokens.
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
"""Stands for a tokenizer that was not looked for."""


@dataclass
class DiffusionGenerationOutput(ModelOutput):
    """What `generate` gives with `return_dict_in_generate=True`."""

    sequences: Tensor | None = None  # int64 [B, P + N], prompts in front as they came
    forwards: Tensor | None = None  # int64 [B], NFE of each row
    tokens_per_forward: Tensor | None = None  # float32 [B], positions committed / forwards
    order: Tensor | None = None  # int64 [B, N], see `dlm.Generation`; with return_order
    trajectory: list[Trajectory] | None = None  # one per row; with return_trajectory
    top_tokens: list[list[Likeliest]] | None = None  # likewise; with return_top_tokens


class DiffusionGenerationMixin:
    """Gives a network `generate`, with masked-diffusion decoding behind it."""

    generation_config_class: type[GenerationConfig] = DiffusionGenerationConfig
    generation_config: GenerationConfig
    config: Any
    device: Any
    dtype: Any
    output_modalities = ("text",)
    _origin: Origin | None = None  # where the weights were read, which may hold a tokenizer
    _tokenizer: Any = UNREAD  # read from there once it is needed; None where there is none
    _declared: list[int] | None = None  # stop ids read there, while `generation_config` may change
    _overrides: Overrides = Overrides()  # facts that hold instead of those read there
    _leader: Any = None  # a `dlm.parallel.leader.Leader` of processes that have other parts

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        check_move(self, fn)  # type: ignore[arg-type]
        return super()._apply(fn, recurse)  # type: ignore[misc]

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class projects hidden states to a vocabulary."""
        return hasattr(cls, "project")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        **options: Any,
    ) -> Any:
        """As in transformers, but of safetensors alone unless `use_safetensors` is False.

        Raises:
            ValueError: a folder whose weights are pickled.
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
        """As in torch, under released names too: Trainer so reads what `save_pretrained` wrote."""
        from dlm.models.conversions import received

        state = received(state_dict, self, strict=strict, assign=assign)
        return super().load_state_dict(state, strict=strict, assign=assign)  # type: ignore[misc]

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **options: Any
    ) -> None:
        """As in transformers, of whole weights or of an adapter that transformers loaded.

        Raises:
            ValueError: peft put an adapter into the layers, whose weights would bear names that
                loading does not know; or other processes have parts of the network.
        """
        if self._leader is not None:
            raise ValueError(
                "save_pretrained must get a whole network, and this one is cut over processes: "
                "load it without tensor_parallel_size"
            )
        if not getattr(self, "_hf_peft_config_loaded", False):
            refuse_adapted(self)
        family_of(self.config).settle(self.config)  # one that was read nowhere has a size, too
        super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str] | None = None,
        adapter_name: str | None = None,
        *others: Any,
        **options: Any,
    ) -> Any:
        """As in transformers, if the network has a place for all of the adapter.

        Raises:
            ValueError: it has none for some, whose layers may bear names of the released code. The
                network is as it was.
        """
        load = super().load_adapter  # type: ignore[misc]
        told = signature(load).bind(peft_model_id, adapter_name, *others, **options)
        adapters.refuse_misplaced(self, told.arguments)
        report = load(*told.args, **told.kwargs)
        adapters.refuse_partial(peft_model_id, report.unexpected_keys)  # what names could not tell
        return report

    def prepare_inputs_for_generation(self, input_ids: Tensor, **arguments: Any) -> dict[str, Any]:
        """Inputs of a forward in transformers' own loop: peft wants every network to have this.

        `generate` here is another loop, which does not call it.
        """
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

        Options come from the model's `generation_config`, `generation_config` and `options`, the
        last word counting. A row equals the same row generated alone with the same row key.

        Args:
            input_ids: integer [B, P], padded on either side; the begin-of-text token if absent.
                Also under the name that transformers has for it, `inputs`.
            attention_mask: [B, P], 0 at padding.
            generation_config: a `DiffusionGenerationConfig`, or one of transformers.
            streamer: is told of one row: `put` of what is final, `put_draft` if it has that, `end`.
            tokenizer: of the model, for facts such as stop ids that the configuration lacks; the
                one that lies where the network was loaded from by default.
            **options: as in `DiffusionGenerationConfig`; a decoder may also be an instance.

        Returns:
            int64 [B, P + N], prompts in front as they came, `pad_token_id` (end of text if absent)
            behind a stop token; or a `DiffusionGenerationOutput`.

        Raises:
            ValueError: a bad option or prompt, named in the message.
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
        """The network with the facts that decoding needs, some of which a call may replace.

        Raises:
            ValueError: they contradict each other, or the tokenizer cannot be read.
        """
        own_mask = stated(self.generation_config).get("mask_token_id")
        mask_id = asked.get("mask_token_id")
        model = as_model(self, tokenizer, mask_id=None if mask_id == own_mask else mask_id)
        written = ids(self.generation_config.eos_token_id)
        spec = with_stops(model.spec, ids(asked.get("eos_token_id")), written)
        # Without a tokenizer, as no text is asked for.
        return Model(self, None, spec, leader=self._leader)

    def checkpoint_tokenizer(self) -> Any:
        """The tokenizer that lies where the network was loaded from, read once; else None.

        Raises:
            ValueError: it cannot be read.
        """
        if self._origin is None:
            return None
        if self._tokenizer is UNREAD:
            self._tokenizer = self._origin.tokenizer(family_of(self.config).tokenizer)
        return self._tokenizer

    def override(self, block_size: int | None, tokens: Overrides) -> None:
        """Keep what a user says instead of the checkpoint, for every later call.

        Args:
            block_size: of blocks of attention, tokens; goes to the configuration.
            tokens: mask and stop ids, and the size of blocks behind a prompt; not saved.
        """
        family_of(self.config).write_block(self.config, block_size)
        self._overrides = tokens

    def keep_tokens(self) -> None:
        """Write the mask and the stop ids of a released vocabulary to the generation config."""
        if is_released(self.config, family_of(self.config)):
            spec, config = as_model(self).spec, self.generation_config
            vars(config).update(mask_token_id=spec.mask_id, eos_token_id=list(spec.stop_ids))
            self._declared = list(spec.stop_ids)
            self._overrides = replace(self._overrides, stop_ids=spec.stop_ids)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None = None, **options: Any
    ) -> tuple[DiffusionGenerationConfig, dict[str, Any]]:
        """Everything stated as one configuration, and the keywords that are no options.

        Raises:
            ValueError: something else than a configuration.
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
        """Take over what lies beside the weights; transformers calls this once they are loaded.

        That is `generation_config.json`, and the block size that the checkpoint's name may tell.

        Raises:
            ValueError: the file is corrupt, or the block size is none.
        """
        if pretrained_model_name_or_path is not None:
            self._origin = Origin.of(pretrained_model_name_or_path, where)
            family = family_of(self.config)
            # Kept from here on: what is saved may have any name.
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
    """A network that transformers loaded, as `dlm.load` gives it: for `dlm.generate` and the rest.

    What `dlm.load` was told instead of the checkpoint's facts still holds; what this is told holds
    for the model that it gives.

    Args:
        network: one of our classes, from an Auto class or of a model of `dlm.load`.
        tokenizer: of the model; by default the one that lies where the network was loaded from.
        block_size: overrides the checkpoint's, in families whose attention is in blocks, tokens.
        mask_id: overrides the checkpoint's mask id.

    Raises:
        ValueError: another network, facts that contradict each other, or a tokenizer that cannot
            be read.
    """
    if not isinstance(network, DiffusionGenerationMixin) or not network.can_generate():
        raise ValueError(
            f"network must be one of ours with a vocabulary projection, got a "
            f"{type(network).__name__}: dlm.load takes what else there is"
        )
    if tokenizer is None:
        tokenizer = network.checkpoint_tokenizer()
    if block_size is None and network._origin is not None:
        # Loading has settled it, whatever the name of the checkpoint says.
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
    """Warn, once for the same names, of what `generation_config.json` says in vain."""
    if aside:
        # Told by transformers' own logger, whose verbosity users set.
        logging.get_logger("transformers").warning_once(
            f"generation_config.json holds {', '.join(sorted(aside))} for the code of the "
            "checkpoint, which is not run: left aside. A file whose options are those of dlm names "
            "a decoder"
        )


def output(sequences: Tensor, out: Generation) -> DiffusionGenerationOutput:
    """A finished batch with its counts, on the device of the sequences."""
    device, order = sequences.device, None
    if out.order is not None:
        tokens = torch.tensor(out.tokens, device=device)
        padded = sequences[:, -tokens.shape[1] :] != tokens  # in the place of end of text
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
