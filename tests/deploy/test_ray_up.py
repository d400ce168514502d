"""`ray up` with the on-premise file, for real: over ssh, with a token, up to an answer and to an end by pid."""

import getpass
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.deploy.cluster_files import FOLDER, read_yaml, write_yaml
from tests.deploy.local_sshd import LocalSshd, free_port, require_tools

pytestmark = pytest.mark.deploy

CHECKOUT = FOLDER.parents[1]
BIN = Path(sys.executable).parent
MARK = "BATON_DEPLOY_TEST"
READY_DEADLINE_S = 240.0
LOOK_EVERY_S = 0.5
CONFIGURATION = """
[cluster]
name = "deploy"
prefill = 1
decode = 1
ray_address = "auto"
cpus_per_worker = 0.5
start_timeout_s = 200.0

[model]
path = "{checkout}/examples/demo_model"
name = "demo"

[engine]
threads = 1

[router]
port = {router_port}

[prefill]
host = "auto"
total_blocks = 128

[decode]
host = "auto"
total_blocks = 128

[directory]
listen_host = "auto"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine to log in to, and the home of who runs `ray up`. All of it is in one folder."""

    folder: Path
    home: Path
    operator_environment: dict[str, str]
    node_environment: dict[str, str]
    sshd: LocalSshd
    router: str

    def is_ready(self) -> bool:
        """Whether `baton up` has written its state file."""
        return (self.home / ".cache" / "baton" / "deploy.json").exists()

    def log(self) -> str:
        path = self.home / ".baton" / "baton.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Every process that was started through this machine's ssh server."""
        mark = self.node_environment[MARK]
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    require_tools("sshd", "ssh", "ssh-keygen", "nc", "rsync", "make", "setsid")
    folder = Path(tempfile.mkdtemp(prefix="bd-"))  # short: Ray's sockets live below
    home, operator_home = folder / "h", folder / "o"
    venv = home / "baton" / ".venv"
    venv.mkdir(parents=True)
    operator_home.mkdir()
    (venv / "bin").symlink_to(BIN)
    (venv / ".set-up").touch()  # so that the file's `make setup` finds it done
    router_port = free_port() + 500
    configuration = folder / "cluster.toml"
    configuration.write_text(CONFIGURATION.format(checkout=CHECKOUT, router_port=router_port), encoding="utf-8")
    node_environment = {
        "HOME": str(home),
        "BATON_CONFIG": str(configuration),
        "BATON_RAY_PORT": str(free_port() + 700),
        "BATON_RAY_TEMP": str(folder / "r"),
        "BATON_ROOM": "2",
        MARK: uuid.uuid4().hex,
    }
    operator_environment = os.environ | {
        "HOME": str(operator_home),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    sshd = LocalSshd(folder, node_environment)
    made = Machine(
        folder=folder,
        home=home,
        operator_environment=operator_environment,
        node_environment=node_environment,
        sshd=sshd,
        router=f"127.0.0.1:{router_port}",
    )
    sshd.start()
    yield made
    sshd.stop()
    for process in made.processes():
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def rendered(machine: Machine) -> Path:
    """Write the on-premise file with this machine's addresses; every command stays as it is."""
    document = read_yaml("on_premise.yaml")
    document["cluster_name"] = f"deploy-{machine.node_environment[MARK][:8]}"
    document["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    document["auth"] = {
        "ssh_user": getpass.getuser(),
        "ssh_private_key": str(machine.sshd.key),
        "ssh_proxy_command": f"nc 127.0.0.1 {machine.sshd.port}",
    }
    document["min_workers"] = document["max_workers"] = 0
    path = machine.folder / "on_premise.yaml"
    write_yaml(path, document)
    return path


def operate(machine: Machine, *command: str, timeout_s: float = 300.0) -> str:
    """Run a command as the operator, in the checkout. Fails with what it said."""
    done = subprocess.run(
        command,
        cwd=CHECKOUT,
        env=machine.operator_environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-6000:]}")
    return done.stdout


def wait_until_ready(machine: Machine) -> None:
    deadline = time.monotonic() + READY_DEADLINE_S
    while not machine.is_ready():
        if time.monotonic() > deadline or not any("up" in each.cmdline() for each in machine.processes()):
            pytest.fail(f"baton up did not get ready:\n{machine.log()[-4000:]}")
        time.sleep(LOOK_EVERY_S)


def test_ray_up_makes_a_cluster_that_answers_and_can_be_ended_by_pid(machine: Machine) -> None:
    operate(machine, "ray", "get-auth-token", "--generate")
    operate(machine, "ray", "up", "--no-config-cache", "-y", str(rendered(machine)))
    wait_until_ready(machine)
    answer = json.loads(operate(machine, "baton", "generate", "def ", "--address", machine.router, "--json"))
    assert answer["text"]

    subprocess.run([FOLDER / "node.sh", "stop"], env=os.environ | machine.node_environment, check=True, timeout=120.0)
    gone, left = psutil.wait_procs(machine.processes(), timeout=30.0)
    assert [each.cmdline() for each in left] == [], f"{len(gone)} ended late"
