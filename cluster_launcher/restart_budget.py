"""When a worker that keeps dying is given up.

Ray restarts a dead worker for ever. A worker that dies of its configuration would then load its model again and again
and starve the healthy ones, so each worker has a budget of restarts within a sliding window.
"""

from collections import deque


class RestartBudget:
    """Counts one worker's restarts. Times are seconds of any monotonic clock."""

    def __init__(self, restarts: int, window_s: float) -> None:
        """Allow ``restarts`` within any ``window_s`` seconds."""
        self._restarts = restarts
        self._window_s = window_s
        self._times: deque[float] = deque()
        self._known_total = 0

    def observe(self, total: int, now_s: float) -> bool:
        """Take the total of restarts so far, and return whether the worker may go on."""
        for _ in range(total - self._known_total):
            self._times.append(now_s)
        self._known_total = max(total, self._known_total)
        while self._times and now_s - self._times[0] > self._window_s:
            self._times.popleft()
        return len(self._times) <= self._restarts
