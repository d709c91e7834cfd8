"""W8A8 quantization in transformers: its configuration, and the quantizer that loading applies.

The module is imported while transformers itself is still being imported. Functions therefore
import what needs more of transformers.
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
"""Device maps by name, which transformers resolves to devices."""
PLACES: Final = frozenset({"cpu", "cuda", "auto"})
"""Device types that can multiply integers; "auto" stands for any of these strategies."""


@register_quantization_config(METHOD)
class W8A8Config(QuantizationConfigMixin):
    """Quantizes weights and activations of linear layers and experts to 8-bit integers.

    Weights have one scale for each output channel. Activations have one for each token, computed
    dynamically: see `dlm.kernels.int8`. There is no calibration, and a token's result depends on no
    other token.

    Args:
        modules_to_not_convert: name patterns of layers that stay as they are, as in transformers,
            such as "q_proj". By default only the vocabulary projection stays; a list has to name it
            as well. Tied layers always stay.

    Raises:
        ValueError: not a list of names; when a network is loaded, a pattern matches no layer.
    """

    def __init__(
        self,
        modules_to_not_convert: list[str] | None = None,
        quant_method: str = METHOD,
        **others: Any,
    ) -> None:
        for name in others:  # from a file, whose keys are passed as keywords
            known("option of W8A8Config", name, ("modules_to_not_convert", "quant_method"))
        if quant_method != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {quant_method!r}")
        names = modules_to_not_convert
        if names is not None and not (isinstance(names, list) and all_texts(names)):
            raise ValueError(f"modules_to_not_convert must be a list of names, got {names!r}")
        self.quant_method: Any = quant_method  # an enumeration for transformers' own methods
        self.modules_to_not_convert = modules_to_not_convert


def place_of(device: Any) -> str:
    """The type of a device, as a device map names it; "auto" for a strategy."""
    if isinstance(device, int):
        return "cuda"
    name = "cpu" if device is None else str(device).partition(":")[0]
    return "auto" if name in STRATEGIES else name


def all_texts(names: list[Any]) -> bool:
    """Whether all are non-empty strings."""
    return all(isinstance(name, str) and name for name in names)


@register_quantizer(METHOD)
class W8A8Quantizer(HfQuantizer):
    """Replaces layers by layers of integers, and quantizes each weight as it is read."""

    quantization_config: W8A8Config

    def validate_environment(self, *args: Any, **options: Any) -> None:
        """Refuse devices that do not support these products.

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
        """Whether this is the weight of a layer that is to hold integers."""
        from dlm.models.int8 import Int8Layer

        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Layer) and name in module.shapes

    def param_element_size(self, model: Any, param_name: str, param: Any) -> float:
        """Bytes per value once quantized, from which transformers plans the placement."""
        return 1 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        """The operation that quantizes a weight."""
        return Rounding()

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        from dlm.models.int8 import layers_of

        model.requires_grad_(False)  # so that a forward pass needs no `torch.no_grad`
        if self.pre_quantized:
            self.cast(model)
        layers = layers_of(model)
        if len({layer.place for layer in layers.values()}) > 1:
            raise ValueError("W8A8Config is for a CPU or for GPUs, got weights on both")
        for path, layer in layers.items():
            if layer.matrices:  # the network was quantized in memory
                continue
            for name in layer.shapes:
                self.check(f"{path}.{name}", layer, name)
            layer.pack()
        return model

    def cast(self, model: Any) -> None:
        """Cast weights to their dtype: early transformers 5 keeps the dtype of the file."""
        wide = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
        for name, weight in model.named_parameters():
            if weight.is_floating_point() and not wide.intersection(name.split(".")):
                weight.data = weight.data.to(self.dtypes[name])

    def check(self, path: str, layer: Any, name: str) -> None:
        """Refuse a quantized weight that transformers accepts but that cannot be used.

        Raises:
            ValueError: the weight was not in the files, has another shape, is on a device where it
                cannot be multiplied, or has another dtype than it should; or its scales have.
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
        """Whether the network can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the network can be trained."""
        return False


class Rounding(ConversionOps):
    """Quantizes a weight."""

    def convert(self, input_dict: dict[str, Any], **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """The integers and scales of each weight, by name."""
        from dlm.models.int8 import scale_of

        made = {}
        for name, found in input_dict.items():
            weight = found[0] if isinstance(found, list) else found
            path, _, own = name.rpartition(".")
            made[name], made[f"{path}.{scale_of(own)}"] = int8.quantized(weight)
        return made


def quantize(network: Any, config: W8A8Config) -> None:
    """Quantize a network in memory, layer by layer, as if it had been loaded quantized.

    Args:
        network: a network of transformers, on a CPU or on GPUs.
        config: what to quantize.

    Raises:
        ValueError: this machine does not support the products, or weights are on other devices or
            already integers.
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
        config: the network's configuration.
        given: the quantization that was asked for.

    Raises:
        ValueError: the checkpoint is already quantized, in another way than asked for.
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
