# MIT licence (see LICENSE)
"""From catalogue entries to the job of the store of weights (the program `store` of roles/model_store). Pure."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import catalog
from ansible_collections.modelhost.serving.plugins.module_utils.vllm_flags import model_path, resolve


def models(entries: list[dict[str, Any]], models_dir: str) -> list[dict[str, Any]]:
    """What the store shall hold: one item for each checkpoint of a hub, whichever entries share it.

    weights_bytes is the catalogue's figure (0 where it has none); files and extra_files as in the entry's source.
    """
    found: dict[str, dict[str, Any]] = {}
    digests: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for entry in entries:
        source = entry["source"]
        if "repo" not in source:
            continue
        path, chosen = model_path(entry, models_dir), catalog.selection(entry)
        item = found.setdefault(
            path,
            {
                "id": entry["id"],
                "repo": source["repo"],
                "revision": source.get("revision", "unverified"),
                "path": path,
                "weights_bytes": int(float(entry.get("weights_gib") or 0) * 2**30),
                **chosen,
                "extra_files": source.get("extra_files", []),
                "files_digest": None,
            },
        )
        digests.setdefault(path, []).append((chosen, source.get("files_digest")))
    for path, item in found.items():
        widen(item, digests[path])
    return list(found.values())


def widen(item: dict[str, Any], wishes: list[tuple[dict[str, Any], Any]]) -> None:
    """Have a checkpoint hold what each of several wishes for it needs: (what chooses its files, its digest).

    A digest is over the files that its own wish chooses, and says nothing of a wider choice.
    """
    for key in ("allow_pickle", "code"):
        item[key] = any(chosen[key] for chosen, _digest in wishes)
    fitting = [digest for chosen, digest in wishes if digest and all(item[key] == chosen[key] for key in chosen)]
    item["files_digest"] = fitting[0] if fitting else None


def of_host(variables: Any) -> list[dict[str, Any]]:
    """The catalogue entries of a host's instances, each once."""
    known = catalog.entries(variables.get("vllm_models") or [])
    found = [resolve(instance, known) for instance in variables.get("vllm_instances") or []]
    return list({entry["id"]: entry for entry in found}.values())


def entries(groups: dict[str, list[str]], hostvars: Any, host: str) -> list[dict[str, Any]]:
    """What lies on a host's disk: the weights of its own engines, and on a mirror what all engines download."""
    mine = of_host(hostvars[host]) if host in groups.get("engines", []) else []
    if host not in groups.get("mirrors", []):
        return mine
    others = [entry for name in groups.get("engines", []) for entry in of_host(hostvars[name])]
    others = [entry for entry in others if "repo" in entry["source"]]
    # Two entries of one source may need different files of it.
    needs = {json.dumps([it["source"], catalog.selection(it)], sort_keys=True): it for it in [*others, *mine]}
    return list(needs.values())


def keep(groups: dict[str, list[str]], hostvars: Any) -> list[str]:
    """<org>/<repo>/<revision> of all that any engine of the inventory uses, since hosts may share a store."""
    used = [entry["source"] for name in groups.get("engines", []) for entry in of_host(hostvars[name])]
    return sorted({f"{source['repo']}/{source['revision']}" for source in used if "repo" in source})
