"""Fixtures that every kind of test shares.

Shapes: B rows, L canvas, C contexts, V vocabulary.
"""

import runpy
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor

import dlm
from dlm.cache import View
from dlm.decoders.artefact import ModelFacts, ScheduleArtefact
from dlm.decoders.resample import fractions
from dlm.models.families import FAMILIES
from dlm.models.model import Model
from dlm.models.spec import ModelSpec

torch.set_num_threads(1)
torch.manual_seed(0)

VOCAB = 8
MASK = 7
EOS = 6
EOT = 5


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave most cases of tests marked `one_in` to the slow ones, and begin with what is `long`."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    many: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("one_in") is not None:
            many[item.nodeid.partition("[")[0]].append(item)
    for cases in many.values():
        # Every n-th in the order of the parameters would leave out some of their values for good.
        cases.sort(key=lambda item: crc32(item.nodeid.encode()))
        marker = cases[0].get_closest_marker("one_in")
        assert marker is not None
        for item in cases[-(-len(cases) // marker.args[0]) :]:
            item.add_marker(pytest.mark.slow)


class Nothing(torch.nn.Module):
    """A network that nobody calls."""

    config = SimpleNamespace(_attn_implementation="sdpa")


@dataclass(frozen=True, slots=True)
class TableModel(Model):
    """A mask predictor that looks its logits up by a hash of the row's real tokens.

    Integer arithmetic, so that a row's logits are the same bits in any batch.
    """

    table: Tensor  # float [C, V]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def states(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        cache: View | None = None,
        *,
        attend: Tensor | None = None,
    ) -> Tensor:
        weight = (positions + 3) * (positions + 7) * (tokens + 1)
        if valid is not None:
            weight = weight * valid
        total = weight.sum(-1, keepdim=True)
        if attend is not None:
            total = (attend * weight[:, None]).sum(-1)
        context = total * 2654435761 + positions * 40503
        return ((context >> 7) % self.table.shape[0])[..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table[hidden[..., 0]]


def table_model(table: Tensor, **facts: Any) -> TableModel:
    rows = table.shape[1]
    spec = {
        "family": "table",
        "vocab_size": rows,
        "mask_id": rows - 1,
        "eos_id": rows - 2,
        "stop_ids": (rows - 2, rows - 3),
        "max_length": 512,
        "unused": (rows, rows),
    } | facts
    return TableModel(Nothing(), None, ModelSpec(**spec), table)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def toy() -> Callable[..., Model]:
    """Makes a toy model of V = 8 (mask 7, end of text 6, end of turn 5) from a seed or a table."""

    def make(source: int | Tensor = 0, scale: float = 2.0, **facts: Any) -> Model:
        if isinstance(source, Tensor):
            return table_model(source, **facts)
        generator = torch.Generator().manual_seed(source)
        return table_model(scale * torch.randn(97, VOCAB, generator=generator), **facts)

    return make


@pytest.fixture(scope="session")
def decoding() -> Callable[[str], dict[str, Any]]:
    """Options that decode by a named decoder in few forwards: remdm loops 3 times, not 32."""

    def find(name: str) -> dict[str, Any]:
        options = {"loop_steps": 3} if name == "remdm" else {}
        return {"decoder": name, "decoder_options": options}

    return find


@pytest.fixture
def schedule(tmp_path: Path) -> Callable[[Model, str], dict[str, Any]]:
    """Options of a decoder that plays a schedule of two steps, of a scope, made for a model."""

    def made(model: Model, scope: str) -> dict[str, Any]:
        path = tmp_path / "schedule.safetensors"
        facts = ModelFacts(vocab=model.spec.vocab_size, mask_id=model.spec.mask_id)
        ScheduleArtefact(
            kind="lsd",
            model=facts,
            gen_length=4,
            block_length=4,
            steps=2,
            scope=scope,
            reveal=(2, 2),
            cum_fraction=fractions((2, 2)),
            logit_scale=(1.0, 1.0),
        ).save(path)
        return {"decoder": "schedule", "decoder_options": {"path": str(path)}}

    return made


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests run in the background, whose shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """A small random LLaDA checkpoint written by the official code."""
    return Path(__file__).parent / "golden" / "tiny-llada"


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Model:
    return dlm.load(golden_folder, dtype="float32")


@pytest.fixture(scope="session")
def stands_alone() -> None:
    """Skips where a token sees in its bits what stands beside it, whatever `dlm` does."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    generator = torch.Generator().manual_seed(0)
    x, weight, large = (torch.randn(size, 256, generator=generator) for size in (96, 24, 512))
    operation: Any = torch.ops.mkldnn._linear_pointwise
    ways: list[tuple[Callable[[Tensor], Tensor], range]] = [
        (lambda x: torch.nn.functional.linear(x, weight), range(4, 96, 4)),
        (lambda x: operation(x, large, None, "swish", [], ""), range(2, 96)),
    ]
    for way, counts in ways:
        if all(torch.equal(way(x[:count]), way(x)[:count]) for count in counts):
            continue
        pytest.skip("the products of this torch hang on what else is multiplied")


@pytest.fixture(scope="session")
def family_cases() -> SimpleNamespace:
    """What `family_cases.py` defines: how to write a small checkpoint of a family."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "family_cases.py")))


@pytest.fixture(scope="session")
def asks() -> Callable[[str], dict[str, str]]:
    """What has to be said of a family to load it: its name, where its files are another's."""
    named = {name for name, family in FAMILIES.items() if family.opt_in}
    return lambda name: {"family": name} if name in named else {}


@pytest.fixture(scope="session")
def written(
    family_cases: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a family's small checkpoint: a random one, else that of the official code."""
    kept: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in (*family_cases.CASES, "encoder"):
            return Path(__file__).parent / "golden" / "families" / name.replace("-", "_")
        if name not in kept:
            # Not the name of any release, which would say something about the block size.
            kept[name] = tmp_path_factory.mktemp("checkpoint") / "model"
            if name == "encoder":
                here = Path(__file__).parent
                runpy.run_path(str(here / "encoder_checkpoint.py"))["write"](kept[name])
            else:
                family_cases.CASES[name].write(kept[name])
        return kept[name]

    return find
