"""`baton up`: runs a cluster until it is told to stop."""

from pathlib import Path

from block_directory.redis_answer import without_password
from cluster_launcher.cluster import Cluster, Ready
from cluster_launcher.configuration import Configuration, check_surroundings, load_configuration
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.output import Output
from cluster_launcher.state_file import StateFiles, this_process
from cluster_launcher.stop_signals import Stopped, StopSignals


async def up(path: Path, files: StateFiles, output: Output, *, verbose: bool) -> ExitCode:
    """Start the cluster of ``path``, say that it is ready, serve until a signal. Raises an `OperatorError`."""
    configuration = load_configuration(path)
    files.claim(configuration.cluster.name)
    check_surroundings(configuration)
    signals = StopSignals()
    try:
        await signals.run(_serve(configuration, files, output, signals, verbose=verbose))
    except Stopped:
        output.errors.print("stopped")
    return ExitCode.OK


async def _serve(
    configuration: Configuration, files: StateFiles, output: Output, signals: StopSignals, *, verbose: bool
) -> None:
    name = configuration.cluster.name
    async with Cluster(configuration, output.progress(), signals.install, verbose=verbose) as cluster:
        ready = await cluster.start()
        running = this_process(
            name=name,
            address=ready.address,
            model=ready.model,
            directory_url=ready.directory_url,
            configuration=configuration.path,
        )
        files.write(running)
        try:
            _say_ready(name, ready, output)
            await cluster.wait()
        finally:
            files.clear(name)


def _say_ready(name: str, ready: Ready, output: Output) -> None:
    output.facts(
        {
            "state": "ready",
            "name": name,
            "address": ready.address,
            "model": ready.model,
            "directory_url": without_password(ready.directory_url),
            "ray_address": ready.ray_address,
            "workers": [dict(record) for record in ready.workers],
        }
    )
    workers = ", ".join(f"{record['worker_id']} {record['address']}" for record in ready.workers)
    output.console.print(
        f"[bold green]ready[/]: {ready.model} at [bold]{ready.address}[/] ({workers}); Ctrl-C stops it", soft_wrap=True
    )
