"""W8A8 as transformers knows quantization: a configuration, and what applies it while loading.

It is imported while transformers still is, so that what needs more of that waits for its call.
"""

from typing import Any, Final

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from dlm.kernels import int8
from dlm.options import known

METHOD: Final = "w8a8"
STRATEGIES: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that transformers turns into places."""
PLACES: Final = frozenset({"cpu", "cuda", "auto"})
"""Types of devices that multiply integers, and any of these strategies."""


@register_quantization_config(METHOD)
class W8A8Config(QuantizationConfigMixin):
    """Weights and activations of linear layers and experts in 8-bit integers.

    Weights have a scale for each output channel, activations one for each token, found as they
    come: see `dlm.kernels.int8`. Nothing is calibrated, and a token's result hangs on no other.

    Args:
        modules_to_not_convert: patterns of names of layers that stay as they are, as in
            transformers, such as "q_proj"; the vocabulary projection alone if absent, which a list
            has to name as well. What is tied stays in any case.

    Raises:
        ValueError: no list of names; when a network is loaded, a pattern that stands for no layer.
    """

    def __init__(
        self,
        modules_to_not_convert: list[str] | None = None,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        for name in others:  # of a file, whose keys come here one by one
            known("option of W8A8Config", name, ("modules_to_not_convert", "quant_method"))
        if quant_method != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {quant_method!r}")
        names = modules_to_not_convert
        if names is not None and not (isinstance(names, list) and all_texts(names)):
            raise ValueError(f"modules_to_not_convert must be a list of names, got {names!r}")
        self.quant_method: Any = quant_method  # of transformers' own an enumeration
        self.modules_to_not_convert = modules_to_not_convert


def place_of(device: Any) -> str:
    """The type of a device as a device map names it; "auto" of a strategy."""
    if isinstance(device, int):
        return "cuda"
    name = "cpu" if device is None else str(device).partition(":")[0]
    return "auto" if name in STRATEGIES else name


def all_texts(names: list[Any]) -> bool:
    """Whether all are texts that say something."""
    return all(isinstance(name, str) and name for name in names)


@register_quantizer(METHOD)
class W8A8Quantizer(HfQuantizer):
    """Puts layers of integers in the place of others, and rounds each weight as it is read."""

    quantization_config: W8A8Config

    def validate_environment(self, *args: Any, **options: Any) -> None:
        """Refuse what has no such products.

        Raises:
            ValueError: weights go elsewhere than to a CPU or to GPUs, or products are not exact on
                this CPU.
        """
        where = options.get("device_map")
        devices = where.values() if isinstance(where, dict) else (where,)
        kinds = {place_of(each) for each in devices}
        if len(kinds) != 1 or not kinds <= PLACES:
            named = ", ".join(sorted({str(each) for each in devices}))
            raise ValueError(f"W8A8Config is for a CPU or for GPUs, got weights on {named}")
        self.place = kinds.pop()
        if self.place == "cpu":
            int8.steps()

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        from dlm.models.int8 import check_place, check_skipped, chosen, replace

        skipped = self.quantization_config.modules_to_not_convert
        check_skipped(model, skipped or ())
        names = chosen(model, get_keys_to_not_convert(model) if skipped is None else skipped)
        for name in names:
            check_place(name, model.get_submodule(name), self.place)
        replace(model, names)
        self.dtypes = {name: weight.dtype for name, weight in model.named_parameters()}

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Whether it is the weight of a layer that is to hold integers."""
        from dlm.models.int8 import Int8Layer

        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Layer) and name in module.shapes

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        """Bytes of a value once it is rounded, by which transformers plans what goes where."""
        return 1 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        """What rounds a weight."""
        return Rounding()

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        from dlm.models.int8 import layers_of

        model.requires_grad_(False)  # so that a forward needs no `torch.no_grad`
        if self.pre_quantized:
            self.cast(model)
        layers = layers_of(model)
        if len({layer.place for layer in layers.values()}) > 1:
            raise ValueError("W8A8Config is for a CPU or for GPUs, got weights on both")
        for path, layer in layers.items():
            if layer.matrices:  # of a network that was rounded in memory
                continue
            for name in layer.shapes:
                self.check(f"{path}.{name}", layer, name)
            layer.pack()
        return model

    def cast(self, model: Any) -> None:
        """Give weights their dtype, which early transformers 5 reads as they were written."""
        wide = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not wide.intersection(name.split(".")):
                weight.data = weight.data.to(self.dtypes[name])

    def check(self, path: str, layer: Any, name: str) -> None:
        """Refuse a weight that transformers lets pass, as it is to be rounded.

        Raises:
            ValueError: it was not in the files, has another shape, lies where it cannot be
                multiplied, or is not of the dtype that it should be of; or its scales are not.
        """
        from dlm.models.int8 import check_place, scale_of

        weight, scale = getattr(layer, name), getattr(layer, scale_of(name))
        check_place(path, layer, weight.device.type)
        if weight.shape != layer.shapes[name]:
            raise ValueError(
                f"{path} must be {[*layer.shapes[name]]}, got {[*weight.shape]} in the files"
            )
        if weight.dtype != torch.int8 and not self.pre_quantized:  # a new head, for example
            raise ValueError(
                f"{path} is not in the files: name it in modules_to_not_convert if it is to be new"
            )
        if weight.dtype != torch.int8:
            raise ValueError(f"{path} must be int8 in the files, got {weight.dtype}, or none there")
        if scale.dtype != torch.float32:
            raise ValueError(f"scales of {path} must be float32 in the files, got {scale.dtype}")

    def is_serializable(self) -> bool:
        """Whether it can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained."""
        return False


class Rounding(ConversionOps):
    """Rounds a weight to integers."""

    def convert(self, input_dict: dict[str, Any], **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """A weight's integers and scales, by their names."""
        from dlm.models.int8 import scale_of

        made = {}
        for name, found in input_dict.items():
            weight = found[0] if isinstance(found, list) else found
            path, _, own = name.rpartition(".")
            made[name], made[f"{path}.{scale_of(own)}"] = int8.quantized(weight)
        return made


def quantize(network: Any, config: W8A8Config) -> None:
    """Round a network in memory, layer by layer, and leave it as if it had been loaded so.

    Args:
        network: of transformers, on a CPU or on GPUs.
        config: what to round.

    Raises:
        ValueError: this machine has no such products, weights lie elsewhere than on the CPU or on
            GPUs, or are integers already.
    """
    from dlm.models.int8 import layers_of, refuse_quantized

    refuse_quantized(network, "quantize")
    places = {name: weight.device for name, weight in network.named_parameters()}
    quantizer = W8A8Quantizer(config, pre_quantized=False)
    quantizer.validate_environment(device_map=places)
    quantizer.preprocess_model(network)
    for layer in layers_of(network).values():
        layer.round()
    network.hf_quantizer = quantizer
    quantizer.postprocess_model(network)


def asked(config: Any, given: Any) -> Any:
    """The quantization to load a checkpoint with; None leaves it to the checkpoint.

    Args:
        config: of the network.
        given: what was asked for.

    Raises:
        ValueError: weights were rounded already, otherwise than is asked for.
    """
    written = getattr(config, "quantization_config", None)
    if not isinstance(given, W8A8Config) or written is None:
        return given
    written = written if isinstance(written, dict) else written.to_dict()
    if written != given.to_dict():
        raise ValueError(
            f"quantization_config must be left away, or be that of the checkpoint, {written}, "
            f"got {given.to_dict()}"
        )
    return None
