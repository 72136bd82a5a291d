"""Run parts as tasks of a Ray cluster: each part is one task, and what a lost node worked on runs again elsewhere.

The driver alone commits results, as with local processes, so the same parts give the same bytes. Nodes read and write
the run directory themselves and must see it under the same path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deepen.engine.workers import answer, shown
from deepen.errors import DeepenError, MissingExtraError

_KNOCK_SECONDS = 10.0
_RETRIES = 5
"""How often a task is started again when its node or process is lost; errors of the task itself are not retried."""


def run_on_ray(
    function: Callable[[Any], dict[str, Any]],
    jobs: Sequence[tuple[int, Any]],
    *,
    address: str,
    commit: Callable[[int, dict[str, Any]], None],
) -> None:
    """Run ``function`` on the part of every ``(index, part)`` job; call ``commit(index, result)`` here as they end."""
    with _connected(address) as ray:
        # Only losses are tried again: a part's own error would come again.
        task = ray.remote(answer).options(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)
        running = {task.remote(function, part): (index, part) for index, part in jobs}
        while running:
            # One at a time, committed as it ends: a kill loses no finished part.
            (done,), _ = ray.wait(list(running), num_returns=1)
            index, part = running.pop(done)
            try:
                result, error = ray.get(done)
            except ray.exceptions.RayError as lost:
                raise DeepenError(
                    f"the Ray cluster lost the work on {shown(part)}: {type(lost).__name__}",
                    hint="see the cluster's logs; finished parts are kept, so run the command again",
                ) from lost
            if error is not None:
                raise error
            commit(index, result)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        hint = "pip install 'deepen[ray]'"
        raise MissingExtraError("`engine.ray` is set and ray is not installed", hint=hint) from error
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do anyway, said before it warns
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise DeepenError(
            f"no Ray cluster answers at `{address}`: {error}",
            hint="start one (`ray start --head`) or correct engine.ray",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise ``OSError`` when nothing listens at ``HOST:PORT``: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
