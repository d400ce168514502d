"""`baton plan MODEL`: what fits on which GPU, before any is rented. Nothing is started and no weights are read."""

from pathlib import Path

from cluster_launcher.exit_codes import ExitCode
from cluster_launcher.output import Output
from cluster_launcher.plan_computation import PlanOptions, make_plan
from cluster_launcher.plan_facts import plan_facts
from cluster_launcher.plan_rendering import render_plan


def plan(model: Path, options: PlanOptions, output: Output) -> ExitCode:
    """Print the plan; `NOT_SO` when weights, or a context that was asked for, do not fit on one of the GPUs.

    Raises what `make_plan` raises.
    """
    made = make_plan(model, options)
    output.facts(plan_facts(made))
    for line in render_plan(made):
        output.console.print(line)
    wrong = any(fit.misfits if options.contexts else not fit.blocks for fit in made.fits)
    return ExitCode.NOT_SO if wrong else ExitCode.OK
