"""The machine and the software versions of a benchmark run."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dlm._version import __version__


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions, commit and date, as JSON values."""
    return {
        "machine": machine(device),
        "versions": {
            "dlm": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": installed("triton"),
            "transformers": installed("transformers"),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "commit": commit(Path(__file__).resolve().parents[2]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores and threads, and the GPU if the benchmark ran on it."""
    found: dict[str, Any] = {
        "cpu": processor(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"gpu": facts.name, "gpu_bytes": facts.total_memory}
    return found


def processor(table: Path) -> str:
    """Model name of the CPU; the architecture if Linux does not report it."""
    if table.is_file():
        for line in table.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(root: Path) -> str | None:
    """HEAD of a checkout; None outside of one. Uncommitted changes are not detected."""
    folder = root / ".git"
    if folder.is_file():  # a worktree: the file names its git folder
        folder = root / folder.read_text().removeprefix("gitdir:").strip()
    if not (folder / "HEAD").is_file():
        return None
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    shared = folder / "commondir"
    common = folder / shared.read_text().strip() if shared.is_file() else folder
    if (common / name).is_file():
        return (common / name).read_text().strip()
    packed = common / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)
