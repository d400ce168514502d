"""A real cluster for a benchmark: `baton up` with the bench model, one prefill worker and one or two decode workers.

For `serve`, a second router beside the cluster's own follows the same directory and never hands over. So both
placements are measured on the same workers, in turn.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench_model import make_bench_model
from benchmarks.peer_process import PeerProcess, running, running_command

_CONFIG = """\
[cluster]
name = "bench"
prefill = 1
decode = {decode}
restart_budget = 100  # where workers are killed on purpose

[model]
path = "{model}"

[engine]
dtype = "bfloat16"
threads = 1
batch_invariant = {batch_invariant}

[router]
port = 0
placement = "{placement}"

[prefill]
total_blocks = 2048

[decode]
total_blocks = 2048

[speculation]
method = "off"  # several tokens a step would hide what a step takes
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routers:
    """Where to ask. Both routers use the same two workers."""

    split: str
    """Address of the router that always hands over."""
    local: str
    """Address of the router that leaves prompts to the decode worker."""


@contextmanager
def serving(folder: Path) -> Iterator[Routers]:
    """Run one decode worker and both routers until the block ends. Raises `RuntimeError` as `up` does."""
    model = make_bench_model(folder / "bench-82m")
    local = _write_config(folder, model, "local")
    with _up(folder, _write_config(folder, model, "split")) as ready:
        arguments = (str(local), "--directory-url", str(ready["directory_url"]), "--log-level", "WARNING")
        with running("router", *arguments) as router:
            yield Routers(split=str(ready["address"]), local=str(_first_facts(router)["address"]))


@contextmanager
def serving_twice(folder: Path) -> Iterator[str]:
    """Run two decode workers, whose answers are the same bit for bit, until the block ends; yield the router's address.

    Raises `RuntimeError` with the end of its log when the cluster does not start.
    """
    model = make_bench_model(folder / "bench-82m")
    with _up(folder, _write_config(folder, model, "split", decode=2)) as ready:
        yield str(ready["address"])


def _write_config(folder: Path, model: Path, placement: str, decode: int = 1) -> Path:
    path = folder / f"{placement}.toml"
    invariant = "true" if decode > 1 else "false"
    text = _CONFIG.format(model=model, placement=placement, decode=decode, batch_invariant=invariant)
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def _up(folder: Path, config: Path) -> Iterator[dict[str, object]]:
    """Run the cluster until the block ends; yield what it says when it is ready."""
    log = folder / "up.log"
    command = [sys.executable, "-m", "cluster_launcher", "up", str(config), "--json"]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}  # its state file stays out of the user's way
    with running_command(command, log=log, environment=environment) as process:
        try:
            ready = _first_facts(PeerProcess(process, "baton up"))
            if "address" not in ready:
                message = f"baton up: {ready}"
                raise RuntimeError(message)  # noqa: TRY301  # the log belongs to it as well
        except RuntimeError as error:
            message = f"{error}:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            raise RuntimeError(message) from error
        yield ready


def _first_facts(process: PeerProcess) -> dict[str, object]:
    """Return the first line that is a JSON object."""
    while not (line := process.hear()).startswith("{"):
        pass
    facts: dict[str, object] = json.loads(line)
    return facts
