"""What holds for all tests: cores, how examples are found, and that Ctrl-C reaches the processes that tests start.

Tests that run side by side (``make test``) have cores of their own, which all that they start inherits: the tiny
networks here gain nothing from a second thread, and teams of threads that wait for each other on one core lose much.
Property tests have no deadline (the first call of a kernel compiles it) and, in CI, the same examples every time. A job
in the background of a script ignores Ctrl-C, and so would everything it starts.
"""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything starts a thread or counts the cores
    _cores = sorted(os.sched_getaffinity(0))
    _number, _count = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), os.environ["PYTEST_XDIST_WORKER_COUNT"]
    os.sched_setaffinity(0, _cores[_number :: int(_count)] or _cores)

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny_runs import TINY, sentences, write_jsonl

_TIMELESS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("here", **_TIMELESS)
settings.register_profile("ci", **_TIMELESS, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny(tmp_path):
    """A folder with three small sources and a recipe over them; returns the recipe's path."""
    for name in ("code", "prose", "other"):
        write_jsonl(tmp_path / f"{name}.jsonl", sentences(name, 60))
    (tmp_path / "recipe.yaml").write_text(TINY.format(root=tmp_path))
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """One finished run of the tiny recipe, for tests that only look; returns its directory."""
    from deepen.recipe.reading import load
    from deepen.workflow.run import RunOptions, run_pipeline

    root = tmp_path_factory.mktemp("finished")
    for name in ("code", "prose", "other"):
        write_jsonl(root / f"{name}.jsonl", sentences(name, 60))
    (root / "recipe.yaml").write_text(TINY.format(root=root))
    loaded = load(root / "recipe.yaml", None, ["machine.workers=1"])
    run_pipeline(loaded.recipe, loaded.machine, root / "runs" / "tiny", RunOptions(offline=True))
    return root / "runs" / "tiny"
