"The package alone: built, installed into an environment of its own, and used in an empty folder."
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("setup.py", "pyproject.toml", "MANIFEST.in", "scripts/jobs", "nbs/80_reproduce/_template")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the tracked files."
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(lambda name: name and (ROOT / name).is_file(), listed):
        copy = place / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", BUILD, place], cwd=place / "source", check=True,
                   capture_output=True, env=os.environ | {"PYTHONPATH": ""})
    found, = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def amcl(wheel, tmp_path_factory):
    "A call of `amcl` in an environment that holds the wheel; other packages are borrowed from ours."
    home = tmp_path_factory.mktemp("alone")
    venv.create(home, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    with zipfile.ZipFile(wheel) as archive: archive.extractall(packages)
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AMCL_", "PYTHON"))}

    def call(*words, cwd):
        done = subprocess.run([home / "bin" / "python", "-m", "amcl_suite", *words], cwd=cwd, text=True,
                              capture_output=True, env=env | {"COLUMNS": "200"}, timeout=240)
        return done.returncode, done.stdout + done.stderr
    code = "import amcl_suite; print(amcl_suite.__file__)"
    where = subprocess.run([home / "bin" / "python", "-c", code], cwd=home, env=env, text=True, capture_output=True)
    assert where.stdout.startswith(str(packages)), where
    return call


def test_the_wheel_holds_jobs_notebooks_and_records_and_nothing_else_of_the_checkout(wheel):
    with zipfile.ZipFile(wheel) as archive: names = archive.namelist()
    data = [name.removeprefix("amcl_suite/_files/") for name in names if "/_files/" in name]
    jobs = {path.name for path in (ROOT / "scripts/jobs").glob("*.yaml")}
    assert {Path(name).name for name in data if name.startswith("scripts/jobs/")} == jobs
    assert "nbs/00_start/010_quick_start.ipynb" in data and "nbs/80_reproduce/_template/job.yaml" in data
    assert any(name.startswith("nbs/90_results/records/headline/") for name in data)
    outside = [name for name in names if not name.startswith(("amcl_suite/", "amcl_suite-"))]
    assert not outside and not any(part in name for name in names for part in ("tests/", ".ipynb_checkpoints"))
    with zipfile.ZipFile(wheel) as archive:
        books = [json.loads(archive.read(name)) for name in names if name.endswith(".ipynb")]
    cells = [cell for book in books for cell in book["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells)     # pictures are made by who runs them
    assert wheel.stat().st_size < 6e6


def test_the_suites_jobs_can_be_listed_shown_and_run(amcl, tmp_path):
    status, text = amcl("list", cwd=tmp_path)
    assert status == 0 and "can't be run" not in text, text
    assert all(path.stem in text for path in (ROOT / "scripts/jobs").glob("*.yaml"))
    status, text = amcl("show", "headline", cwd=tmp_path)
    assert status == 0 and "uci-yacht" in text, text
    status, text = amcl("run", "quick_start", cwd=tmp_path)
    assert status == 0 and "1 finished" in text and str(tmp_path / "runs") in text, text
    status, text = amcl("run", "quick_start", cwd=tmp_path)
    assert status == 0 and "1 skipped" in text, text
    status, text = amcl("publish", "quick_start", cwd=tmp_path)
    assert status == 2 and "no amcl_suite checkout" in text, text


def test_a_study_of_ones_own_is_made_and_run(amcl, tmp_path):
    status, text = amcl("init", "x", cwd=tmp_path)
    assert status == 0 and "cd x && amcl run job.yaml" in text, text
    status, text = amcl("run", "job.yaml", cwd=tmp_path / "x")
    assert status == 0 and "2 finished, 0 failed" in text, text
    folders = sorted((tmp_path / "x" / "runs" / "job").glob("experiment-*-????????"))
    assert len(folders) == 2 and all((folder / "figures" / "hypotheses.png").exists() for folder in folders)
    status, text = amcl("run", "x/job.yaml", cwd=tmp_path)              # from elsewhere: the same runs
    assert status == 0 and "2 skipped" in text, text
    status, text = amcl("init", "x", cwd=tmp_path)
    assert status == 2 and "is not empty" in text, text
