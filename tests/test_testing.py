"The runner of notebooks, what `--changed` picks, and that a failure in any ring fails scripts/test.sh."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amcl_suite.reproduce.changes import select
from amcl_suite.reproduce.testing import (choose, expected_seconds, import_libraries, main,
                                          run_notebooks)

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("scripts/test.sh", "scripts/test_notebooks", "scripts/changed")


def book(*sources, tags=()):
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": list(tags)}, "outputs": [],
              "execution_count": None} for source in sources]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


FILES = {
    "settings.ini": "[DEFAULT]\nlib_name = amcl_suite\nnbs_path = nbs\ntst_flags = slow gpu\n",
    "amcl_suite/__init__.py": "", "amcl_suite/a/__init__.py": "",
    "amcl_suite/a/low.py": "x = 1", "amcl_suite/a/middle.py": "def f():\n    from . import low",
    "amcl_suite/a/high.py": "from .middle import f", "amcl_suite/a/other.py": "",
    "nbs/index.ipynb": book("x = 1"),
    "nbs/10_a/11_low.ipynb": book("#| default_exp a.low", "#| export\nx = 1"),
    "nbs/10_a/12_page.ipynb": book("from amcl_suite.a.high import f", tags=["parameters"]),
    "nbs/10_a/13_job.ipynb": book("load('scripts/jobs', 'toy')"),
    "scripts/jobs/toy.yaml": "title: A toy", "requirements.lock": "",
    "tests/conftest.py": "", "tests/toys.py": "import amcl_suite.a.other",
    "tests/test_high.py": 'PROGRAM = """\nfrom amcl_suite.a import high\n"""',
    "tests/test_toys.py": "from toys import Project",
    "tests/test_site.py": 'WATCHES = ("nbs", "scripts/*.sh")', "scripts/test.sh": "",
    "scripts/docs.sh": ""}


def git(root, *words):
    who = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, env=os.environ | who)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in a git repository, on a branch of its own."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    git(root, "checkout", "-q", "-b", "work")
    monkeypatch.setenv("AMCL_ROOT", str(root))
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    return root


def picked(root, *changes, **options):
    for name in changes: (root / name).write_text(FILES.get(name, "") + "\n# changed")
    return {Path(name).stem for name in select(root, **options).picked}


EVERY = {"index", "11_low", "12_page", "13_job", "test_high", "test_toys", "test_site"}


@pytest.mark.parametrize("change, expected", [
    (None, set()),
    ("amcl_suite/a/low.py", {"11_low", "12_page", "test_high"}),         # through two others
    ("amcl_suite/a/high.py", {"12_page", "test_high"}),                  # a program that is text
    ("amcl_suite/a/other.py", {"test_toys"}),                            # through a helper of tests
    ("scripts/jobs/toy.yaml", {"13_job"}), ("scripts/docs.sh", {"test_site"}),
    ("tests/test_high.py", {"test_high"}), ("nbs/10_a/new.csv", {"test_site"}),
    ("README.md", set()),
    *[(name, EVERY) for name in ("settings.ini", "requirements.lock", "tests/conftest.py",
                                 "tests/toys.py", "scripts/test.sh")],
])
def test_what_a_change_concerns(project, change, expected):
    assert picked(project, *filter(None, [change])) == expected


def test_an_edited_notebook_runs_and_whoever_watches_it(project):
    (project / "nbs/10_a/11_low.ipynb").write_text(book("#| default_exp a.low"))
    assert picked(project) == {"11_low", "test_site"}


def test_committed_and_deleted_and_new_files_count(project):
    (project / "amcl_suite/a/high.py").unlink()
    git(project, "commit", "-aqm", "gone")
    assert picked(project) == {"12_page", "test_high"}
    (project / "tests/test_new.py").write_text("")
    assert picked(project) == {"12_page", "test_high", "test_new"}
    assert picked(project, base="HEAD") == {"test_new"}


def test_what_the_main_branch_did_since_does_not_count(project):
    git(project, "checkout", "-q", "main")
    (project / "nbs/index.ipynb").write_text(book("x = 2"))
    git(project, "commit", "-aqm", "on main")
    git(project, "checkout", "-q", "work")
    assert picked(project) == set()


def test_scripts_changed_prints_names_and_reasons(project):
    (project / "amcl_suite/a/middle.py").write_text("")
    script = [sys.executable, ROOT / "scripts/changed"]
    done = subprocess.run([*script, "tests"], capture_output=True, text=True, cwd=project)
    assert (done.returncode, done.stdout) == (0, "tests/test_high.py\n"), done.stderr
    assert "1 files differ: 1 of 3 tests have to run" in done.stderr
    assert "test_high.py: uses amcl_suite/a/middle.py" in done.stderr
    done = subprocess.run([*script, "--base", "nowhere"], capture_output=True, text=True, cwd=project)
    assert done.returncode == 2 and not done.stdout and "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


# --- the runner ----------------------------------------------------------------------------------

def run(root, capfd, *words):
    status = main([*words, "--workers", "2"])
    return status, capfd.readouterr().out


@pytest.fixture
def runner(project, monkeypatch):
    for page in project.rglob("*.ipynb"): page.write_text(book("x = 1"))
    import_libraries(("nbdev.test",))
    monkeypatch.setattr("amcl_suite.reproduce.testing.import_libraries", lambda: None)     # nothing heavy here
    return project


@pytest.mark.slow
def test_a_failing_notebook_fails_the_run_and_stops_nothing_else(runner, capfd):
    (runner / "nbs/10_a/12_page.ipynb").write_text(book("y = 7", "assert y == 8, 'seven'"))
    (runner / "nbs/10_a/13_job.ipynb").write_text(book("import os, signal\nos.kill(os.getpid(), 9)"))
    status, out = run(runner, capfd)
    assert status == 1 and "AssertionError: seven" in out and "status -9" in out, out
    assert out.splitlines()[-1] == "[notebooks] 2 passed, 2 failed", out
    assert out.count("FAILED nbs/10_a/12_page.ipynb") == 1 and "[  4/4]" in out
    (runner / "nbs/10_a/12_page.ipynb").write_text(book("y = 8"))
    status, out = run(runner, capfd, "nbs/10_a/12_page.ipynb")
    assert status == 0 and "1 passed, 0 failed" in out, out


def test_flags_and_skipped_notebooks_are_as_in_nbdev_test(runner, capfd):
    page = runner / "nbs/10_a/12_page.ipynb"
    page.write_text(book("#| slow\nraise ValueError('slow')", "#| eval: false\nraise ValueError"))
    assert run(runner, capfd, str(page))[0] == 0
    status, out = run(runner, capfd, str(page), "--flags", "slow")
    assert status == 1 and "ValueError: slow" in out
    title = {"cell_type": "markdown", "metadata": {}, "source": "# Title\n- skip_exec: true"}
    page.write_text(book("raise ValueError").replace('"cells": [', f'"cells": [{json.dumps(title)}, '))
    assert run(runner, capfd, str(page))[0] == 0
    page.write_text(book("raise ValueError"))
    (page.parent / ".notest").touch()
    assert [path.stem for path in choose(runner)] == ["index"]


@pytest.mark.slow
def test_notebooks_are_alone_and_leave_nothing(runner, tmp_path):
    code = ("import os, sys, tempfile\nassert 'left' not in sys.modules\nsys.modules['left'] = sys\n"
            "assert os.getcwd() == {!r}\nprint(tempfile.mkdtemp(), file=sys.__stderr__)\n"
            "open(os.environ['FOLDERS'], 'a').write(tempfile.mkdtemp() + '\\n')")
    for page in choose(runner): page.write_text(book(code.format(str(page.parent))))
    os.environ["FOLDERS"] = str(tmp_path / "folders")
    try: ended = run_notebooks(choose(runner), runner, 1, ended=lambda outcome: None)
    finally: del os.environ["FOLDERS"]
    assert all(outcome.passed for outcome in ended), ended
    folders = (tmp_path / "folders").read_text().split()
    assert len(set(folders)) == 4 and not any(map(os.path.exists, folders))


@pytest.mark.slow
def test_the_longest_of_last_time_starts_first(runner, capfd):
    (runner / "nbs/10_a/13_job.ipynb").write_text(book("import time\ntime.sleep(1.5)"))
    assert run(runner, capfd)[0] == 0
    status, out = run(runner, capfd, "--workers", "1")
    main(["--workers", "1"])
    first = capfd.readouterr().out.splitlines()[0]
    assert "nbs/10_a/13_job.ipynb" in first, first
    assert expected_seconds(runner / "nbs/index.ipynb", runner, {"nbs/index.ipynb": 7}) == 7


def test_fast_leaves_out_pages_of_experiments_and_says_so(runner, capfd):
    (runner / "nbs/10_a/12_page.ipynb").write_text(book("n: int = 1", tags=["parameters"]))
    status, out = run(runner, capfd, "--fast")
    assert status == 0 and "left out by --fast: nbs/10_a/12_page.ipynb" in out, out
    assert out.splitlines()[-1] == "[notebooks] 3 passed, 0 failed, 1 left out"


def test_an_unknown_notebook_is_a_wrong_call(runner, capfd):
    assert main(["nbs/none.ipynb"]) == 2 and "no such notebook" in capfd.readouterr().err


# --- scripts/test.sh -----------------------------------------------------------------------------

@pytest.fixture
def checkout(tmp_path):
    """A folder with scripts/test.sh, and stand-ins for what it calls that note how they are called."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/test.sh", tmp_path / "scripts/test.sh")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("scripts/setup.sh", "scripts/check_notebooks", "scripts/test_notebooks",
                 "scripts/changed", ".venv/bin/python"):
        (tmp_path / name).write_text('#!/bin/bash\necho "$(basename "$0") $*" >> calls\n'
                                     'name=$(basename "$0" .sh)\n[[ $name != changed ]] || echo "$PICKED"\n'
                                     '[[ $name != "$BROKEN" ]] || exit "${STATUS:-1}"\n')
        (tmp_path / name).chmod(0o755)

    def test_sh(*options, broken="", picked="", status="1"):
        (tmp_path / "calls").unlink(missing_ok=True)
        done = subprocess.run(["bash", tmp_path / "scripts/test.sh", *options], text=True,
                              capture_output=True, env=os.environ | {
                                  "BROKEN": broken, "PICKED": picked, "STATUS": status})
        return done.returncode, (tmp_path / "calls").read_text().splitlines(), done.stdout
    return test_sh


@pytest.mark.parametrize("broken", ["", "check_notebooks", "test_notebooks", "python"])
def test_every_ring_runs_and_a_failure_in_any_fails_the_script(checkout, broken):
    status, calls, out = checkout(broken=broken)
    assert status == (1 if broken else 0)
    assert [call.split()[0] for call in calls] == ["setup.sh", "check_notebooks", "test_notebooks", "python"]
    assert calls[2] == "test_notebooks nbs" and calls[3].endswith(" tests")
    assert out.count("FAILED") == (1 if broken else 0) and "summary" in out


def test_options_reach_the_rings(checkout):
    status, calls, out = checkout("--fast")
    assert status == 0 and calls[2] == "test_notebooks --fast nbs" and "-m not slow tests" in calls[3]
    assert "left out by --fast" in out
    status, calls, out = checkout("--changed", "--base", "v1", picked="nbs/1.ipynb\nnbs/2.ipynb")
    assert calls[2:4] == ["changed notebooks --base v1", "test_notebooks nbs/1.ipynb nbs/2.ipynb"]
    status, calls, out = checkout("--changed")
    assert status == 0 and out.count("nothing changed") == 2
    assert not any(call.startswith(("test_notebooks", "python")) for call in calls)
    assert checkout("--changed", broken="changed")[0] == 2     # git can't tell: no silent success
    assert checkout("--changed", "--fast", broken="python", status="5", picked="a")[0] == 0
    assert checkout(broken="python", status="5")[0] == 1       # no test found is a failure otherwise


@pytest.mark.slow
def test_a_group_of_tests_stays_with_one_worker(tmp_path):
    """With pytest 9.2 and xdist 3.8 `--dist loadgroup` takes groups apart, and says nothing."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "tests")
    code = ("import os, time, pytest\n@pytest.mark.parametrize('i', range(3))\ndef test_it(i):\n"
            "    time.sleep(.1)\n    with open('log', 'a') as file:\n        file.write(f'{__name__} "
            "{os.environ[\"PYTEST_XDIST_WORKER\"]}\\n')\n")
    for name in ("site", "slurm", "other"): (tmp_path / f"tests/test_{name}.py").write_text(code)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", "tests"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    workers = {name: {line.split()[1] for line in lines if line.startswith(f"test_{name} ")}
               for name in ("site", "slurm")}
    assert sorted(map(len, workers.values())) == [1, 1] and workers["site"] != workers["slurm"]
    assert len(lines) == 9
