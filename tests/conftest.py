"Shared by all tests: where the data are, one thread, the marker `slow`, and how workers share them."
import os, shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ROOT.parent / "shared" / "data"
if not os.environ.get("AMCL_DATA") and BESIDE.is_dir(): os.environ["AMCL_DATA"] = str(BESIDE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
SECONDS = "amcl/seconds"     # in pytest's cache: test -> seconds that it took last time
# files whose tests share what is started or built once: the cluster, and the whole site
GROUPS = {"test_slurm.py": "cluster", "test_site.py": "site", "test_docs.py": "site"}


BROWSERS = "chromium", "chromium-browser", "google-chrome"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    "Chromium without a window, one for the tests of a file; they are skipped where it isn't."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not chromium: pytest.skip("no Chromium here (bash scripts/system.sh)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield browser
        browser.close()


class Stopwatch:
    "Adds up the seconds of each test and keeps them in pytest's cache."
    def __init__(self, config): self.config, self.seconds = config, {}

    def pytest_runtest_logreport(self, report):
        before = self.seconds.get(report.nodeid, 0)
        self.seconds[report.nodeid] = round(before + report.duration, 2)

    def pytest_sessionfinish(self):
        known = self.config.cache.get(SECONDS, {})
        self.config.cache.set(SECONDS, known | self.seconds)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about ten seconds (left out by "
                            "`scripts/test.sh --fast`)")
    if not hasattr(config, "workerinput") and hasattr(config, "cache"):
        config.pluginmanager.register(Stopwatch(config))


def pytest_collection_modifyitems(config, items):
    """Start with what took long last time, when tests are dealt out to workers (`pytest -n 3`).

    Without workers nothing is moved: the tests of a file share its fixtures."""
    if not hasattr(config, "workerinput"): return
    known = config.cache.get(SECONDS, {}) if hasattr(config, "cache") else {}
    guess = lambda item: 15 if item.get_closest_marker("slow") else 0
    items.sort(key=lambda item: -known.get(item.nodeid, guess(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out the groups first, each to one worker, then test by test.

    `--dist loadgroup` can't be used: xdist 3.8 notes the group in `item._nodeid`, which pytest 9.2
    no longer reads, so that groups are silently taken apart."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return GROUPS.get(Path(nodeid.split("::")[0]).name, nodeid)

    return Scheduling(config, log)
