"""Makes a failing scenario small: leaves out kinds of faults, single ones, requests, workers, while it still fails."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulation.run import Outcome, run_scenario
from simulation.scenario import Scenario

MOST_RUNS = 300


def shrink(failing: Outcome, run: Callable[[Scenario], Outcome] = run_scenario, most_runs: int = MOST_RUNS) -> Outcome:
    """Return the outcome of the smallest scenario found that fails too; perhaps for another reason."""
    best, runs = failing, 0
    smaller_found = True
    while smaller_found:
        smaller_found = False
        for candidate in _smaller(best.scenario):
            if runs == most_runs:
                return best
            runs += 1
            outcome = run(candidate)
            if outcome.violations:
                best, smaller_found = outcome, True
                break
    return best


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Yield scenarios with less in them, those with much less first."""
    for kind in scenario.kinds:
        yield replace(scenario, faults=tuple(fault for fault in scenario.faults if fault.kind is not kind))
    for place in range(len(scenario.faults)):
        yield replace(scenario, faults=scenario.faults[:place] + scenario.faults[place + 1 :])
    for place in range(len(scenario.requests)):
        yield replace(scenario, requests=scenario.requests[:place] + scenario.requests[place + 1 :])
    for place, worker in enumerate(scenario.workers):
        if sum(other.role is worker.role for other in scenario.workers) > 1:
            named = {worker.name}
            faults = tuple(fault for fault in scenario.faults if not {fault.target, fault.peer} & named)
            workers = scenario.workers[:place] + scenario.workers[place + 1 :]
            yield replace(scenario, workers=workers, faults=faults)
    if len(scenario.routers) > 1:
        first, *others = scenario.routers
        faults = tuple(fault for fault in scenario.faults if not {fault.target, fault.peer} & set(others))
        requests = tuple(replace(request, router=first) for request in scenario.requests)
        yield replace(scenario, routers=(first,), faults=faults, requests=requests)
    yield from _simpler_requests(scenario)


def _simpler_requests(scenario: Scenario) -> Iterator[Scenario]:
    for place, request in enumerate(scenario.requests):
        if request.choices > 1:
            yield _with_request(scenario, place, choices=1)
        if request.stops_after is not None:
            yield _with_request(scenario, place, stops_after=None)
        if not request.recover:
            yield _with_request(scenario, place, recover=True)
        if request.pause_s:
            yield _with_request(scenario, place, pause_s=0.0)
        if len(request.prompt) > 1:
            yield _with_request(scenario, place, prompt=request.prompt[: len(request.prompt) // 2])
        if request.max_tokens > 1:
            yield _with_request(scenario, place, max_tokens=request.max_tokens // 2)


def _with_request(scenario: Scenario, place: int, **changes: object) -> Scenario:
    request = replace(scenario.requests[place], **changes)  # type: ignore[arg-type]  # fields of a plan, by name
    return replace(scenario, requests=(*scenario.requests[:place], request, *scenario.requests[place + 1 :]))
