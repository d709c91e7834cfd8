"""Registration of our classes with the Auto classes of transformers.

`import dlm` must stay light and yet make `AutoModel` load our families. Both hold because
registration waits for the module it registers with: at once where transformers has loaded it
already, else right after its import.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register_configs() -> None:
    """Let AutoConfig read the configurations of our families."""
    from transformers import AutoConfig

    from dlm.models.configs import LladaConfig

    AutoConfig.register("llada", LladaConfig, exist_ok=True)


def register_networks() -> None:
    """Let AutoModel, AutoModelForMaskedLM and AutoModelForCausalLM build our networks."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    from dlm.models.configs import LladaConfig
    from dlm.models.llada import LLaDAModelLM, register_conversion

    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        auto.register(LladaConfig, LLaDAModelLM, exist_ok=True)
    register_conversion()


def load_networks() -> None:
    """Import our networks, unless it is their import that brought the Auto classes in."""
    import_module("dlm.models.llada")


STEPS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.modeling_auto": load_networks,
    "dlm.models.llada": register_networks,
}
"""What to do after the import of which module."""


def register() -> None:
    """Take every step whose module is loaded now, and the others right after their import."""
    sys.meta_path.insert(0, _AfterImport())
    for module, step in STEPS.items():
        if module in sys.modules:
            step()


class _AfterImport(MetaPathFinder):
    """Finds nothing itself: hands the real spec of a `STEPS` module on, with a longer tail."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in STEPS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
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
