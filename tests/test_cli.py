"""The command line: what it prints, what it writes, and how it ends."""
import base64
import json
import re
import shutil
import subprocess
import sys

import pytest
from amcl_suite.core.files import read_json, write_json_atomic
from amcl_suite.core.locks import is_locked
from amcl_suite.core.records import SCHEMA_VERSION
from amcl_suite.reproduce.cli import main
from amcl_suite.reproduce.jobs import load_job
from amcl_suite.reproduce.worker import standing
from toys import RESULT, WALK, Project, wait_until

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
GIF = base64.b64decode("R0lGODlhAQABAIAAAAUEBAAAACwAAAAAAQABAAACAkQBADs=")


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    for name, value in made.env.items(): monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    made.notebook(RESULT)
    made.job("- {notebook: nbs/10_toy.ipynb, grid: {n: [1, 2]}, minutes: 3}")
    return made


@pytest.fixture
def amcl(project, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end: main(list(arguments))
        return end.value.code, *capsys.readouterr()
    return call


def leave_record(run, **changes):
    """Write a record as a worker would, with one figure and one animation."""
    record = {"schema": SCHEMA_VERSION, "job": run.job, "name": run.name, "notebook": run.notebook, "parameters": run.parameters,
              "hash": run.hash, "state": "finished", "seconds": 60.0, "seconds_all": 60.0, "data": {"yacht": "ab" * 32, "year": ""},
              "started": "2026-01-01T00:00:00+0000", "environment": {"version": "1", "commit": "c0ffee"},
              "notes": ["no data folder: scikit-learn's diabetes set stands in"],
              "figures": [{"name": "dot", "file": "figures/dot.png", "caption": "A dot < a line"},
                          {"name": "move", "file": "figures/move.gif", "caption": "A moving dot"}],
              "rows": [{"table": "Table 1", "dataset": d, "method": m, "metric": "RMSE", "value": float("nan") if d == "wine"
                        else 1.25, "unit": "points", "better": "lower", "std": 0.5, "stderr": None, "n": 20, "scale": "full",
                        "paper": 1.5, "paper_spread": 0.1, "paper_source": "Table 1"}
                       for d in ("yacht", "wine") for m in ("MCL", "aMCL")]}
    write_json_atomic(run.folder / "record.json", record | changes)
    (run.folder / "figures").mkdir(exist_ok=True)
    (run.folder / "figures" / "dot.png").write_bytes(PIXEL)
    (run.folder / "figures" / "move.gif").write_bytes(GIF)


def test_list_and_show(project, amcl):
    project.job("- {notebook: nbs/missing.ipynb}", "broken")
    status, out, _ = amcl("list")
    assert status == 0 and "A toy" in out and "6 min" in out and "can't be run" in out
    leave_record(load_job("toy").runs[0])
    status, out, _ = amcl("show", "toy")
    assert status == 0 and "n=2" in out and re.search(r"toy-1 .*finished", out) and re.search(r"toy-2 .*new", out)
    assert re.search(r"toy-1 .*60 s", out), "the time it took before"
    assert amcl("show", "broken")[0] == 2


def test_run_then_report(project, amcl):
    status, out, _ = amcl("run", "toy", "--only", "n=2")
    assert status == 0 and "1 finished, 0 failed, 0 skipped" in out
    status, out, _ = amcl("status")
    assert status == 0 and re.search(r"toy\W+1\W+0\W+0\W+0\W+0\W+1", out), out
    status, out, _ = amcl("report", "toy")
    assert status == 0 and "4.0" in out and str(project.runs / "toy" / "report.html") in out


def test_report_is_whole_and_asks_nobody(project, amcl):
    good, bad = load_job("toy").runs
    leave_record(good)
    leave_record(bad, state="failed", error={"line": "ValueError: n <too> large"}, environment={"version": "2"})
    status, out, _ = amcl("report")
    assert status == 0 and "RMSE" in out and "diabetes" in out
    page = (project.runs / "report.html").read_text()
    assert page.count("<script") == 1 and not re.search(r"https?://|<link|@import|url\(", page)
    assert page.count("data:image/png") == 2 and page.count("data:image/gif") == 1   # picture, animation and its still
    assert "A dot &lt; a line" in page and "n &lt;too&gt; large" in page and "<too>" not in page
    assert page.index("diabetes") < page.index('id="runs-without-results"') < page.index("<table")
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    assert not re.findall(r"<img(?![^>]*alt=)", page)
    text = (project.runs / "report.md").read_text()
    assert f"toy/{good.folder.name}/figures/dot.png" in text and "| yacht |" in text
    import pyarrow.parquet
    table = pyarrow.parquet.read_table(project.runs / "results.parquet").to_pydict()
    assert table["parameter.n"] == [1] * 4 and table["value"][0] == 1.25 and table["commit"] == ["c0ffee"] * 4


def test_versions_are_not_mixed_silently(project, amcl):
    first, second = load_job("toy").runs
    leave_record(first)
    leave_record(second, environment={"version": "2", "commit": "decade+changes"})
    out = amcl("report", "toy")[1]
    assert "several versions of the code: 1 c0ffee, 2 decade+changes" in out and "not committed" in out


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(project, amcl, tmp_path, scheme):
    leave_record(load_job("toy").runs[0])
    amcl("report", "toy")
    log = subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
                          *(["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []),
                          f"--user-data-dir={tmp_path / 'profile'}", f"file://{project.runs}/toy/report.html"],
                         capture_output=True, text=True, timeout=60)
    assert "A moving dot" in log.stdout
    assert "CONSOLE" not in log.stderr, log.stderr          # nothing refused by the policy, nothing missing


def test_data_commands(project, amcl, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    broken = folder / "UCI_Datasets" / "yacht" / "data" / "data.txt"
    broken.parent.mkdir(parents=True)
    broken.write_text("1 2 3")
    monkeypatch.setenv("AMCL_DATA", str(folder))
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    status, out, _ = amcl("data", "list")
    assert status == 0 and "yacht" in out and "not here" in out
    status, out, _ = amcl("data", "check", "yacht")
    assert status == 1 and "damaged" in out
    status, _, err = amcl("data", "check", "yatch")
    assert status == 2 and "did you mean 'yacht'" in err
    status, out, _ = amcl("data", "fetch", "year")
    assert status == 1 and "can't be downloaded" in out
    status, out, _ = amcl("doctor")
    assert status == 1 and "Python" in out and "GB free" in out and re.search(r"(?s)yacht\W+incomplete: .*damaged", out)


@pytest.mark.parametrize("arguments, words", [
    (("run",), "Missing argument"), (("run", "toi"), "did you mean 'toy'?"), (("run", "toy", "--wrokers", "2"), "No such option"),
    (("run", "toy", "--workers", "0"), "--workers: expected"), (("run", "toy", "--workers", "many"), "--workers: expected"),
    (("run", "toy", "--only", "n"), "expected KEY=VALUE"), (("run", "toy", "--only", "m=1"), "unknown key 'm'"),
    (("run", "toy", "--only", "n=7"), "no run has n=7"), (("report", "toy"), "no records of toy"), (("report",), "no records of any job"), (("sing",), "No such command"),
    (("run", "toy", "--where", "slrum"), "did you mean 'slurm'?"),
    (("run", "toy", "--detach"), "--detach: only with --where slurm"),
    (("run", "toy", "--timeout", "-1"), "greater than 0, got -1.0"),
    (("run", "toy", "--gpus", "-1"), "gpus: Input should be"), (("cancel", "toi"), "did you mean"),
    (("run", "toy", "--retries", "-1"), "'--retries'"), (("status", "toy", "--every", "0"), "'--every'"),
])
def test_wrong_calls_are_one_line_and_status_2(project, amcl, arguments, words):
    status, out, err = amcl(*arguments)
    assert status == 2 and words in err and len(err.strip().splitlines()) == 1 and not out


def test_help_is_light():
    code = ("import sys\nfrom amcl_suite.reproduce.cli import main\ntry: main(['--help'])\n"
            "except SystemExit: print([m for m in ('torch', 'papermill', 'pandas', 'pydantic', 'submitit', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "doctor" in done.stdout and done.stdout.strip().endswith("[]"), done.stdout


def test_dry_run_estimates_and_starts_nothing(project, amcl):
    project.job("- {notebook: nbs/10_toy.ipynb, grid: {n: [1, 2, 3]}, minutes: 30, gpus: 0}")
    first = load_job("toy").runs[0]
    leave_record(first, seconds_all=120.0, hash="0" * 64)     # older code: a duration
    (first.folder / "record.json").rename(project.runs / "record.json")
    older = project.runs / "toy" / "toy-1-00000000"
    older.mkdir()
    (project.runs / "record.json").rename(older / "record.json")
    status, out, _ = amcl("run", "toy", "--dry-run", "--workers", "2")
    assert status == 0 and "3 runs to do (0 done, 1 timed before): about 62 min of worker time" in out, out
    assert "31 min of wall time with 2 workers here" in out, out
    status, out, _ = amcl("run", "toy", "--dry-run", "--workers", "1", "--gpus", "0", "--only", "n=2")
    assert status == 0 and "1 run to do" in out and "0 GPUs" in out, out
    assert not list(project.runs.glob("toy/toy-2-*/record.json"))


def test_status_can_be_watched_until_all_is_settled(project, amcl):
    project.notebook("import time\ntime.sleep(2)\n" + RESULT)
    engine = project.start("run", "toy", "--workers", "2")
    wait_until(lambda: any(is_locked(p) for p in project.runs.glob("toy/*")))
    status, out, _ = amcl("status", "toy", "--watch", "--every", "0.3")
    assert status == 0 and re.search(r"toy\W+2\W+0\W+0\W+0\W+0\W+0", out), out
    engine.communicate(timeout=30)
    assert engine.returncode == 0


def test_clean_removes_results_only_when_told_twice(project, amcl):
    first, second = load_job("toy").runs
    leave_record(first)
    leave_record(second, state="failed", error={"line": "x", "kind": "error"})
    changed = project.runs / "toy" / "toy-9-99999999"
    shutil.copytree(first.folder, changed)
    record = read_json(changed / "record.json")
    write_json_atomic(changed / "record.json", record | {"hash": "9" * 64})
    status, out, _ = amcl("clean", "toy")
    assert status == 0 and "removed failed" in out and not second.folder.exists(), out
    status, out, _ = amcl("clean", "--superseded")
    assert "--yes removes it" in out and changed.exists() and first.folder.exists(), out
    status, out, _ = amcl("clean", "--superseded", "--yes")
    assert "removed superseded" in out and not changed.exists() and first.folder.exists(), out
    status, out, _ = amcl("clean", "--all")
    assert first.folder.exists() and "1 kept that could go" in out, out
    status, out, _ = amcl("clean", "--all", "--yes")
    assert status == 0 and not first.folder.exists() and "removed finished" in out, out
    status, _, err = amcl("clean", "toi")
    assert status == 2 and "did you mean 'toy'" in err


def test_workers_of_a_killed_engine_can_be_cancelled(project, amcl):
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 5000}}")
    engine = project.start("run", "toy")
    wait_until(lambda: list(project.runs.glob("toy/*/checkpoints/state.json")))
    engine.kill()
    engine.wait()
    status, out, _ = amcl("cancel", "toy")
    assert status == 0 and "ended walk: process" in out, out
    run, = load_job("toy").runs
    wait_until(lambda: not is_locked(run.folder))
    assert standing(run.folder, run.hash).state == "interrupted"
