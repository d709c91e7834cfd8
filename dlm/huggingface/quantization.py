"""W8A8 as transformers knows quantization: a configuration, and what applies it while loading.

It is imported while transformers still is, so that what needs more of that waits for its call.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from dlm.kernels import int8

METHOD = "w8a8"


@register_quantization_config(METHOD)
class W8A8Config(QuantizationConfigMixin):
    """Weights and activations of linear layers and experts in 8-bit integers, on a CPU.

    Weights have a scale for each output channel, activations one for each token, found as they
    come: see `dlm.kernels.int8`. Nothing is calibrated, and a token's result hangs on no other.

    Args:
        modules_to_not_convert: patterns of names of layers that stay as they are, as in
            transformers; the vocabulary projection if absent. What is tied stays in any case.
    """

    def __init__(
        self, modules_to_not_convert: list[str] | None = None, quant_method: str = METHOD
    ) -> None:
        if quant_method != METHOD:
            raise ValueError(f"quant_method must be {METHOD!r}, got {quant_method!r}")
        names = modules_to_not_convert
        if names is not None and not (isinstance(names, list) and all_texts(names)):
            raise ValueError(f"modules_to_not_convert must be a list of names, got {names!r}")
        self.quant_method: Any = quant_method  # of transformers' own an enumeration
        self.modules_to_not_convert = modules_to_not_convert


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
            ValueError: weights go elsewhere than to a CPU, or they are not exact on this one.
        """
        where = options.get("device_map")
        devices = where.values() if isinstance(where, dict) else (where,)
        if any(each is not None and str(each) != "cpu" for each in devices):
            raise ValueError(f"W8A8Config is for a CPU, got device_map {where!r}")
        int8.steps()

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> None:
        from dlm.models.int8 import replace

        skipped = self.quantization_config.modules_to_not_convert
        if skipped is None:
            skipped = get_keys_to_not_convert(model)
        replace(model, skipped, rounded=self.pre_quantized)
        self.dtypes = {name: weight.dtype for name, weight in model.named_parameters()}

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        """Whether it is the weight of a layer that is to hold integers."""
        from dlm.models.int8 import Int8Layer

        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Layer) and name in module.shapes

    def get_quantize_ops(self) -> ConversionOps:
        """What rounds a weight."""
        return Rounding()

    def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
        from dlm.models.int8 import layers_of

        for name, weight in model.named_parameters():
            if weight.is_floating_point():  # early transformers 5 reads them as they were written
                weight.data = weight.data.to(self.dtypes[name])
        for path, layer in layers_of(model).items():
            if layer.matrices:  # of a network that was rounded in memory
                continue
            weights = {name: getattr(layer, name) for name in layer.shapes}
            for name, weight in weights.items():
                if weight.shape != layer.shapes[name]:  # transformers lets them have any
                    raise ValueError(
                        f"{path}.{name} must be {[*layer.shapes[name]]}, got {[*weight.shape]} in "
                        "the files"
                    )
            if all(weight.dtype == torch.int8 for weight in weights.values()):
                layer.pack()  # one that was not in the files is refused by whoever loads
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All weights, those of quantized layers as integers."""
        from dlm.models.int8 import layers_of

        state = dict(model.state_dict())
        for path, layer in layers_of(model).items():
            state |= {f"{path}.{name}": layer.integers(name) for name in layer.shapes}
        return state, {}

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
        from dlm.models.int8 import SCALE

        made = {}
        for name, found in input_dict.items():
            weight = found[0] if isinstance(found, list) else found
            made[name], made[name + SCALE] = int8.quantized(weight)
        return made


def quantize(network: Any, config: W8A8Config) -> None:
    """Round a network in memory, layer by layer, and leave it as if it had been loaded so.

    Args:
        network: of transformers, on a CPU.
        config: what to round.

    Raises:
        ValueError: this machine has no such products.
    """
    from dlm.models.int8 import layers_of

    quantizer = W8A8Quantizer(config, pre_quantized=False)
    quantizer.validate_environment()
    quantizer.preprocess_model(network)
    for layer in layers_of(network).values():
        layer.round()
    network.hf_quantizer = quantizer
    quantizer.postprocess_model(network)
