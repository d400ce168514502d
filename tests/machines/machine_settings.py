"""How long the machines run: the one place that says so.

In `make test` each takes a few seconds and the same examples every time. ``python -m tests.machines``, a part of `make
check-long`, and ``pytest --hypothesis-profile=long tests/machines`` take some minutes each, draw new examples and keep
what they found.
"""

from hypothesis import HealthCheck, Phase, settings

SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.filter_too_much)

QUICK = settings(
    max_examples=60, stateful_step_count=40, derandomize=True, deadline=None, suppress_health_check=SLOW_IS_FINE
)
LONG = settings(
    max_examples=2_000,
    stateful_step_count=100,
    derandomize=False,
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW_IS_FINE,
)
HUNT = settings(QUICK, max_examples=400, phases=(Phase.generate,), report_multiple_bugs=False)
"""For a mistake that is known to be there: many examples, since the first failure ends it, and no shrinking."""

settings.register_profile("long", LONG)


def machine_settings() -> settings:
    """Return what this run asks for."""
    return LONG if settings.get_current_profile_name() == "long" else QUICK
