"""Registration of our classes with the Auto classes of transformers.

`import dlm` must be fast and still let `AutoModel` load our families. Each registration therefore
waits for the transformers module that it needs: it is done at once if that module is already
imported, and otherwise right after its import.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from dlm.models.families import FAMILIES
from dlm.models.family import Family


def register_configs() -> None:
    """Register the configurations of our families with AutoConfig."""
    from transformers import AutoConfig

    for family in FAMILIES.values():
        if not family.opt_in:
            config = family.config_class()
            AutoConfig.register(config.model_type, config, exist_ok=True)


def register_tokenizers() -> None:
    """Register our replacement of Dream's remote tokenizer class with AutoTokenizer."""
    from transformers import AutoTokenizer

    from dlm.models.byte_level import DreamTokenizer, DreamTokenizerConfig

    AutoTokenizer.register(DreamTokenizerConfig, fast_tokenizer_class=DreamTokenizer, exist_ok=True)


def register_quantization() -> None:
    """Register W8A8, for loading in 8-bit integers and for checkpoints saved with them."""
    import_module("dlm.huggingface.quantization")


def register_networks(module: str) -> None:
    """Register a module's networks with AutoModel and its ForMaskedLM and ForCausalLM variants."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from dlm.models.conversions import register_conversion

    for family in FAMILIES.values():
        if family.opt_in or module_of(family) != module:
            continue
        network = family.network_class()
        for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
            auto.register(family.config_class(), network, exist_ok=True)
        register_conversion(network)
        if family.shift:
            # Trainer's label smoothing shifts labels only for networks that are listed here.
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(family.model_type, network.__name__)


def module_of(family: Family) -> str:
    """The module that defines the network of a family."""
    return family.network.partition(":")[0]


def load_networks(ended: str) -> None:
    """Import our networks once the Auto classes and everything that networks import are loaded.

    Some of these modules import the Auto classes themselves, so the Auto classes can be ready
    first.

    Args:
        ended: the module whose import has just ended, which importlib does not show yet.
    """
    if AUTO in sys.modules and all(whole(name) or name == ended for name in (*BASES, *MODULES)):
        for module in MODULES:
            import_module(module)


def whole(module: str) -> bool:
    """Whether a module is not in the middle of its import."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return not getattr(spec, "_initializing", False)


def after_network(module: str) -> None:
    """Register a module's networks, then import the others."""
    register_networks(module)
    load_networks(module)


AUTO = "transformers.models.auto.modeling_auto"
MODULES = tuple(dict.fromkeys(map(module_of, FAMILIES.values())))
BASES = (
    "dlm.models.attention",
    "dlm.models.transformer",
    "transformers.modeling_layers",
    "transformers.models.llama.modeling_llama",
)
"""Modules that networks import and that themselves import the Auto classes."""

STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.tokenization_auto": register_tokenizers,
    "transformers.quantizers.auto": register_quantization,
    **{module: partial(load_networks, module) for module in (AUTO, *BASES)},
    **{module: partial(after_network, module) for module in MODULES},
}
"""What to do after the import of each module."""


def register() -> None:
    """Take the steps of modules that are loaded, and those of others right after their import."""
    sys.meta_path.insert(0, _AfterImport())
    for module, step in STEPS.items():
        if module in sys.modules and whole(module):
            step()


class _AfterImport(MetaPathFinder):
    """An import finder that appends the step of a `STEPS` module to its real loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in STEPS:
            return None
        # This finder is skipped, not removed, because other threads may be importing.
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Tail(spec.loader, STEPS[name])
        return spec


class _Tail(Loader):
    """A loader that runs the module's own loader, then the step."""

    def __init__(self, loader: Loader, step: Callable[[], None]) -> None:
        self.loader = loader
        self.step = step

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.step()
