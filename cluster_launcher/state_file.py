"""How `status`, `generate` and `scale` find the cluster that `up` runs: one small file per running cluster.

`up` writes ``<folder>/<cluster name>.json`` when the cluster is ready and removes it at its end. A file whose process
is gone is stale: it is reported and removed, never followed.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from cluster_core.errors import PartUnavailable
from cluster_launcher.exit_codes import ClusterUnreachable


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunningCluster:
    """What the file holds."""

    name: str
    address: str
    """``host:port`` of the router's gRPC server."""
    pid: int
    """The process of `baton up`."""
    process_started: float
    """When that process started, as the system counts: a reused pid has another one."""
    model: str
    directory_url: str
    configuration: str


def state_folder(environment: Mapping[str, str]) -> Path:
    """Return where state files live: the session's runtime folder, or a cache folder where there is none."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "baton"
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")).expanduser() / ".cache")
    return Path(cache) / "baton"


class StateFiles:
    """The folder of state files. ``clear`` removes only what this process wrote."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made when the first file is written."""
        self._folder = folder

    def claim(self, name: str) -> None:
        """Raise `PartUnavailable` when a live cluster has this name already."""
        running = self._read(self._folder / f"{name}.json")
        if running is not None and _is_alive(running) and running.pid != os.getpid():
            message = (
                f"cluster.name: a cluster {name!r} runs already (pid {running.pid}, {running.address}); "
                "stop it, or give this one another name"
            )
            raise PartUnavailable(message)

    def write(self, running: RunningCluster) -> Path:
        """Write the file in one step, readable by its owner only."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / f"{running.name}.json"
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps(dataclasses.asdict(running), indent=2), encoding="utf-8")
        draft.chmod(0o600)
        draft.replace(path)
        return path

    def clear(self, name: str) -> None:
        """Remove the file of ``name`` when this process wrote it."""
        path = self._folder / f"{name}.json"
        running = self._read(path)
        if running is not None and running.pid == os.getpid():
            path.unlink(missing_ok=True)

    def alive(self) -> list[RunningCluster]:
        """Return the clusters that run here. Stale files stay: nobody is told of them here."""
        found = (self._read(path) for path in sorted(self._folder.glob("*.json")))
        return [running for running in found if running is not None and _is_alive(running)]

    def find(self, name: str) -> RunningCluster:
        """Return the running cluster: the named one, or the only one when ``name`` is empty.

        Raises `ClusterUnreachable` when there is none, several, or only a stale file, which it removes.
        """
        paths = [self._folder / f"{name}.json"] if name else sorted(self._folder.glob("*.json"))
        alive: list[RunningCluster] = []
        stale: list[RunningCluster] = []
        for path in paths:
            running = self._read(path)
            if running is None:
                continue
            if _is_alive(running):
                alive.append(running)
            else:
                stale.append(running)
                path.unlink(missing_ok=True)
        match alive, stale:
            case [only], _:
                return only
            case [], []:
                message = f"no cluster {name!r} runs here" if name else "no cluster runs here"
                message += "; start one with `baton up CONFIG.toml`, or name one with --address HOST:PORT"
            case [], [gone, *_]:
                message = (
                    f"the cluster {gone.name!r} (pid {gone.pid}, {gone.address}) is gone without a farewell; "
                    "start it again with `baton up CONFIG.toml`"
                )
            case _:
                names = ", ".join(running.name for running in alive)
                message = f"several clusters run here ({names}); name one with --cluster NAME"
        raise ClusterUnreachable(message)

    @staticmethod
    def _read(path: Path) -> RunningCluster | None:
        try:
            return RunningCluster(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def this_process(*, name: str, address: str, model: str, directory_url: str, configuration: Path) -> RunningCluster:
    """Describe the cluster that this process runs."""
    return RunningCluster(
        name=name,
        address=address,
        pid=os.getpid(),
        process_started=psutil.Process().create_time(),
        model=model,
        directory_url=directory_url,
        configuration=str(configuration.resolve()),
    )


def _is_alive(running: RunningCluster) -> bool:
    try:
        return abs(psutil.Process(running.pid).create_time() - running.process_started) < 1.0
    except psutil.Error:
        return False
