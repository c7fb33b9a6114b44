"""Faults that the engine, its records and its reports once had, by their numbers: each stays mended."""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from amcl_suite.core.files import write_json_atomic
from amcl_suite.core.reading import read_record, record_faults
from amcl_suite.core.records import SCHEMA_VERSION, make_row, row_faults
from amcl_suite.reproduce import cli, engine as engines
from amcl_suite.reproduce.cli import main
from amcl_suite.reproduce.display import LiveTable, live_table, progress_text, seconds_left
from amcl_suite.reproduce.engine import Engine, Live
from amcl_suite.reproduce.submissions import read_submission, stale_logs
from amcl_suite.reproduce.executors import Handle
from amcl_suite.reproduce.housekeeping import chosen, leftovers, remove
from amcl_suite.reproduce.jobs import load_job
from amcl_suite.reproduce.places import JobError
from amcl_suite.reproduce.report import collect, result_groups, tidy_rows
from amcl_suite.reproduce.worker import Task, execute, seconds_spent, standing
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import RESULT, Project, wait_until


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Project(tmp_path)
    for name, value in made.env.items(): monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    made.notebook(RESULT)
    made.job("- {notebook: nbs/10_toy.ipynb, grid: {n: [1, 2]}}")
    return made


@pytest.fixture
def amcl(project, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end: main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return end.value.code, out + err
    return call


def record_of(run, **changes):
    """Return a record of a finished run as its worker would write it."""
    return {"schema": SCHEMA_VERSION, "job": run.job, "name": run.name, "notebook": run.notebook,
            "parameters": run.parameters, "hash": run.hash, "state": "finished", "token": "of another", "attempts": 1,
            "started": "2026-01-01T00:00:00+0000", "where": "local", "gpus": [], "processes": 1, "seconds": 60.0,
            "seconds_all": 60.0, "peak_memory_mb": 100.0, "experiment": "toy", "data": {}, "figures": [],
            "sounds": [], "notes": [], "error": None, "environment": {"version": "1", "commit": "c0ffee"},
            "rows": [make_row(table="Table 1", dataset="toy", method="square", metric="square", value=1.0)]} | changes


def leave(run, **changes):
    """Write a record; return the run's folder."""
    write_json_atomic(run.folder / "record.json", record_of(run, **changes))
    return run.folder


# --- C1: another process at work ------------------------------------------------------------------

def test_c1_the_live_table_shows_runs_of_other_processes(project):
    from rich.console import Console
    one, two = load_job("toy").runs
    console = Console(width=120, record=True, file=open(os.devnull, "w"), force_terminal=True)
    with LiveTable(console) as show:
        engine = Engine([one, two], show=show)
        engine._wait_for(one, {"pid": 12})                       # a record without a host
        show.update(engine)
    console.print(live_table(engine))
    assert "toy-1: another process is running it" in console.export_text()


def test_c1_a_run_at_work_elsewhere_ends_nothing_on_a_terminal(project):
    """As in the list of faults, without a second worker: the lock is held here, and a finished record is left."""
    one, two = load_job("toy").runs
    leave(one, state="running", pid=os.getpid(), host=os.uname().nodename)
    leave(two)
    command, seen = f"{sys.executable} -c 'from amcl_suite.reproduce.cli import main; main()' run toy", project.root / "typescript"
    with FileLock(one.folder / "run.lock"):
        process = subprocess.Popen(["script", "-qefc", command, seen], env=os.environ | project.env, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL)
        wait_until(lambda: process.poll() is not None or seen.exists() and seen.read_text().count("is running it") > 1)
        assert process.poll() is None, seen.read_text()
        leave(one)
    assert process.wait(30) == 0 and "0 finished, 0 failed, 2 skipped" in seen.read_text(), seen.read_text()


def test_c1_a_display_that_fails_ends_no_run(project):
    class Broken:
        said = []
        def event(self, text): self.said.append(text)
        def update(self, engine): raise TypeError("of the display")
    one, _ = load_job("toy").runs
    engine = Engine([one], show=Broken())
    engine._display(), engine._display()
    assert sum("of the display" in text for text in Broken.said) == 1


# --- C5: links --------------------------------------------------------------------------------------

def linked(project, run):
    """Link a job's folder, a run's folder and files inside a run to a folder outside; return it."""
    outside = project.root / "outside"
    leave(run)
    write_json_atomic(outside / "r1" / "record.json", record_of(run, state="failed", error={"line": "x"}))
    (outside / "r1" / "run.lock").touch()
    (outside / "r1" / ".a.json.1.tmp").touch()
    (outside / ".deleted-1").mkdir()
    (project.runs / "j").symlink_to(outside)
    (project.runs / "toy" / "gone").symlink_to(project.root / "nowhere")
    (project.runs / "toy" / "toy-9-00000000").symlink_to(outside / "r1")
    (project.runs / ".deleted-2").symlink_to(outside)
    (project.runs / ".submitit").symlink_to(outside)
    (outside / f"local-{os.uname().nodename}-99999999-ab").mkdir()
    (run.folder / "data").symlink_to(outside)
    return outside


def content(folder):
    return sorted((str(p), p.lstat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*"))


def test_c5_links_are_named_and_nothing_behind_them_is_touched(project, amcl):
    run, _ = load_job("toy").runs
    outside = linked(project, run)
    before = content(outside)
    for command in (("status",), ("report",), ("show", "toy"), ("run", "toy", "--dry-run"), ("list",), ("cancel", "toy"),
                    ("clean",), ("clean", "--all", "--yes")):
        status, text = amcl(*command)
        assert status == 0, text
        if command[0] in ("status", "report", "clean"):
            assert all(str(project.runs / name) in text for name in ("j", "toy/gone", "toy/toy-9-00000000")), text
            assert "removed" not in text.replace("0 removed", "") or "--yes" in command, text
        assert content(outside) == before, command
    assert not run.folder.exists() and not list(project.runs.glob(".deleted-*[!2]"))
    assert {p.name for p in project.runs.iterdir() if p.is_symlink()} == {"j", ".deleted-2", ".submitit"}


def test_c5_sizes_and_reports_leave_out_what_lies_behind_links(project):
    run, _ = load_job("toy").runs
    outside = linked(project, run)
    (outside / "large").write_bytes(b"x" * 10_000_000)
    (run.folder / "large").symlink_to(outside / "large")
    assert [l.size for l in leftovers() if l.path == run.folder][0] < 10_000
    found = collect()
    assert len(found.records) == 1 and len([text for text in found.unreadable if "link" in text]) == 3


def test_c5_a_run_whose_folder_is_a_link_is_refused_before_anything_starts(project, amcl):
    one, two = load_job("toy").runs
    leave(two)
    outside = project.root / "outside"
    outside.mkdir()
    one.folder.symlink_to(outside)
    status, text = amcl("run", "toy")
    assert status == 1 and f"{one.folder} is a link" in text and "1 failed, 1 skipped" in text, text
    assert not list(outside.iterdir())


def test_c5_what_cannot_be_removed_is_said(project, amcl, monkeypatch):
    run, _ = load_job("toy").runs
    leave(run, state="failed", error={"line": "x"})
    def replace(*_): raise OSError(18, "Invalid cross-device link")
    monkeypatch.setattr("amcl_suite.reproduce.housekeeping.os.replace", replace)
    status, text = amcl("clean")
    assert status == 0 and "0 removed" in text and "kept failed" in text and "cross-device" in text, text


# --- C6: from nothing ---------------------------------------------------------------------------------

def test_c6_force_removes_a_link_and_not_what_it_leads_to(project, monkeypatch):
    run, _ = load_job("toy").runs
    outside = project.root / "outside"
    (outside / "deep").mkdir(parents=True)
    leave(run)
    (run.folder / "data").symlink_to(outside)
    (run.folder / "gone").symlink_to(project.root / "nowhere")
    (run.folder / "executed.ipynb").symlink_to(outside / "deep")
    done = []
    monkeypatch.setattr("amcl_suite.reproduce.worker._execute_locked", lambda task, folder: done.append(list(folder.iterdir())))
    assert execute(Task({"hash": run.hash}, str(run.folder), "new", ".", force=True)) == "done"
    assert [[p.name for p in left] for left in done] == [["run.lock"]] and (outside / "deep").exists()


def test_c6_a_folder_that_cannot_be_emptied_is_a_failure_and_no_skipped_run(project, monkeypatch):
    run, _ = load_job("toy").runs
    (leave(run) / "figures").mkdir()
    def closed(*_, **__): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("amcl_suite.reproduce.worker.shutil.rmtree", closed)
    with pytest.raises(OSError, match="can't be written"):
        execute(Task({"hash": run.hash}, str(run.folder), "new", ".", force=True))
    assert standing(run.folder).state == "new"                       # half emptied: not finished any more
    engine = Engine([run], force=True)                               # the record could not even be removed
    live = Live(run, Handle("1", "logs", "ended"), "new", log="...\nOutputError: the folder can't be written: ...\n")
    engine._conclude(live, standing(leave(run)), ours=False)
    assert [(o.state, o.error[:12]) for o in engine.outcomes] == [("failed", "OutputError:")]


# --- C8 and C9: odd records and damaged files ---------------------------------------------------------

ODD = [None, True, -1, 10**400, 1e400, float("nan"), "", "x", "\x00", [], [1], [[]], {}, {"a": 1}, {"a": {"b": []}}]
ODD_TEXTS = ["", "[]", "null", '{"x": 1}', '{"schema": 2, "st', "\0\0\0", "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000,
             '"\\ud800"', '{"\\ud800": 1}', "9" * 5000, "\ufeff{}"]


def written(value):
    """Return JSON that may hold what our own writers refuse."""
    return json.dumps(value)


def test_c8_rows_are_checked_alike_when_written_and_read():
    good = dict(method="a", metric="b", value=1.0)
    for field in ("method", "metric", "value", "unit", "better", "table", "dataset", "std", "stderr", "n", "scale", "paper",
                  "paper_spread", "paper_source", "setting", "detail"):
        for value in ODD:
            read = dict(make_row(**good)) | {field: value}
            try: wrote = make_row(**(good | {field: value}))
            except ValueError as error: assert str(error).startswith(f"{field}: expected"), (field, value, error)
            else: assert not list(row_faults(wrote)), (field, value)
            for name, _ in row_faults(read): assert name == field
    for field, value in (("paper", [1]), ("better", "best"), ("std", [[]])):
        assert [name for name, _ in row_faults(make_row(**good) | {field: value})] == [field]
    with pytest.raises(ValueError, match="better: expected"): make_row(**good, better="best")


def test_c8_every_odd_field_of_a_record_is_printed_or_named(project, amcl):
    """Each value of `ODD` in each field, all runs in one report: every record is in it or named by it."""
    run, _ = load_job("toy").runs
    good = record_of(run, host="here", pid=1, figures=[{"name": "a", "file": "a.png"}], sounds=[{"name": "a", "file": "a.wav"}],
                     environment={"version": "1", "commit": "c", "packages": {}, "processor": "p", "cpu_capability": "AVX2"},
                     error={"line": "x", "kind": "error", "cell": 3})
    paths = [(k,) for k in good] + [("rows", 0, k) for k in [*good["rows"][0], "extra", "setting", "detail"]]
    paths += [(kind, 0, k) for kind in ("figures", "sounds") for k in ("name", "file", "caption", "gain")]
    paths += [("environment", k) for k in good["environment"]] + [("data", "yacht"), ("parameters", "n"), ("notes", 0)]
    paths += [("error", k) for k in good["error"]]
    for i, path in enumerate(paths):
        for j, value in enumerate(ODD):
            changed = json.loads(json.dumps(good | {"notes": [""]}))
            inner = changed
            for key in path[:-1]: inner = inner[key]
            inner[path[-1]] = value
            folder = project.runs / "toy" / f"odd-{i}-{j}"
            folder.mkdir(parents=True)
            (folder / "record.json").write_text(written(changed))
    leave(run)
    status, text = amcl("report")
    assert status == 0, text
    found = collect()
    folders = {r["folder"].name for r in (*found.records, *found.superseded)}
    for folder in project.runs.glob("toy/odd-*"):
        assert folder.name in folders or any(str(folder) in why for why in found.unreadable), folder
    assert all(why in text for why in found.unreadable[:5]) and len(found.unreadable) > 200
    for command in (("status",), ("show", "toy"), ("clean",)): assert amcl(*command)[0] == 0


JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
                    max_leaves=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["value", "paper", "std", "n", "unit", "better", "setting", "extra", "detail"]), JSON,
                       max_size=3))
def test_c8_a_row_without_faults_can_be_printed(changes):
    row = make_row(table="Table 1", dataset="d", method="m", metric="x", value=1.0) | changes
    if list(row_faults(row)): return
    record = {"state": "finished", "job": "j", "name": "n", "notebook": "nb", "hash": "00", "parameters": {}, "rows": [row]}
    for group in result_groups(tidy_rows([record])): assert group.full.to_html() and group.full.to_markdown()


SMALL = ("progress.json", "cell.json", "submission.json", "spent.json", "results.json")

@pytest.mark.parametrize("names", [("record.json",), SMALL])
def test_c9_damaged_files_of_a_run_end_no_command(project, amcl, names):
    one, two = load_job("toy").runs
    for text in ODD_TEXTS:
        folder = leave(one, state="running", pid=os.getpid(), host=os.uname().nodename)
        leave(two)
        for name in names: (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        with FileLock(folder / "run.lock"): assert amcl("status")[0] == 0     # as if it were at work
        for command in (("status",), ("report",), ("run", "toy", "--dry-run"), ("clean",)):
            status, said = amcl(*command)
            assert status == 0, (command, text, said)
            if names != SMALL and command[0] in ("status", "report"): assert str(folder) in said
            if names == SMALL and command[0] == "status": assert str(folder / "submission.json") in said, text
        assert folder.exists() and seconds_spent(folder, record_of(one, state="running")) == 60.0


def test_c9_values_of_any_type_in_small_files_are_shown_or_left_out(project):
    one, _ = load_job("toy").runs
    one.folder.mkdir(parents=True)
    progress = {"done": 1, "total": 2, "unit": "epoch", "label": "a", "values": {"loss": 0.5}, "seconds_left": 3.0}
    note = {"where": "slurm", "id": "1", "logs": "", "token": "", "host": ""}
    engine = SimpleNamespace(queue=[], live=[Live(one, Handle("", ""))], workers=1, minutes=lambda run: 1.0)
    for value in ODD:
        for field in progress:
            (one.folder / "progress.json").write_text(written(progress | {field: value}))
            assert all(isinstance(text, str) for text in progress_text(one.folder)) and seconds_left(engine) >= 0
        (one.folder / "progress.json").write_text(written({k: v for k, v in progress.items() if k != "values"}))
        assert progress_text(one.folder) == ("a epoch 1/2", "")
        for field in note:
            (one.folder / "submission.json").write_text(written(note | {field: value}))
            assert set(read_submission(one.folder)) in (set(), set(note))
        (one.folder / "progress.json").unlink()
        for field in ("cell", "cells"):
            (one.folder / "cell.json").write_text(written({"cell": 1, "cells": 2} | {field: value}))
            assert progress_text(one.folder)[0]


def test_c9_damaged_notebooks_and_job_files_are_named_and_stop_no_other_job(project, amcl):
    notebooks = ["", "[]", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"cell_type": "code"}]}', "[" * 100_000, "\0",
                 '{"cells": [{"cell_type": "code", "source": [1]}]}', '{"cells": [{"cell_type": "code", "source": "", "metadata": null}]}']
    jobs = ["", "[]", "null", "\0", "runs: [", "title: 1\nruns: 2\n", "a: 2020-13-45\n", "a: !!int x\n", "- " * 1000, "[" * 1000,
            "a: &a [*a]\n", "? [1]\n: 2\n", "title: \"\\ud800\"\n", "\xe9"]
    for i, text in enumerate(notebooks):
        (project.root / "nbs" / f"20_bad{i}.ipynb").write_text(text)
        project.job(f"- {{notebook: nbs/20_bad{i}.ipynb}}", f"bad-notebook{i}")
        with pytest.raises(JobError, match=f"20_bad{i}.ipynb: not a notebook"): load_job(f"bad-notebook{i}")
    for i, text in enumerate(jobs):
        (project.root / "scripts" / "jobs" / f"bad-job{i}.yaml").write_bytes(text.encode("latin-1"))
        with pytest.raises(JobError, match=f"bad-job{i}.yaml: ") as error: load_job(f"bad-job{i}")
        assert "\n" not in str(error.value)
    status, said = amcl("list")
    assert status == 0 and said.count("can't be run") == len(notebooks) + len(jobs) and "A toy" in said, said
    for i in range(1, len(jobs)): (project.root / "scripts" / "jobs" / f"bad-job{i}.yaml").unlink()
    status, said = amcl("status")
    assert status == 0 and "bad-job0.yaml" in said and amcl("clean")[0] == 0 and amcl("run", "bad-job0")[0] == 2, said


def test_c9_names_that_are_no_unicode_are_spelt_out(project, amcl):
    run, _ = load_job("toy").runs
    folder = leave(run, state="failed", error={"line": "x"})
    odd = Path(os.fsdecode(os.fsencode(folder.parent) + b"/b\xe9-00000000"))
    folder.rename(odd)
    (odd / "record.json").rename(odd / "kept")
    (odd / "record.json").write_text("{")
    for command in (("report",), ("status",), ("clean", "--unreadable", "--yes")): assert amcl(*command)[0] == 0
    assert not odd.exists()


def test_c9_results_that_a_notebook_left_damaged_are_a_failure_with_the_place(project, monkeypatch):
    from amcl_suite.core.reading import RunState
    run, _ = load_job("toy").runs
    task = Task({k: getattr(run, k) for k in ("job", "name", "notebook", "parameters", "hash")} | {"data": {}, "processes": 1},
                str(run.folder), "t", ".")
    def notebook(text):
        def left(task, folder):
            (folder / "results.json").write_text(text)
            return RunState.finished, None
        monkeypatch.setattr("amcl_suite.reproduce.worker._run_notebook", left)
        execute(Task(**(vars(task) | {"force": True, "token": text[:50]})))
        return read_record(run.folder)
    for text in [*ODD_TEXTS, '{"rows": [{"method": "a"}]}', '{"data": 3}', '{"environment": {"version": []}}']:
        record = notebook(text.encode("utf-8", "replace").decode())
        if text in ('{"x": 1}',): continue                            # a further field is nobody's fault
        assert record["state"] == "failed" and "results.json" in record["error"]["line"], text
    record = notebook('{"rows": [], "hash": "other", "state": "x", "data": null}')
    assert (record["state"], record["hash"]) == ("finished", run.hash)   # what is ours stays ours


# --- C10: leftovers -----------------------------------------------------------------------------------

def test_c10_an_engine_that_was_killed_leaves_nothing_after_the_next_status(project, amcl):
    run, _ = load_job("toy").runs
    leave(run, state="failed", error={"line": "x"})
    gone = subprocess.Popen(["true"])                                 # a zombie: killed, and nobody took note of it
    wait_until(lambda: b"Z" in Path(f"/proc/{gone.pid}/stat").read_bytes().rpartition(b")")[2])
    host, logs = os.uname().nodename, project.runs / ".submitit"
    dead, again, alive = (logs / f"local-{host}-{pid}-{end}" for pid, end in ((gone.pid, "a"), (os.getpid(), "b"), (os.getpid(), "c")))
    for folder in (dead, again, alive): folder.mkdir(parents=True)
    (dead / f"{gone.pid}_submitted.pkl").touch()
    (dead / f"{gone.pid}_0_log.out").write_text("its last words")
    engines.note_submission(run, Handle(str(gone.pid), str(dead)), "t", "local")
    (again / "run.lock").touch()                                      # its number went to another process
    with FileLock(alive / "run.lock"):
        assert amcl("status")[0] == 0
        assert list(logs.iterdir()) == [alive] and (run.folder / "worker.log").read_text() == "its last words"
    gone.wait()
    assert stale_logs() == [alive] and amcl("status")[0] == 0 and not logs.exists()


def test_c10_temporary_files_of_killed_writers_go_with_resume_and_clean(project, amcl, monkeypatch):
    one, two = load_job("toy").runs
    def litter(folder):
        for path in (".record.json.123.tmp", ".results.json.k3j_x1.tmp", "figures/.a.png.abc.tmp", "checkpoints/x/.s.json.9.tmp"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("half")
        (folder / "kept.tmp").touch()
    for run in (one, two): litter(leave(run, **({} if run is one else {"state": "running"})))
    monkeypatch.setattr("amcl_suite.reproduce.worker._execute_locked", lambda task, folder: None)
    execute(Task({"hash": two.hash}, str(two.folder), "new", "."))                # resume
    assert [p.name for p in two.folder.rglob("*.tmp")] == ["kept.tmp"]
    litter(two.folder)
    fresh, old = project.runs / ".report.html.a.tmp", project.runs / "toy" / ".report.md.b.tmp"
    for path in (fresh, old): path.touch()
    os.utime(old, (1e9, 1e9))
    with FileLock(two.folder / "run.lock"):                                       # at work: nothing of it is touched
        status, text = amcl("clean")
    assert status == 0 and "removed temporary" in text, text
    assert [p.name for p in one.folder.rglob("*.tmp")] == ["kept.tmp"] and len(list(two.folder.rglob(".*.tmp"))) == 4
    assert fresh.exists() and not old.exists() and one.folder.exists()
    amcl("clean")
    assert [p.name for p in two.folder.rglob("*.tmp")] == ["kept.tmp"]
    assert not chosen(leftovers())


def test_c10_attempts_that_were_killed_count(project, monkeypatch):
    """One attempt is killed at work, with nobody left to note it; the next one adds it up."""
    from amcl_suite.core.reading import RunState
    from amcl_suite.reproduce import worker
    run, _ = load_job("toy").runs
    code = ("import json, sys, time; from amcl_suite.reproduce import worker; worker._run_notebook = lambda *_: time.sleep(60); "
            "worker.execute(worker.Task(**json.loads(sys.argv[1])))")
    killed = subprocess.Popen([sys.executable, "-c", code, json.dumps(vars(engines.make_task(run)))], env=os.environ | project.env)
    wait_until(lambda: worker.read_dict(run.folder / "spent.json").get("seconds", 0) > 0.9)
    killed.kill()
    killed.wait()
    record = read_record(run.folder)
    assert record["state"] == "running" and record["seconds_all"] == 0.0
    assert collect().records[0]["seconds_all"] > 0.9                  # the report counts it already
    def notebook(task, folder):
        (folder / "results.json").write_text('{"rows": []}')
        return RunState.finished, None
    monkeypatch.setattr(worker, "_run_notebook", notebook)
    execute(engines.make_task(run))
    record = read_record(run.folder)
    assert record["state"] == "finished" and record["attempts"] == 2
    assert 0.9 < record["seconds_all"] - record["seconds"] < 30 and record["seconds"] < 30
    assert not (run.folder / "spent.json").exists()


# --- small, A.4 and A.5 -------------------------------------------------------------------------------

@pytest.mark.parametrize("script, answers, said", [
    ("#!/bin/sh\nexit 0\n", None, "`sbatch --version` fails, no controller answers"),
    ("#!/bin/sh\nexit 1\n", {}, "`sbatch --version` fails"), ("not a program", None, "`sbatch --version` fails, no controller"),
    ("#!/bin/sh\necho slurm 24\n", {}, "slurm 24"), ("#!/bin/sh\necho slurm 24\n", None, "slurm 24, no controller answers")])
def test_small_doctor_names_what_is_wrong_with_slurm(tmp_path, monkeypatch, script, answers, said):
    (tmp_path / "sbatch").write_text(script)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("amcl_suite.reproduce.slurm.squeue", lambda: answers)
    assert cli._slurm_version().startswith(said) and not cli._slurm_version().startswith(",")


def test_s10_every_command_says_found_verified_or_incomplete(project, amcl, tmp_path, monkeypatch):
    folder = tmp_path / "sets"
    (folder / "imagenet").mkdir(parents=True)                          # empty: it holds nothing
    (folder / "uci_raw.zip").write_bytes(b"PK")                        # cut off
    (folder / "cifar-10-batches-py").mkdir()
    (folder / "cifar-10-batches-py" / "batches.meta").touch()          # the only one
    monkeypatch.delenv("AMCL_DATA", raising=False)
    monkeypatch.setenv("AMCL_CACHE", str(folder))
    status, text = amcl("data", "list")
    assert status == 0 and text.count("found: ") == 10 and "verified" not in text, text
    lines = {name: finding for name, finding, _ in cli._examine_data()}
    assert re.match(r"incomplete: .*uci_raw.zip.*damaged", lines["data: yacht"])
    assert "batches-py/data_batch_1 holds 0 of 1 files" in lines["data: cifar10"]
    assert lines["data: imagenet"].startswith("not here")
    for name, words in (("imagenet", "data: imagenet: not here"), ("cifar10", "data: cifar10: incomplete: ")):
        project.job(f"- {{notebook: nbs/10_toy.ipynb, data: [{name}]}}", name)
        status, text = amcl("run", name, "--dry-run")
        assert words in text, text


def test_a5_runs_of_one_table_on_processors_that_differ_are_told(project, amcl):
    one, two = load_job("toy").runs
    about = {"version": "1", "commit": "c0ffee"}
    leave(one, environment=about | {"cpu_capability": "AVX2"})
    leave(two, environment=about)                                     # an older record: unknown, and no reason to warn
    assert "instructions of the processor" not in amcl("report")[1]
    leave(two, environment=about | {"cpu_capability": "AVX512"})
    text = amcl("report")[1]
    assert "instructions of the processor" in text and "AVX2: toy/toy-1; AVX512: toy/toy-2." in text
    assert "instructions of the processor" in (project.runs / "report.html").read_text()
