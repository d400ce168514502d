"""The process: reads the environment, runs a command, turns every foreseen error into one line and an exit code."""

import json
import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from cluster_core.errors import BatonError, SettingsError
from cluster_launcher.app import app
from cluster_launcher.exit_codes import ExitCode, exit_code_of
from cluster_launcher.surroundings import Surroundings

# What libraries read when they start, unless the user has said otherwise.
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray keeps its hands off CUDA_VISIBLE_DEVICES of CPU workers
    "RAY_DEDUP_LOGS": "0",
    "GRPC_VERBOSITY": "ERROR",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    command = typer.main.get_command(app)
    try:
        code = command.main(
            list(arguments) or ["--help"],
            prog_name="baton",
            standalone_mode=False,
            obj=Surroundings(environment=dict(os.environ)),
        )
    except typer.TyperException as error:
        mistake = SettingsError(f"{error.format_message()} See `baton --help`, or `baton COMMAND --help`.")
        return _report(mistake, as_json="--json" in arguments)
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except BatonError as error:
        return _report(error, as_json="--json" in arguments)
    except BrokenPipeError:
        # The reader of our output has gone (`baton status | head`): nothing more can or need be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    return int(code or 0)


def _report(error: BatonError, *, as_json: bool) -> int:
    code = exit_code_of(error)
    line = " ".join(str(error).split())
    if as_json:
        sys.stdout.write(json.dumps({"error": line, "kind": type(error).__name__, "exit_code": int(code)}) + "\n")
    Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/]", end=" ")
    sys.stderr.write(line + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
