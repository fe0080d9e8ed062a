# MIT licence (see LICENSE)
"""What inventories say of container images. Pure but for a look at the controller's files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import known_bad, runtime
from ansible_collections.modelhost.serving.plugins.module_utils.problems import problem

#: `repository@sha256:…`, or the id of an image alone.
PINNED = re.compile(r"(?:[^\s@]+@)?sha256:[0-9a-f]{64}")
CHECKSUM = re.compile(r"[0-9a-fA-F]{64}")


def image_problems(host: str, role: str, variables: Any) -> list[dict[str, Any]]:
    """`<role>_image`, `<role>_image_archive` and its checksum, whether they are used or not."""
    found = []
    image, archive = str(variables.get(f"{role}_image") or ""), str(variables.get(f"{role}_image_archive") or "")
    checksum = str(variables.get(f"{role}_image_archive_sha256") or "")
    bad = known_bad.image_problems(host, f"{role}_image", image)
    found += bad
    if image and not bad and not PINNED.fullmatch(image):
        why = "a tag may mean another image tomorrow; only a digest or an image's id says which one"
        bare = image.split("@")[0].rpartition(":")[0] if ":" in image.split("/")[-1] else image.split("@")[0]
        fix = f"set {bare}@sha256:…; `docker buildx imagetools inspect {image.split('@')[0]}` shows the digest"
        found.append(problem(host, f"{role}_image", image, why, fix))
    if image and archive:
        why, fix = f"{role}_image_archive is set as well, and one of them would be ignored", "leave one of them out"
        found.append(problem(host, f"{role}_image", image, why, fix))
    if archive and not CHECKSUM.fullmatch(checksum):
        why = "an archive is loaded only if its SHA-256 is known, and this is not 64 hex digits"
        fix = f"set what `sha256sum {archive}` prints"
        found.append(problem(host, f"{role}_image_archive_sha256", checksum or None, why, fix))
    remote = str(variables.get(f"{role}_image_archive_remote_src") or "").lower() in ("true", "yes", "1")
    # A bundle holds what the archive held where it was built.
    if archive and not remote and not variables.get("bundle") and not Path(archive).is_file():
        why = "the controller has no such file"
        fix = "name the archive that `docker save` wrote, or set "
        fix += f"{role}_image_archive_remote_src if it lies on the host"
        found.append(problem(host, f"{role}_image_archive", archive, why, fix))
    return found


def unpinned_problems(host: str, role: str, variables: Any, pins: list[str]) -> list[dict[str, Any]]:
    """A container without an image that anything pins. pins: those of versions.yml that it may be."""
    if variables.get(f"{role}_image") or variables.get(f"{role}_image_archive"):
        return []
    if not pins or any("unverified" not in pin for pin in pins):
        return []
    what = pins[0].split("@")[0]
    why = f"versions.yml has no digest yet for the image of a container ({what})"
    fix = (
        "run `./run pins --write` on a machine that reaches the registry; or set "
        f"{role}_image: {what}@sha256:…; or set {role}_image_archive; or set {role}_runtime: venv"
    )
    return [problem(host, f"{role}_runtime", "docker", why, fix)]


def problems(
    host: str, variables: Any, groups: dict[str, list[str]], pins: dict[str, str], probe: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """All about a host's images. pins: `image_cpu`, `image_cuda`, `image_litellm`. Without a probe `auto` is open."""
    found = []
    facts = probe or {}
    if host in groups.get("engines", []) and variables.get("vllm_state") != "absent":
        found += image_problems(host, "vllm", variables)
        if "docker" in runtime.of_engines(facts, variables).values():
            variant = str(variables.get("vllm_variant") or "auto")
            if variant == "auto" and probe:
                variant = "cuda" if probe.get("nvidia_driver") or probe.get("nvidia_devices") else "cpu"
            names = ["image_cpu", "image_cuda"] if variant == "auto" else [f"image_{variant}"]
            found += unpinned_problems(host, "vllm", variables, [pins[name] for name in names if name in pins])
    if host in groups.get("gateways", []) and variables.get("litellm_state") != "absent":
        found += image_problems(host, "litellm", variables)
        if runtime.of_gateway(facts, variables) == "docker":
            found += unpinned_problems(host, "litellm", variables, [pins[n] for n in ("image_litellm",) if n in pins])
    return found
