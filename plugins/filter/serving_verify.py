# MIT licence (see LICENSE)
"""Filters of the role serving_verify."""

from __future__ import annotations

from typing import Any


def models(backends: list[dict[str, Any]], loopback: bool = False) -> list[dict[str, Any]]:
    """The models to check: replicas answer to one name and are checked as one."""
    found: dict[str, dict[str, Any]] = {}
    for backend in backends:
        name = "local-claude-" + backend["instance"]
        if name in found:
            found[name]["replicas"] += 1
            continue
        found[name] = {
            "name": name,
            "loopback": bool(loopback or backend.get("loopback_model")),
            "replicas": 1,
            "capabilities": backend.get("capabilities") or {},
        }
    return list(found.values())


def health(backends: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Where to ask for the health of each engine."""
    return [{"name": f"{b['instance']}@{b['host']}", "url": b["url"]} for b in backends]


def concerned(backends: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The engines that failed checks are about, or all if they are about none in particular."""
    subjects = {result["model"] for result in results if result["status"] == "failed"} - {""}
    named = [
        b for b in backends if subjects & {"local-claude-" + b["instance"], f"{b['instance']}@{b['host']}"}
    ]  # fmt: skip
    return named or backends


def journals(loop_results: list[dict[str, Any]]) -> list[str]:
    """The lines of several journals, each under the name of its unit."""
    lines = []
    for result in loop_results:
        item = result["item"]
        lines.append(f"Journal of {item['unit']} on {item['host']}:")
        lines += ["  " + line for line in result.get("stdout_lines") or ["(not to be had)"]]
    return lines


class FilterModule:
    """Filters of `modelhost.serving`."""

    def filters(self) -> dict[str, Any]:
        return {
            "serving_verify_models": models,
            "serving_verify_health": health,
            "serving_verify_concerned": concerned,
            "serving_verify_journals": journals,
        }
