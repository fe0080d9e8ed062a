# MIT licence (see LICENSE)
"""Filters of the role docker_engine."""

from __future__ import annotations

from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import docker_engine_validation, preflight_docker
from ansible_collections.modelhost.serving.plugins.module_utils.problems import report


def docker_engine_plan(docker: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Where the engine comes from, and which packages are to be there."""
    return preflight_docker.plan(docker, settings)


def docker_engine_problems(variables: dict[str, Any], host: str, docker: dict[str, Any] | None = None) -> str:
    """What is wrong with the variables, or with what is there of Docker (`docker`), as text; nothing, if nothing is."""
    if docker is None:
        return report(docker_engine_validation.problems(host, variables))
    found = preflight_docker.problems(host, {"docker": docker}, variables)
    return report([item for item in found if item["level"] == "error"])


class FilterModule:
    """`modelhost.serving.docker_engine_plan`, `modelhost.serving.docker_engine_problems`."""

    def filters(self) -> dict[str, Any]:
        return {"docker_engine_plan": docker_engine_plan, "docker_engine_problems": docker_engine_problems}
