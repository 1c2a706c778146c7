"""Every test: seeded, on poisoned memory. The end of the run says what was not run, and why."""

import os
import random
from collections import Counter

# Threads that wait for their next share give the core up: spinning ones starve the other test processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():  # GPU kernels run in Triton's interpreter and in the CUDA emulator
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("SLOWFAST_EMULATE", "1")

from hypothesis import HealthCheck, settings  # noqa: E402

from slowfast_kernels.testing import poisoned_memory, provider_missing, use_provider  # noqa: E402

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# new draws every time: pytest --hypothesis-profile=explore
settings.register_profile(
    "explore", settings.get_profile("default"), derandomize=False, max_examples=1000, print_blob=True
)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption(
        "--run-slow", action="store_true", help="also the tests marked slow: minutes, or up to 24 GiB"
    )


def pytest_collection_modifyitems(config, items):
    # the longest first: at the end they would leave the other processes idle
    items.sort(key=lambda item: item.path.name != "test_triton_aot.py")
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--run-slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device is available"))


#: Backends whose absence is a failure: SLOWFAST_REQUIRE=cpu,triton,cuda, as `make test` has it.
REQUIRED = os.environ.get("SLOWFAST_REQUIRE", "").split(",")


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    with poisoned_memory():
        yield


@pytest.fixture
def provider(request):
    """Runs the test's ops on the provider it is parametrised with. Skips where this machine lacks it, or fails where
    `REQUIRED` says that it must not.
    """
    backend = request.param.partition(":")[0]
    missing = provider_missing(backend)
    if missing and backend in REQUIRED:
        pytest.fail(f"provider {backend}, which SLOWFAST_REQUIRE asks for: {missing}")
    reason = missing or provider_missing(request.param)
    if reason:
        pytest.skip(f"provider {request.param}: {reason}")
    with use_provider(request.param):
        yield request.param


def pytest_terminal_summary(terminalreporter):
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("xfailed", []):
        reasons[f"expected to fail: {report.wasxfail}"] += 1
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        reasons["deselected on the command line"] += deselected
    terminalreporter.section("not run")
    if not reasons:
        terminalreporter.line("nothing: every test was run")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"{count:5d} test{'s' if count > 1 else ' '}  {reason}")
