"Shared by all tests: where the data are, one thread, and the marker `slow`."
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ROOT.parent / "shared" / "data"
if not os.environ.get("AMCL_DATA") and BESIDE.is_dir(): os.environ["AMCL_DATA"] = str(BESIDE)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about ten seconds (left out by "
                            "`scripts/test.sh --fast`)")
