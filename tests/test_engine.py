"""The reproduction engine under everything that batches meet: bad jobs, failures, kills, full disks, company."""
import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from amcl_suite.core.settings import project_root
from amcl_suite.reproduce.cli import main
from amcl_suite.reproduce.jobs import JobError, load_job, notebook_parameters
from amcl_suite.reproduce.report import collect
from amcl_suite.reproduce.runner import is_locked, standing
from toys import RESULT, WALK, Project, wait_until, walk_end

TOY = "- {notebook: nbs/10_toy.ipynb, grid: {n: [%s]}}"


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    for name, value in made.env.items(): monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte, with a function that resizes it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", disk], capture_output=True)
    if done.returncode: pytest.skip("mounting a small file system is not allowed here")
    yield disk, lambda option: subprocess.run(["mount", "-o", f"remount,{option}", disk], check=True)
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("entry, words", [
    ("{notebook: nbs/10_toy.ipynb, parameters: {m: 1}}", "unknown parameter 'm'"),
    ("{notebook: nbs/10_toy.ipynb, grid: {nn: [1]}}", "did you mean 'n'?"),
    ("{notebook: nbs/10_toy.ipynb, parameters: {n: two}}", "expected int, got 'two'"),
    ("{notebook: nbs/10_toy.ipynb, parameters: {n: 1.5}}", "expected int, got 1.5"),
    ("{notebook: nbs/10_toy.ipynb, parameter: {n: 1}}", "unknown key, did you mean 'parameters'?"),
    ("{notebook: nbs/10_toy.ipynb, data: [yatch]}", "did you mean 'yacht'?"),
    ("{notebook: nbs/11_toy.ipynb}", "can't be read"),
    ("{notebook: ../10_toy.ipynb}", "leads out of the project"),
    ("{notebook: nbs/10_toy.ipynb, name: ../../x}", "can't name a folder"),
    ("{notebook: nbs/10_toy.ipynb, parameters: {out_dir: /tmp/x}}", "out_dir is set by the runner"),
    ("{notebook: nbs/10_toy.ipynb, grid: {n: [1, 1]}}", "repeats"),
    ("{notebook: nbs/10_toy.ipynb}\n- {notebook: nbs/10_toy.ipynb}", "same notebook, same parameters"),
    ("!!python/object/apply:os.getcwd []", "not valid YAML"),
])
def test_bad_jobs_are_refused_before_anything_starts(project, capsys, entry, words):
    project.notebook(RESULT)
    project.job(f"- {entry}")
    with pytest.raises(SystemExit) as end: main(["run", "toy"])
    status, text = end.value.code, "".join(capsys.readouterr())
    assert status == 2 and words in text, text
    assert len(text.strip().splitlines()) == 1 and "Traceback" not in text
    assert not list(project.runs.glob("toy/*"))


def test_parameters_are_read_as_papermill_reads_them():
    import papermill
    notebooks = [p for p in (project_root() / "nbs").rglob("[0-9]*.ipynb") if '"parameters"' in p.read_text()
                 and any("parameters" in c["metadata"].get("tags", []) for c in json.loads(p.read_text())["cells"])]
    for path in notebooks:
        ours, theirs = notebook_parameters(path), papermill.inspect_notebook(path)
        assert list(ours) == list(theirs), path
        for name, parameter in ours.items():
            assert parameter.type == theirs[name]["inferred_type_name"], (path, name)
            assert repr(parameter.default) == repr(eval(theirs[name]["default"])), (path, name)


def test_failures_stop_nothing_else(project):
    checks = ('import os\nassert os.environ["OMP_NUM_THREADS"] == "1"\n'
              'if n < 1: raise ValueError(f"n: expected >= 1, got {n}")\nif n == 7: raise SystemExit(0)\n')
    project.notebook(checks + RESULT)
    project.job(TOY % "0, 3, 7")
    status, text = project.amcl("run", "toy")
    assert status == 1, text
    assert "failed: toy/toy-0: ValueError: n: expected >= 1, got 0" in text
    assert "failed: toy/toy-7: the notebook left no results" in text
    assert f"notebook: {project.folder('toy-0') / 'executed.ipynb'}" in text
    assert "1 finished, 2 failed, 0 skipped" in text
    good, bad = project.records()["toy-3"], project.records()["toy-0"]
    assert [good["state"], bad["state"]] == ["finished", "failed"]
    assert good["rows"][0]["value"] == 9 and good["parameters"] == {"n": 3} and good["seeds"] == [3]
    assert good["seconds"] > 0 and good["threads"] == 1 and good["peak_memory_mb"] > 10
    assert good["environment"]["packages"]["papermill"] and good["environment"]["cores"]
    assert "ValueError" in (project.folder("toy-0") / "executed.ipynb").read_text()
    assert not list(project.runs.rglob("*.pkl"))                         # nothing pickled stays
    status, text = project.amcl("run", "toy", "--only", "n=3")           # finished: nothing to do
    assert status == 0 and "0 finished, 0 failed, 1 skipped" in text


def test_only_changes_that_matter_run_again(project):
    counting = "with open(out_dir + '/../count.txt', 'a') as file: file.write('x')\n"
    project.notebook(counting + RESULT)
    project.job("- {notebook: nbs/10_toy.ipynb, name: toy}")
    count = project.runs / "toy" / "count.txt"
    assert project.amcl("run", "toy")[0] == 0 and count.read_text() == "x"
    project.notebook("# a remark\n" + counting + RESULT)
    assert "1 skipped" in project.amcl("run", "toy")[1] and count.read_text() == "x"
    project.notebook(counting + RESULT.replace("n * n", "n * n + 1"))
    assert "1 finished" in project.amcl("run", "toy")[1] and count.read_text() == "xx"
    assert sorted(r["rows"][0]["value"] for r in map(json.loads, (
        p.read_text() for p in project.runs.glob("toy/*/record.json")))) == [4, 5]
    run, = load_job("toy").runs
    project.job("- {notebook: nbs/10_toy.ipynb, name: toy, parameters: {n: 5}}")
    changed, = load_job("toy").runs
    assert standing(changed.folder, changed.hash).state == "new" != standing(run.folder, run.hash).state


def family(process):
    """Return a process with all its descendants."""
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def test_interrupted_and_killed_runs_resume_to_the_same_result(project):
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 120}}")
    step = 0

    def start_until(steps):
        engine = project.start("run", "toy")
        def there():
            nonlocal step
            found = list(project.runs.glob("toy/*/checkpoints/state.json"))
            step = json.loads(found[0].read_text())["step"] if found else 0
            assert engine.poll() is None, engine.communicate()
            return step >= steps
        wait_until(there)
        return engine, family(engine)

    engine, members = start_until(20)                    # Ctrl-C: workers end with the engine
    engine.send_signal(signal.SIGINT)
    out, _ = engine.communicate(timeout=30)
    assert engine.returncode == 130 and "1 interrupted" in out, out
    assert not psutil.wait_procs(members, timeout=5)[1]
    assert project.records()["walk"]["state"] == "pending" and not is_locked(project.folder("walk"))
    assert "resuming" not in out

    engine, members = start_until(step + 15)             # the whole machine goes down
    for member in members: member.kill()
    out, _ = engine.communicate(timeout=30)
    assert "resuming walk" in out
    wait_until(lambda: not is_locked(project.folder("walk")))
    assert project.records()["walk"]["state"] == "running"
    run, = load_job("toy").runs
    assert standing(run.folder, run.hash).state == "interrupted"

    engine, members = start_until(step + 15)             # one worker is killed, such as for its memory
    psutil.Process(project.records()["walk"]["pid"]).kill()
    out, _ = engine.communicate(timeout=30)
    assert engine.returncode == 1 and "the worker was killed" in out, out
    assert not psutil.wait_procs(members, timeout=5)[1]  # its kernel went with it

    status, text = project.amcl("run", "toy")
    assert status == 0, text
    starts = [int(line) for line in (project.folder("walk") / "starts.txt").read_text().split()]
    assert len(starts) == 4 and starts[0] == 0 and starts == sorted(set(starts)), starts
    assert project.records()["walk"]["rows"][0]["value"] == walk_end(120)
    assert project.records()["walk"]["attempts"] == 4


def test_two_engines_run_nothing_twice(project):
    logging = "import time\nwith open(out_dir + '/../log.txt', 'a') as file: file.write(f'{n} ')\ntime.sleep(1)\n"
    project.notebook(logging + RESULT)
    project.job(TOY % "1, 2")
    engines = [project.start("run", "toy", "--workers", "1") for _ in range(2)]
    texts = ["".join(e.communicate(timeout=90)) for e in engines]
    assert [e.returncode for e in engines] == [0, 0], texts
    assert sorted((project.runs / "toy" / "log.txt").read_text().split()) == ["1", "2"]
    assert any("is running it" in text or "finished by another process" in text for text in texts), texts
    assert all(r["attempts"] == 1 and r["state"] == "finished" for r in project.records().values())
    assert sum(int(text.split(" finished,")[0].split()[-1]) for text in texts) == 2, texts


def test_full_disk_loses_nothing(project, small_disk):
    disk, resize = small_disk
    project.runs = disk
    project.env["AMCL_RUNS_PATH"] = str(disk)
    large = "import numpy\nrun.arrays(x=numpy.random.default_rng(0).random(n * 20_000))\n_ = run.finish()\n"
    project.notebook(RESULT.replace("_ = run.finish()\n", large))
    project.job(TOY % "1, 20")                           # 160 kB fit, 3.2 MB don't
    status, text = project.amcl("run", "toy", "--workers", "1")
    assert status == 1 and "1 finished, 1 failed" in text, text
    assert "is full: free some space there" in text and str(disk) in text, text
    assert project.records()["toy-1"]["state"] == "finished"
    before = (project.folder("toy-1") / "record.json").read_bytes()
    resize("size=30M")
    status, text = project.amcl("run", "toy")
    assert status == 0 and "1 finished, 0 failed, 1 skipped" in text, text
    assert (project.folder("toy-1") / "record.json").read_bytes() == before


def test_a_disk_without_any_room_is_found_before_the_first_run(project, small_disk):
    disk, resize = small_disk
    project.env["AMCL_RUNS_PATH"] = str(disk)
    project.notebook(RESULT)
    project.job(TOY % "1")
    with pytest.raises(OSError): (disk / "filler").write_bytes(b"x" * 2_000_000)
    status, text = project.amcl("run", "toy")
    assert status == 2 and f"the disk of {disk} is full" in text and "Traceback" not in text, text
    resize("ro")
    status, text = project.amcl("run", "toy")
    assert status == 2 and f"the folder {disk} can't be written" in text and "AMCL_RUNS_PATH" in text, text


def test_unusable_output_folder(project, tmp_path):
    (tmp_path / "file").write_text("")
    project.env["AMCL_RUNS_PATH"] = str(tmp_path / "file" / "runs")
    project.notebook(RESULT)
    project.job(TOY % "1")
    status, text = project.amcl("run", "toy")
    assert status == 2 and "can't write to" in text and "AMCL_RUNS_PATH" in text and "Traceback" not in text


def test_records_of_the_future_and_of_nobody(project):
    project.notebook(RESULT)
    project.job(TOY % "1")
    run, = load_job("toy").runs
    run.folder.mkdir(parents=True)
    (run.folder / "record.json").write_text('{"schema": 99}')
    assert "newer amcl_suite" in standing(run.folder, run.hash).remark
    (run.folder / "record.json").write_bytes(b"\x80\x04gibberish")
    assert "not a record" in standing(run.folder, run.hash).remark
    found = collect(("toy",))
    assert not found.records and "not a record" in found.unreadable[0]


@pytest.mark.parametrize("runs", [1000])
def test_a_thousand_runs_are_planned_with_one_look_at_the_notebook(project, runs, monkeypatch):
    project.notebook(RESULT)
    project.job(TOY % ", ".join(map(str, range(runs))))
    reads, original = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: reads.append(self.name) or original(self, *a, **k))
    planned = load_job("toy").runs
    assert len({r.hash for r in planned}) == runs
    assert reads.count("10_toy.ipynb") <= 2 and len(reads) < 100
