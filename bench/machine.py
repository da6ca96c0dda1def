"""The machine, compiler and versions of a benchmark, without which its times mean nothing."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastsoftmax
import numpy as np

from .contenders import Contender


def describe(contenders: Sequence[Contender]) -> dict[str, Any]:
    config = fastsoftmax.show_config(mode="dicts")
    assert config is not None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": config["compiler"],
        "target": config["targets"]["in use"],
        "openmp": config["openmp"],
        "threads": config["threads"],
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{racer.name: racer.version() for racer in contenders if racer.name not in ("reference", "torch.compile")},
        },
    }


def sentence(machine: dict[str, Any]) -> str:
    """The machine and the compiler in one line."""
    threads = machine["threads"]
    return (
        f"{machine['cpu']}, {machine['system']}, {threads} thread{'s' if threads > 1 else ''}, "
        f"target {machine['target']}, {machine['compiler']}"
    )


def paragraph(machine: dict[str, Any]) -> str:
    """The machine, the versions and the date, as they stand in a written result."""
    return f"{sentence(machine)}; {versions(machine)}; {machine['date']}."


def versions(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            [part.strip() for part in line.split(":", 1)] for line in info.read_text().splitlines() if ":" in line
        )
        name = fields.get("model name", "")
        if "cpu family" in fields:
            # Virtual machines often hide the name of the model; family and model identify the microarchitecture.
            name += f" (family {fields['cpu family']}, model {fields['model']})"
        if name:
            return name
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    caches = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches
