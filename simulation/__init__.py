"""The cluster in one thread, on a virtual clock: see `simulation.run`."""
