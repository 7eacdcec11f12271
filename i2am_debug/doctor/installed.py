"""Versions and devices: what an issue needs to name first."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator

from .findings import Diagnosis

SECTION = "installed"
_NAME = "i2am-debug"
_NEEDED = ("torch", "diffusers", "accelerate", "tensorboard", "numpy", "scipy", "safetensors", "pillow", "matplotlib")
_OPTIONAL = (
    "transformers",
    "peft",
    "lightning",
    "pytorch-lightning",
    "wandb",
    "xformers",
    "flash-attn",
    "deepspeed",
    "triton",
)
_COMPILERS = ("cc", "gcc", "clang")


def installed(diagnosis: Diagnosis) -> None:
    """Adds versions and devices, and what is missing or too old."""
    import torch

    diagnosis.add(SECTION, _NAME, version(_NAME) or "not installed, run from its source")
    diagnosis.add(SECTION, "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    needed = {name: version(name) for name in _NEEDED}
    needed["torch"] = torch.__version__  # with what it was built for
    diagnosis.add(SECTION, "needed", ", ".join(f"{name} {found or 'missing'}" for name, found in needed.items()))
    optional = {name: version(name) for name in _OPTIONAL}
    there = [f"{name} {found}" for name, found in optional.items() if found is not None]
    diagnosis.add(SECTION, "beside them", ", ".join(there) or "none")
    absent = [name for name, found in optional.items() if found is None]
    diagnosis.add(SECTION, "not installed", ", ".join(absent) or "none")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""  # Windows has none
    diagnosis.add(SECTION, "CPU", f"{os.cpu_count()} cores{load}, torch uses {torch.get_num_threads()} threads")
    diagnosis.add(SECTION, "accelerators", "; ".join(_accelerators()) or "none")
    for name, wanted, found in _unmet():
        diagnosis.find(f"{name} is {found or 'missing'}, {_NAME} needs {wanted}", f'pip install "{name}{wanted}"')
    if optional["transformers"] is None:
        diagnosis.find(
            "transformers is not installed: without it diffusers has no pipeline with a text or image encoder",
            "pip install transformers",
        )
    if torch.cuda.is_available() and (missing := _missing_for_kernels()):
        diagnosis.find(
            f"no {missing}: the kernels that look at attention on CUDA can't be made, and looking takes several times as long",
            "pip install triton"
            if missing == "Triton"
            else "a C compiler on the path, or named by CC (on Debian: apt install gcc)",
        )


def version(name: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing_for_kernels() -> str | None:
    """What Triton's kernels need and this machine lacks."""
    if version("triton") is None:
        return "Triton"
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    return None if compiler else "C compiler"


def _accelerators() -> list[str]:
    import torch

    found = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            has = torch.cuda.get_device_properties(number)
            found.append(f"{has.name}, {has.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        found.append("MPS")
    return found


def _unmet() -> Iterator[tuple[str, str, str | None]]:
    """Name, versions needed and version found of each of this package's requirements that what is installed does not meet."""
    from packaging.requirements import Requirement  # comes with accelerate

    try:
        written = importlib.metadata.requires(_NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, written):
        found = version(requirement.name)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and (found is None or not requirement.specifier.contains(found, prereleases=True)):
            yield requirement.name, str(requirement.specifier), found
