"""Registration of our classes with the Auto classes of transformers.

`import dlm` must stay light and yet make `AutoModel` load our families. Both hold because
registration waits for the module it registers with: at once where transformers has loaded it
already, else right after its import.
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
    """Let AutoConfig read the configurations of our families."""
    from transformers import AutoConfig

    for family in FAMILIES.values():
        if not family.opt_in:
            config = family.config_class()
            AutoConfig.register(config.model_type, config, exist_ok=True)


def register_tokenizers() -> None:
    """Let AutoTokenizer find our class under the name of one that lies beside checkpoints."""
    from transformers import AutoTokenizer

    from dlm.models.byte_level import DreamTokenizer, DreamTokenizerConfig

    AutoTokenizer.register(DreamTokenizerConfig, fast_tokenizer_class=DreamTokenizer, exist_ok=True)


def register_quantization() -> None:
    """Let networks be loaded in 8-bit integers, also where a checkpoint says that they are."""
    import_module("dlm.huggingface.quantization")


def register_networks(module: str) -> None:
    """Let AutoModel, AutoModelForMaskedLM and AutoModelForCausalLM build a module's networks."""
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
            # Trainer's label smoothing moves labels for networks that are named here, and no other.
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(family.model_type, network.__name__)


def module_of(family: Family) -> str:
    """Where the network of a family is."""
    return family.network.partition(":")[0]


def load_networks(ended: str) -> None:
    """Import our networks, once the Auto classes and all that networks import are whole.

    Some of that imports the Auto classes itself, so that these may be ready first. `ended` is the
    module whose import has just come to its end, which importlib does not know yet.
    """
    if AUTO in sys.modules and all(whole(name) or name == ended for name in (*BASES, *MODULES)):
        for module in MODULES:
            import_module(module)


def whole(module: str) -> bool:
    """Whether the import of a module has not begun, or has ended."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return not getattr(spec, "_initializing", False)


def after_network(module: str) -> None:
    """Register a module's networks, then take care of the others."""
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
"""What networks import, and what itself imports the Auto classes."""

STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.tokenization_auto": register_tokenizers,
    "transformers.quantizers.auto": register_quantization,
    **{module: partial(load_networks, module) for module in (AUTO, *BASES)},
    **{module: partial(after_network, module) for module in MODULES},
}
"""What to do after the import of which module."""


def register() -> None:
    """Take every step whose module is loaded now, and the others right after their import."""
    sys.meta_path.insert(0, _AfterImport())
    for module, step in STEPS.items():
        if module in sys.modules and whole(module):
            step()


class _AfterImport(MetaPathFinder):
    """Finds nothing itself: hands the real spec of a `STEPS` module on, with a longer tail."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in STEPS:
            return None
        # It stays in its place meanwhile: other threads import, too.
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Tail(spec.loader, STEPS[name])
        return spec


class _Tail(Loader):
    """The module's own loader, then the registration."""

    def __init__(self, loader: Loader, step: Callable[[], None]) -> None:
        self.loader = loader
        self.step = step

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.step()
