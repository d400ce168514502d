"""A real cluster for a benchmark: `baton up` with the bench model, one prefill and one decode worker.

A second router beside the cluster's own follows the same directory and never hands over. So both placements are
measured on the same workers, in turn.
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
decode = 1

[model]
path = "{model}"

[engine]
dtype = "bfloat16"
threads = 1

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
    """Run the cluster until the block ends. Raises `RuntimeError`, with the end of its log, when it does not start."""
    model = make_bench_model(folder / "bench-82m")
    configs = {}
    for placement in ("split", "local"):
        configs[placement] = folder / f"{placement}.toml"
        configs[placement].write_text(_CONFIG.format(model=model, placement=placement), encoding="utf-8")
    log = folder / "up.log"
    command = [sys.executable, "-m", "cluster_launcher", "up", str(configs["split"]), "--json"]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}  # its state file stays out of the user's way
    with running_command(command, log=log, environment=environment) as process:
        try:
            ready = _first_facts(PeerProcess(process, "baton up"))
        except RuntimeError as error:
            message = f"{error}:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}"
            raise RuntimeError(message) from error
        arguments = (str(configs["local"]), "--directory-url", str(ready["directory_url"]), "--log-level", "WARNING")
        with running("router", *arguments) as router:
            yield Routers(split=str(ready["address"]), local=str(_first_facts(router)["address"]))


def _first_facts(process: PeerProcess) -> dict[str, object]:
    """Return the first line that is a JSON object."""
    while not (line := process.hear()).startswith("{"):
        pass
    facts: dict[str, object] = json.loads(line)
    return facts
