"""`baton generate`: one request, streamed to the terminal."""

import asyncio
from typing import Any

from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.output import Output
from cluster_launcher.reach import reach
from cluster_launcher.report_rendering import render_report
from cluster_launcher.request_report import run_choices
from cluster_launcher.stop_signals import Stopped, StopSignals
from cluster_rpc.generate_request import GenerateOptions, Prompt


async def generate(
    address: str, prompt: Prompt, options: GenerateOptions, output: Output, *, explain: bool
) -> ExitCode:
    """Stream the answer; Ctrl-C cancels it in the cluster too."""
    try:
        return await StopSignals().run(_generate(address, prompt, options, output, explain=explain))
    except Stopped:
        output.text("\n")
        return ExitCode.INTERRUPTED


async def _generate(
    address: str, prompt: Prompt, options: GenerateOptions, output: Output, *, explain: bool
) -> ExitCode:
    async with reach(address) as (client, _):
        several = options.get("n", 1) > 1
        reports = await run_choices(client, prompt, title="", on_text=_nowhere if several else output.text, **options)
        for report in reports:
            output.text(f"[{report.completion.index}] {report.text}\n" if several else "\n")
            facts: dict[str, Any] = report.as_json()
            if not explain:
                del facts["attempts"]
            output.facts(facts)
        if explain:
            for line in render_report(reports[0], output.console.width):
                output.console.print(line)
    await asyncio.sleep(0)
    return ExitCode.OK


def _nowhere(_: str) -> None:
    """Show nothing: the pieces of several answers come mixed."""
