"""`baton demo`: a small real cluster, four requests, and the proof that handing over changes no token."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from cluster_core.settings_reader import load_document
from cluster_launcher.checkout import checkout_folder
from cluster_launcher.cluster import Cluster
from cluster_launcher.configuration import Configuration, check_surroundings, configuration_of
from cluster_launcher.demo_story import MAX_TOKENS, SCENES, Scene, scene
from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.oracle import Asked, Difference, first_difference
from cluster_launcher.output import Output
from cluster_launcher.report_rendering import render_report
from cluster_launcher.request_report import RequestReport, run_request
from cluster_launcher.stop_signals import Stopped, StopSignals
from cluster_rpc.client import BatonClient

Result = TypeVar("Result")


async def demo(output: Output, *, verbose: bool) -> ExitCode:
    """Run the demo to its end; Ctrl-C at any moment leaves no process behind."""
    configuration = demo_configuration()
    check_surroundings(configuration)
    signals = StopSignals()
    try:
        return await signals.run(_demo(configuration, output, signals, verbose=verbose))
    except Stopped:
        output.errors.print("stopped")
        return ExitCode.INTERRUPTED


def demo_configuration() -> Configuration:
    """Read local_cpu.toml, with three keys of our own.

    Name and port are others, so that a cluster of the user's is not in the way. Every request is handed over: a cost
    model would rather leave a prompt this short to the worker that has it cached, and the demo would show little.
    """
    path = checkout_folder("baton demo") / "cluster_configs" / "local_cpu.toml"
    document: dict[str, Any] = dict(load_document(path))
    document["cluster"] = {**document.get("cluster", {}), "name": "demo"}
    document["router"] = {**document.get("router", {}), "port": 0, "placement": "split"}
    return configuration_of(document, path)


async def _demo(configuration: Configuration, output: Output, signals: StopSignals, *, verbose: bool) -> ExitCode:
    async with Cluster(configuration, output.progress(), signals.install, verbose=verbose) as cluster:
        ready = await cluster.start()
        output.console.print(f"[bold green]ready[/]: {ready.model} at {ready.address}")
        output.console.print(
            'This demo hands every request over ([router] placement = "split"); under "auto" the router also weighs '
            "leaving a request to one decode worker.",
            markup=False,
        )
        scenes, reports = await while_serving(cluster.wait(), _play(ready.address, configuration, output))
    difference = await _compare(configuration, scenes, reports, output)
    output.facts(
        {
            "identical": difference is None,
            "address": ready.address,
            "model": ready.model,
            "requests": [
                {"prompt": scene.prompt, **report.as_json()} for scene, report in zip(scenes, reports, strict=True)
            ],
        }
    )
    return ExitCode.OK if difference is None else ExitCode.NOT_SO


async def while_serving(serving: Coroutine[Any, Any, None], work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work`` to its end unless ``serving`` ends first: then raise why a part of the cluster died."""
    guard, task = asyncio.ensure_future(serving), asyncio.ensure_future(work)
    try:
        await asyncio.wait([guard, task], return_when=asyncio.FIRST_COMPLETED)
        if guard.done() and not task.done():
            guard.result()
        return await task
    finally:
        guard.cancel()
        task.cancel()
        await asyncio.gather(guard, task, return_exceptions=True)


async def _play(address: str, configuration: Configuration, output: Output) -> tuple[list[Scene], list[RequestReport]]:
    scenes: list[Scene] = []
    reports: list[RequestReport] = []
    async with BatonClient(address) as client:
        for number in range(SCENES):
            next_scene = scene(number, [report.text for report in reports])
            scenes.append(next_scene)
            output.console.rule(f"[bold]{number + 1}. {next_scene.title}[/]", align="left")
            output.console.print(f"[italic]{next_scene.what_to_see}[/]\n")
            output.console.print(next_scene.prompt, end="", style="dim", markup=False)
            report = await run_request(
                client,
                next_scene.prompt,
                title=next_scene.title,
                on_text=output.text,
                max_tokens=MAX_TOKENS,
                temperature=0.0,
            )
            reports.append(report)
            output.text("\n\n")
            for line in render_report(report, output.console.width, configuration.engine.block_size_tokens):
                output.console.print(line)
            output.console.print()
    return scenes, reports


async def _compare(
    configuration: Configuration, scenes: list[Scene], reports: list[RequestReport], output: Output
) -> Difference | None:
    asked = [
        Asked(prompt=scene.prompt, max_tokens=MAX_TOKENS, token_ids=report.token_ids)
        for scene, report in zip(scenes, reports, strict=True)
    ]
    with output.progress().part("the same prompts, one engine in one process"):
        difference = await asyncio.to_thread(first_difference, configuration, asked)
    if difference is None:
        count = sum(len(request.token_ids) for request in asked)
        output.console.print(f"identical: [bold green]yes[/] ({count} tokens in {len(asked)} answers)")
    else:
        output.console.print(
            f"identical: [bold red]no[/]: answer {difference.request + 1} departs at token {difference.token_index}: "
            f"{list(difference.answered[:4])} instead of {list(difference.expected[:4])}"
        )
    return difference
