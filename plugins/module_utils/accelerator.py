# MIT licence (see LICENSE)
"""What the accelerator's provider `cpu` gives engines: environment and flags. Pure; docs/cpu-tuning.md has the reasons.

GPUs need nothing of the kind.
"""

from __future__ import annotations

from typing import Any

#: The role's defaults, for hosts whose inventory says nothing (a test holds them against each other).
PRELOAD = ("tcmalloc", "iomp")
HUGE_PAGES = "madvise"

#: Folders of Debian's and Ubuntu's libraries by architecture.
LIBRARIES = {"x86_64": "/usr/lib/x86_64-linux-gnu", "aarch64": "/usr/lib/aarch64-linux-gnu"}
#: Where the lock of vLLM's CPU build puts Intel's OpenMP, which exists for x86-64 alone.
IOMP = "/opt/modelhost/vllm/current/lib/libiomp5.so"


def provider(probe: dict[str, Any], variables: Any) -> str:
    """Whether the engines of a host are the provider's: `cpu`, or nothing."""
    if variables.get("accelerator_state", "present") != "present":
        return ""
    if variables.get("accelerator_provider", "auto") not in ("auto", "cpu"):
        return ""
    variant = variables.get("vllm_variant") or "auto"
    if variant == "auto":
        variant = "cuda" if probe.get("nvidia_driver") else "cpu"
    return "cpu" if variant == "cpu" else ""


def preload(architecture: str, wanted: Any) -> list[str]:
    """Libraries that an engine of a virtual environment loads before all others."""
    found = []
    if "tcmalloc" in wanted and architecture in LIBRARIES:
        found.append(f"{LIBRARIES[architecture]}/libtcmalloc_minimal.so.4")
    if "iomp" in wanted and architecture == "x86_64":
        found.append(IOMP)
    return found


def environment(probe: dict[str, Any], variables: Any, runtime: str = "venv") -> dict[str, str]:
    """Environment of a host's engines. variables: the host's; what is not set there has the role's default."""
    if not provider(probe, variables):
        return {}
    found = {}
    libraries = preload(probe.get("architecture") or "x86_64", variables.get("accelerator_cpu_preload", PRELOAD))
    # An image brings its own, under paths of its own.
    if libraries and runtime == "venv":
        found["LD_PRELOAD"] = ":".join(libraries)
    if variables.get("accelerator_cpu_transparent_hugepages", HUGE_PAGES) != "never":
        # PyTorch then asks for huge pages for all that is large, where the host hands them out on demand.
        found["THP_MEM_ALLOC_ENABLE"] = "1"
    return found
