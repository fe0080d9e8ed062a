# MIT licence (see LICENSE)
"""What a host has of NVIDIA's driver: modules, packages, boot, health of GPUs. Runs on hosts (Python 3.8), read-only.

`run(command) -> (status, text)`, `read(path) -> text` and `paths_like(pattern) -> paths` are host_probe's. Any fact may
be missing on some Linux and is empty then.
"""

from __future__ import annotations

import re

#: Packages of the driver in all packagings: Ubuntu's, Debian's, NVIDIA's own.
PACKAGES = ("*nvidia*", "libcuda1", "libcudadebugger1", "libnvcuvid1", "libnvoptix1", "libnvsdm*", "cuda-drivers*")
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: Places where runtimes look for CDI specifications.
CDI = ("/etc/cdi/*", "/var/run/cdi/*")
#: Keys that packages sign modules with which are built on the host: Debian's and NVIDIA's dkms, Ubuntu's.
KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
#: NVIDIA's repositories as they stand in lists of sources: of the driver, of the container toolkit.
SOURCES = {"driver": "/compute/cuda/repos/", "toolkit": "/libnvidia-container/"}
#: The kernel's own drivers of NVIDIA's GPUs: the old one, and the one in Rust that follows it.
OTHERS = ("nouveau", "nova_core")
#: Lines of the kernel's log that are looked at, newest first.
XIDS = 50


def facts(run, read, paths_like):
    """All of it."""
    loaded = read("/proc/driver/nvidia/version")
    installed = packages(run)
    marked = held(run)
    kernel = run(["uname", "-r"])[1].strip()
    return {
        "devices": devices(read, paths_like),
        "secure_boot": secure_boot(run, read),
        "mok": mok(run, paths_like),
        "other_driver": next((name for name in OTHERS if paths_like("/sys/module/" + name)), ""),
        "module_loaded": first(r"Kernel Module.*?\s(\d+\.\d+[.\d]*)", loaded),
        "open": "Open Kernel Module" in loaded if loaded else None,
        "module_on_disk": module_on_disk(run),
        "next_kernel": next_kernel(run, kernel),
        # NVIDIA's own installer brings this program; packages do not.
        "runfile": bool(paths_like("/usr/bin/nvidia-uninstall")),
        "packages": installed,
        "held": [name for name in marked if name in installed],
        "fabricmanager": fabricmanager(installed),
        "toolkit": upstream(installed.get("nvidia-container-toolkit", "")),
        "cdi": [path for pattern in CDI for path in paths_like(pattern)],
        "kernels": kernels(run),
        "kernel_holds": [name for name in marked if name.startswith("linux-")],
        "headers": bool(kernel and paths_like("/lib/modules/%s/build" % kernel)),
        "persistenced": run(["systemctl", "is-active", "nvidia-persistenced.service"])[1].strip() == "active",
        "sources": sources(read, paths_like),
        "taken": taken(paths_like),
        "bridges": bridges(read, paths_like),
        "nvlsm": run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "nvlsm"])[1].strip() == "installed",
        "ib_umad": bool(paths_like("/sys/module/ib_umad")),
        "uvm": bool(paths_like("/dev/nvidia-uvm")),
        "xids": xids(run),
    }


def first(pattern, text):
    """What the pattern's group catches, or nothing."""
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def upstream(version):
    """`1:580.173.02-0ubuntu1` → `580.173.02`"""
    return version.split(":")[-1].split("-")[0]


def devices(read, paths_like):
    """NVIDIA's displays and accelerators on the PCI bus."""
    found = []
    for path in paths_like("/sys/bus/pci/devices/*"):
        if read(path + "/vendor").strip() == "0x10de" and read(path + "/class").startswith(("0x0300", "0x0302")):
            found.append({"pci": path.rpartition("/")[2], "id": read(path + "/device").strip()})
    return found


def taken(paths_like):
    """Places on the PCI bus of the GPUs that the driver took."""
    return [path.rpartition("/")[2] for path in paths_like("/proc/driver/nvidia/gpus/*")]


def bridges(read, paths_like):
    """ConnectX bridges that lead to NVSwitches of the fifth generation, which the PCI bus does not show.

    NVIDIA's own start script of the fabric manager goes by this mark.
    """
    return [path.split("/")[4] for path in paths_like("/sys/class/infiniband/*/device/vpd") if "SW_MNG" in read(path)]


def secure_boot(run, read):
    """Whether the firmware lets the kernel load signed modules only; None: not known (no UEFI)."""
    variable = read(SECURE_BOOT)
    if variable:
        # Four bytes of attributes, then the value.
        return variable[-1:] == "\x01"
    status, out = run(["mokutil", "--sb-state"])
    return "SecureBoot enabled" in out if status == 0 else None


def mok(run, paths_like):
    """Whether the firmware knows the key that modules are signed with which are built here."""
    return any("already enrolled" in run(["mokutil", "--test-key", key])[1] for key in KEYS if paths_like(key))


def sources(read, paths_like):
    """Lists of apt's sources, not ours, that name NVIDIA's repositories: {driver: [...], toolkit: [...]}. apt refuses
    one address with two keyrings."""
    lists = [path for path in paths_like("/etc/apt/sources.list.d/*") if "/modelhost-" not in path]
    texts = {path: re.sub(r"(?m)^\s*#.*$", "", read(path)) for path in ["/etc/apt/sources.list", *lists]}
    return {name: [path for path, text in texts.items() if part in text] for name, part in SOURCES.items()}


def module_on_disk(run):
    """The version of the module that the running kernel would load."""
    status, out = run(["modinfo", "-F", "version", "nvidia"])
    return first(r"^(\d+\.\d+[.\d]*)$", out.strip()) if status == 0 else ""


def next_kernel(run, running):
    """The kernel of the next start, where it is another one, and the module's version there: {name, module}."""
    for path in ("/boot/vmlinuz", "/vmlinuz"):
        status, out = run(["readlink", "-e", path])
        name = first(r"vmlinuz-(\S+)$", out.strip())
        if status == 0 and name and name != running:
            status, out = run(["modinfo", "-k", name, "-F", "version", "nvidia"])
            return {"name": name, "module": out.strip() if status == 0 else ""}
    return {}


def packages(run):
    """Installed packages of the driver and its company: {name: version}."""
    _status, out = run(["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${db:Status-Abbrev}\n", *PACKAGES])
    # Held packages are `hi`; what is half installed counts as there.
    return dict(re.findall(r"^([^\t\n]+)\t([^\t\n]+)\t[hi][iFUWt]", out, re.M))


def held(run):
    """Packages that are held."""
    status, out = run(["apt-mark", "showhold"])
    return sorted(set(out.split())) if status == 0 else []


def kernels(run):
    """Installed packages that bring each new kernel, such as linux-image-generic and what goes with it."""
    _status, out = run(["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Abbrev}\n", "linux-*"])
    names = re.findall(r"^(linux-\S+)\t[hi]i", out, re.M)
    flavours = [name[len("linux-image-") :] for name in names if re.match(r"linux-image-(?!unsigned-)[a-z]", name)]
    form = r"linux-(?:image-|headers-|modules-extra-|modules-nvidia-.+-)?(?:%s)$" % "|".join(map(re.escape, flavours))
    # A kernel's own packages have its version within: linux-image-6.8.0-111-generic.
    return sorted(name for name in names if re.match(form, name) and not re.search(r"-\d+\.\d+\.\d+-", name))


def fabricmanager(installed):
    """The fabric manager's version."""
    for name, version in installed.items():
        if re.match(r"nvidia-fabricmanager(-\d+)?$", name):
            return upstream(version)
    return ""


def xids(run):
    """Errors that the driver wrote to the kernel's log since the start: [{pci, xid}], each pair once."""
    status, out = run(["journalctl", "-k", "-b", "-q", "--no-pager", "-o", "cat", "-n", str(XIDS), "--grep=NVRM: Xid"])
    if status != 0:
        out = run(["dmesg"])[1]
    found = []
    for pci, number in re.findall(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)", out):
        item = {"pci": pci.lower(), "xid": int(number)}
        if item not in found:
            found.append(item)
    return found
