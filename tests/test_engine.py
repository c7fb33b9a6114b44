"""The reproduction engine under everything that batches meet: bad jobs, failures, kills, full disks, company."""
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from amcl_suite.reproduce.cli import main
from amcl_suite.reproduce.jobs import load_job
from amcl_suite.reproduce.report import collect
from amcl_suite.core.locks import is_locked
from amcl_suite.reproduce.worker import standing
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
    ("{notebook: nbs/10_toy.ipynb, gpus: two}", "gpus: Input should be a valid integer, got 'two'"),
    ("{notebook: nbs/10_toy.ipynb, processes: 0}", "processes: Input should be greater than or equal"),
    ("{notebook: nbs/10_toy.ipynb, memory_gb: -1}", "memory_gb: Input should be greater than 0"),
    ("{notebook: nbs/10_toy.ipynb, timeout_minuts: 3}", "did you mean 'timeout_minutes'?"),
    ("{notebook: nbs/10_toy.ipynb}\nslurm: {partitoin: x}", "did you mean 'partition'?"),
])
def test_bad_jobs_are_refused_before_anything_starts(project, capsys, entry, words):
    project.notebook(RESULT)
    project.job(f"- {entry}")
    with pytest.raises(SystemExit) as end: main(["run", "toy"])
    status, text = end.value.code, "".join(capsys.readouterr())
    assert status == 2 and words in text, text
    assert len(text.strip().splitlines()) == 1 and "Traceback" not in text
    assert not list(project.runs.glob("toy/*"))


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_engine_is_started_again_beside_its_workers(project):
    logging = ("import time\nwith open(out_dir + '/../log.txt', 'a') as file: file.write(f'{n} ')\n"
               "time.sleep(3)\n")
    project.notebook(logging + RESULT)
    project.job(TOY % "1, 2, 3")
    first = project.start("run", "toy", "--workers", "2")
    log = project.runs / "toy" / "log.txt"
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 2)
    first.kill()
    first.wait()                                         # its pipes stay open in the workers
    second = project.start("run", "toy", "--workers", "2")
    time.sleep(1.0)
    assert len(log.read_text().split()) == 2             # the workers of the first still count
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0 and "is running it" in out, out + err
    assert "1 finished, 0 failed, 2 skipped" in out, out
    assert sorted(log.read_text().split()) == ["1", "2", "3"]
    assert {r["attempts"] for r in project.records().values()} == {1}
    assert not (project.runs / ".submitit").exists()     # what the first left is cleared away


def test_a_job_that_slurm_has_forgotten_keeps_nobody_waiting(project, monkeypatch):
    from amcl_suite.reproduce import engine, turns
    project.notebook(RESULT)
    project.job(TOY % "1")
    run, = load_job("toy").runs
    note = {"where": "slurm", "id": "99", "logs": "", "token": "", "host": ""}
    run.folder.mkdir(parents=True)
    (run.folder / "submission.json").write_text(json.dumps(note))
    monkeypatch.setattr(turns, "slurm_states", lambda patience=0: None)     # no answer
    with pytest.raises(ValueError, match="Slurm doesn't answer"): engine.Engine([run]).run()
    monkeypatch.setattr(turns, "slurm_states", lambda patience=0: {})       # no such job any more
    assert [o.state for o in engine.Engine([run]).run()] == ["finished"]


@pytest.mark.slow
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


CRASH = """
import os, pathlib
tries = pathlib.Path(out_dir, "..", f"tries-{n}.txt")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if n == 1 and len(tries.read_text()) < 3: os.kill(os.getpid(), 9)
if n == 2: raise RuntimeError("an error of the notebook")
"""


@pytest.mark.slow
def test_crashes_are_retried_and_errors_are_not(project):
    project.notebook(CRASH + RESULT)
    project.job(TOY % "1, 2")
    status, text = project.amcl("run", "toy", "--retries", "1", "--workers", "1")
    assert status == 1 and "0 finished, 2 failed" in text, text
    assert "trying again (1 of 1)" in text and "the notebook's process died" in text, text
    kinds = {name: r["error"]["kind"] for name, r in project.records().items()}
    assert kinds == {"toy-1": "crash", "toy-2": "error"}
    tries = lambda n: (project.runs / "toy" / f"tries-{n}.txt").read_text()
    assert (tries(1), tries(2)) == ("xx", "x")
    status, text = project.amcl("run", "toy", "--only", "n=1")
    assert status == 0 and tries(1) == "xxx", text
    record = project.records()["toy-1"]
    assert record["attempts"] == 3 and record["seconds_all"] > record["seconds"] > 0


@pytest.mark.slow
def test_a_run_that_never_ends_is_ended_and_can_be_resumed(project):
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 200}}")
    status, text = project.amcl("run", "toy", "--timeout", "0.07", "--retries", "3")
    assert status == 1 and "timed out after 0.07 min" in text and "trying again" not in text, text
    record = project.records()["walk"]
    assert record["error"]["kind"] == "timeout" and record["attempts"] == 1
    status, text = project.amcl("run", "toy")
    assert status == 0, text
    starts = (project.folder("walk") / "starts.txt").read_text().split()
    assert len(starts) == 2 and int(starts[1]) > 0
    assert project.records()["walk"]["rows"][0]["value"] == walk_end(200)


def test_a_notebook_that_catches_the_end_has_still_timed_out(project):
    project.notebook("import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: pass\n" + RESULT)
    project.job(TOY % "1")
    status, text = project.amcl("run", "toy", "--timeout", "0.05")
    record = project.records()["toy-1"]
    assert status == 1 and record["state"] == "failed" and record["error"]["kind"] == "timeout", text
    assert record["rows"] == []                          # what it left is not whole


def test_a_magic_doesnt_hide_what_a_notebook_imports(project):
    job, magic = TOY % "1", "%matplotlib inline\n"
    def hash_of(code):
        project.notebook(code)
        project.job(job)
        return load_job("toy").runs[0].hash
    one, other = "from amcl_suite.mcl import losses\n", "from amcl_suite.mcl import theory\n"
    assert hash_of(magic + one) != hash_of(magic + other)


@pytest.mark.parametrize("entry, words", [
    ("parameters: {n: 2020-01-01}", "can't be a parameter; quote it"),
    ("minutes: .inf", "minutes"), ("minutes: -3.0", "minutes"), ("memory_gb: .nan", "memory_gb"),
    ("parameters: {n: !!binary aGk=}", "can't be a parameter"),
    ('parameters: {n: "a\\0b"}', "what no file can hold"),
])
def test_values_that_no_record_can_hold_are_refused(project, capsys, entry, words):
    project.notebook(RESULT, parameters='n: Any = 2\nout_dir: str = ""')
    project.job("- {notebook: nbs/10_toy.ipynb, %s}" % entry)
    with pytest.raises(SystemExit) as end: main(["show", "toy"])
    text = "".join(capsys.readouterr())
    assert end.value.code == 2 and words in text and len(text.strip().splitlines()) == 1, text


@pytest.mark.parametrize("cell", ["n: int = = 2", "n = (1", "%matplotlib inline", "n: int[3] = 2"])
def test_broken_parameters_cells_are_named(project, capsys, cell):
    project.notebook(RESULT, parameters=cell + '\nout_dir: str = ""')
    project.job("- {notebook: nbs/10_toy.ipynb, parameters: {n: 3}}")
    with pytest.raises(SystemExit) as end: main(["show", "toy"])
    text = "".join(capsys.readouterr())
    assert end.value.code == 2 and "toy" in text and "Traceback" not in text, text
    with pytest.raises(SystemExit) as end: main(["status"])          # and don't hide other jobs
    assert end.value.code == 0 and "can't be run" in capsys.readouterr().out


def test_merge_keys_of_yaml_work(project):
    project.notebook(RESULT)
    project.job("- &base {notebook: nbs/10_toy.ipynb, parameters: {n: 3}, minutes: 2.0}\n"
                "- {<<: *base, parameters: {n: 4}}")
    assert [(r.parameters["n"], r.minutes) for r in load_job("toy").runs] == [(3, 2.0), (4, 2.0)]


@pytest.mark.slow
def test_runs_without_gpus_overtake_one_that_waits_for_them(project):
    project.env["CUDA_VISIBLE_DEVICES"] = "0,1"
    project.notebook("import time\nbegin = time.time()\ntime.sleep(1.5)\n"
                     "with open(out_dir + '/../log.txt', 'a') as f: f.write(f'{n} ')\n" + RESULT)
    project.job(TOY.replace("}}", "}, gpus: 2, minutes: 9.0}") % "1, 2" + "\n" +
                TOY.replace("}}", "}, gpus: 0}") % "3, 4")
    status, text = project.amcl("run", "toy", "--workers", "2")
    assert status == 0, text
    assert text.index("starting toy-3") < text.index("starting toy-2"), text
    assert text.index("starting toy-2") > text.index("finished toy-1"), text


def test_a_notebook_that_prints_without_end(project):
    project.notebook('for _ in range(100): print("x" * 999_999)\nprint("more")\n' + RESULT)
    project.job("- {notebook: nbs/10_toy.ipynb, name: toy}")
    status, text = project.amcl("run", "toy")
    assert status == 0 and "1 finished" in text, text
    executed = project.folder("toy") / "executed.ipynb"
    assert executed.stat().st_size < 6_000_000 and "output cut after" in executed.read_text()


@pytest.mark.slow
def test_gpus_are_dealt_and_no_two_runs_share_their_own(project):
    project.env["CUDA_VISIBLE_DEVICES"] = "0,1,GPU-ab"
    seeing = ("import json, os, time\nbegin = time.time()\ntime.sleep(0.5)\n"
              "with open(out_dir + '/../log.txt', 'a') as file: file.write(json.dumps(["
              "os.environ['CUDA_VISIBLE_DEVICES'], begin, time.time()]) + '\\n')\n")
    project.notebook(seeing + RESULT)
    project.job(TOY.replace("}}", "}, gpus: 2}") % "1, 2" + "\n" +
                TOY.replace("}}", "}, gpus: 1}") % "3, 4, 5")
    status, text = project.amcl("run", "toy", "--workers", "3")
    assert status == 0, text
    seen = [json.loads(line) for line in (project.runs / "toy" / "log.txt").read_text().splitlines()]
    assert sorted(len(gpus.split(",")) for gpus, *_ in seen) == [1, 1, 1, 2, 2]
    assert {g for gpus, *_ in seen for g in gpus.split(",")} == {"0", "1", "GPU-ab"}
    for i, (one, begin, end) in enumerate(seen):
        for other, start, stop in seen[:i]:
            if begin < stop and start < end: assert not set(one.split(",")) & set(other.split(","))
    status, text = project.amcl("run", "toy", "--gpus", "4", "--force")
    assert status == 2 and "asks for 4 GPUs, this machine has 3: start it with --gpus 3" in text, text
    assert project.records()["toy-1"]["gpus"] and all(
        r["state"] == "finished" for r in project.records().values())


def test_clock_jumps_change_nothing(project, monkeypatch):
    """An hour back, a day ahead: durations and time left come from a clock that only goes on."""
    from amcl_suite.reproduce import engine
    project.notebook("import time\nrunning = time.monotonic()\n" + RESULT)
    project.job(TOY % "1, 2")
    true_time, jumps = time.time, iter([0, -3600, 86400, -3600, 7200] * 10_000)
    monkeypatch.setattr(time, "time", lambda: true_time() + next(jumps))
    outcomes = engine.Engine(load_job("toy").runs, workers=2).run()
    assert [o.state for o in outcomes] == ["finished"] * 2
    assert all(0 < o.seconds < 60 for o in outcomes)
    assert all(0 < r["seconds_all"] < 60 for r in project.records().values())


@pytest.mark.slow
def test_many_tiny_runs_leave_nothing_behind(project):
    n_runs = int(os.environ.get("AMCL_TEST_RUNS", "60"))   # 200 take five minutes
    project.notebook(RESULT)
    project.job("- {notebook: nbs/10_toy.ipynb, grid: {n: %s}}" % list(range(n_runs)))
    engine = project.start("run", "toy", "--workers", "2")
    processes, most = set(), 0
    while engine.poll() is None:
        members = family(engine)
        processes |= set(members)
        most = max(most, len(members))
        time.sleep(0.2)
    out, err = engine.communicate()
    assert engine.returncode == 0 and f"{n_runs} finished, 0 failed" in out, out + err
    assert most <= 1 + 2 * 4, most                       # engine; controller, worker, kernel, helper
    assert not psutil.wait_procs(processes, timeout=5)[1]
    assert not (project.runs / ".submitit").exists() and len(project.records()) == n_runs


@pytest.mark.slow
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
    status, text = project.amcl("run", "toy")            # and isn't overwritten
    assert status == 1 and "newer amcl_suite" in text and "--force" in text, text
    assert json.loads((run.folder / "record.json").read_text()) == {"schema": 99}
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
    own = [name for name in reads if name != "entry_points.txt"]     # of installed packages, once a process
    assert own.count("10_toy.ipynb") <= 2 and len(own) < 100
