"""Makes the profile ``long`` known before pytest's options are read."""

import tests.machines.machine_settings  # noqa: F401  # it registers the profile
