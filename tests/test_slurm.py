"""The engine on a real cluster: one node, started by the tests (see slurm_cluster.py)."""
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from slurm_cluster import ask, cluster, why_not
from toys import RESULT, WALK, Project, wait_until, walk_end

ROOT = Path(__file__).resolve().parents[1]
WATCHES = ("nbs/80_reproduce/850_batches.ipynb",)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")]
TOY = "- {notebook: nbs/10_toy.ipynb, grid: {n: [%s]}%s}"


@pytest.fixture(scope="module")
def slurm():
    with cluster(cpus=2, gpus=2) as (env, host):
        yield env, host


@pytest.fixture
def project(tmp_path, slurm, monkeypatch):
    made = Project(tmp_path)
    made.env |= {name: slurm[0][name] for name in ("SLURM_CONF", "PATH")}
    for name, value in made.env.items(): monkeypatch.setenv(name, value)
    yield made
    ask(slurm[0], "scancel", "--me")
    wait_until(lambda: not ask(slurm[0], "squeue", "-h", "--me"))


def jobs_of(env):
    """Return the states of all jobs that Slurm still runs or queues."""
    return ask(env, "squeue", "-h", "-r", "--me", "-o", "%i %T %r").splitlines()


def walked(project):
    """Return the step that the walk has reached."""
    found = list(project.runs.glob("toy/*/checkpoints/state.json"))
    return json.loads(found[0].read_text())["step"] if found else 0


def assert_walk_is_whole(project, n):
    """Check that the walk ended where an uninterrupted one does, without a step done twice."""
    starts = [int(line) for line in (project.folder("walk") / "starts.txt").read_text().split()]
    assert starts[0] == 0 and len(starts) > 1 and starts == sorted(set(starts)), starts
    assert project.records()["walk"]["rows"][0]["value"] == walk_end(n)
    return starts


def test_a_job_of_ones_own_runs_on_the_cluster(project, monkeypatch):
    """Its file lies outside of any project; notebook, module and runs lie beside it."""
    del project.env["AMCL_RUNS_PATH"]
    monkeypatch.delenv("AMCL_RUNS_PATH")
    mine = project.root / "mine"
    mine.mkdir()
    (mine / "helper.py").write_text("def square(n): return n * n\n")
    project.notebook("from helper import square\n" + RESULT.replace("n * n", "square(n)"))
    (project.root / "nbs" / "10_toy.ipynb").rename(mine / "try.ipynb")
    (mine / "job.yaml").write_text("title: Mine\nruns: [{notebook: try.ipynb, grid: {n: [3, 4]}}]\n")
    job = str(mine / "job.yaml")
    status, text = project.amcl("run", job, "--where", "slurm")
    assert status == 0 and "2 finished" in text and str(mine / "runs") in text, text
    record, _ = (json.loads(path.read_text()) for path in sorted(mine.glob("runs/job/*/record.json")))
    assert record["rows"][0]["value"] == 9 and record["where"] == "slurm" and record["slurm_job"]
    assert "2 skipped" in project.amcl("run", job, "--where", "slurm")[1]


def test_an_array_with_a_failure(project):
    """Runs with the same needs are one array; they get their GPUs, processes and threads."""
    told = ('import os\nimport pathlib\npathlib.Path(out_dir, "told.txt").write_text(" ".join('
            'os.environ[k] for k in ("CUDA_VISIBLE_DEVICES", "AMCL_PROCESSES", '
            '"OMP_NUM_THREADS")))\n'
            'if n == 3: raise ValueError("three is too many")\n')
    project.notebook(told + RESULT)
    project.job(TOY % ("1, 2, 3, 4", ", gpus: 2, processes: 2, timeout_minutes: 10"))
    status, text = project.amcl("run", "toy", "--where", "slurm", "--workers", "2")
    assert status == 1 and "3 finished, 1 failed, 0 skipped" in text, text
    assert "failed: toy/toy-3: ValueError: three is too many" in text and "submitted 4 runs" in text
    assert "sacct" not in text and "Warning" not in text and "sbatch" not in text, text
    records = project.records()
    arrays = {r["slurm_job"].split("_")[0] for r in records.values()}
    assert len(arrays) == 1 and {r["where"] for r in records.values()} == {"slurm"}
    assert records["toy-1"]["gpus"] == ["0", "1"] and records["toy-1"]["processes"] == 2
    assert (project.folder("toy-1") / "told.txt").read_text() == "0,1 2 1"
    assert "Starting with JobEnvironment" in (project.folder("toy-1") / "worker.log").read_text()
    assert not list(project.runs.rglob("*.pkl")) and not (project.runs / ".submitit").exists()
    status, text = project.amcl("run", "toy", "--where", "slurm", "--only", "n=2")
    assert status == 0 and "0 finished, 0 failed, 1 skipped" in text, text


def test_what_slurm_refuses_is_said_in_its_words(project):
    project.notebook(RESULT)
    project.job(TOY % ("1", ""))
    status, text = project.amcl("run", "toy", "--where", "slurm", "--partition", "nowhere")
    assert status == 1 and "Slurm refused the run" in text, text
    assert "nvalid partition" in text and "Traceback" not in text, text
    status, text = project.amcl("run", "toy", "--partition", "main")
    assert status == 2 and "--partition: only with --where slurm" in text, text


def test_scancel_in_the_middle_then_resume(project, slurm):
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 150}}")
    engine = project.start("run", "toy", "--where", "slurm")
    wait_until(lambda: walked(project) >= 20)
    ask(slurm[0], "scancel", project.records()["walk"]["slurm_job"])
    out, err = engine.communicate(timeout=60)
    assert engine.returncode == 130 and "on the cluster; start the job again" in out, out + err
    record = project.records()["walk"]
    assert record["state"] == "pending" and record["error"]["kind"] == "cancelled"
    assert record["seconds_all"] > 0
    status, text = project.amcl("run", "toy", "--where", "slurm")
    assert status == 0 and "1 finished" in text, text
    assert len(assert_walk_is_whole(project, 150)) == 2


def test_time_out_is_requeued_and_goes_on(project):
    """Slurm ends the first attempt after a minute; the run goes on without a new call."""
    project.notebook(WALK.replace("time.sleep(0.03)", "time.sleep(0.03 if step > 40 else 1.0)"))
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 60}, "
                "timeout_minutes: 1}")
    engine = project.start("run", "toy", "--where", "slurm")
    out, err = engine.communicate(timeout=400)
    assert engine.returncode == 0 and "1 finished" in out, out + err
    assert len(assert_walk_is_whole(project, 60)) >= 2
    record = project.records()["walk"]
    assert record["attempts"] >= 2 and record["seconds_all"] > record["seconds"]


def test_preempted_job_goes_on(project, slurm):
    """A cluster that needs the node for something else requeues the job."""
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 150}}")
    engine = project.start("run", "toy", "--where", "slurm", "--force")
    wait_until(lambda: walked(project) >= 20)
    ask(slurm[0], "scontrol", "requeue", project.records()["walk"]["slurm_job"])
    out, err = engine.communicate(timeout=120)
    assert engine.returncode == 0 and "1 finished" in out, out + err
    assert len(assert_walk_is_whole(project, 150)) == 2          # --force doesn't begin anew


def test_drained_node_waits_and_says_so(project, slurm):
    env, host = slurm
    project.notebook(RESULT)
    project.job(TOY % ("1", ""))
    ask(env, "scontrol", "update", f"NodeName={host}", "State=DRAIN", "Reason=test")
    try:
        engine = project.start("run", "toy", "--where", "slurm")
        wait_until(lambda: any("PENDING" in line for line in jobs_of(env)))
        def told():
            status, text = project.amcl("status", "toy")
            return (status == 0 and "queued: toy/toy-1: Slurm job" in text
                    and "DRAIN" in text.upper())
        wait_until(told)
        assert engine.poll() is None
    finally: ask(env, "scontrol", "update", f"NodeName={host}", "State=RESUME")
    out, err = engine.communicate(timeout=60)
    assert engine.returncode == 0 and "1 finished" in out, out + err


def test_detached_and_killed_engines_find_their_jobs_again(project, slurm):
    """Nothing is submitted twice, whoever went away."""
    project.notebook("import time\nwith open(out_dir + '/../log.txt', 'a') as f: f.write(f'{n} ')\n"
                     "time.sleep(4)\n" + RESULT)
    project.job(TOY % ("1, 2, 3", ""))
    status, text = project.amcl("run", "toy", "--where", "slurm", "--workers", "1", "--detach")
    assert status == 0 and "3 submitted" in text and "3 runs left to Slurm" in text, text
    assert len(jobs_of(slurm[0])) == 3
    engine = project.start("run", "toy", "--where", "slurm")
    wait_until(lambda: any("RUNNING" in line for line in jobs_of(slurm[0])))
    os.kill(engine.pid, signal.SIGKILL)
    engine.communicate()
    status, text = project.amcl("run", "toy", "--where", "local", "--only", "n=1")   # somebody else
    assert status == 0 and ("is running it" in text or "1 skipped" in text), text
    status, text = project.amcl("run", "toy", "--where", "slurm")
    assert status == 0 and "found again" in text and "submitted" not in text, text
    assert sorted((project.runs / "toy" / "log.txt").read_text().split()) == ["1", "2", "3"]
    assert {r["attempts"] for r in project.records().values()} == {1}
    assert not (project.runs / ".submitit").exists()


def test_logs_of_detached_runs_reach_their_folders(project, slurm):
    project.notebook(RESULT)
    project.job(TOY % ("1", ""))
    assert project.amcl("run", "toy", "--where", "slurm", "--detach")[0] == 0
    wait_until(lambda: not jobs_of(slurm[0]))
    status, text = project.amcl("clean")
    assert status == 0 and "removed engine" in text, text
    assert "Job completed successfully" in (project.folder("toy-1") / "worker.log").read_text()
    assert not list(project.runs.rglob("submission.json")) + list(project.runs.rglob("*.pkl"))
    status, text = project.amcl("run", "toy")
    assert status == 0 and "1 skipped" in text, text


def test_ctrl_c_leaves_jobs_and_cancel_ends_them(project, slurm):
    project.notebook(WALK)
    project.job("- {notebook: nbs/10_toy.ipynb, name: walk, parameters: {n: 5000}}")
    engine = project.start("run", "toy", "--where", "slurm")
    wait_until(lambda: walked(project) >= 5)
    engine.send_signal(signal.SIGINT)
    out, err = engine.communicate(timeout=30)
    assert engine.returncode == 130 and "`amcl cancel toy` ends them" in out, out + err
    assert jobs_of(slurm[0]), "the job must go on"
    status, text = project.amcl("cancel", "toy")
    assert status == 0 and "ended walk: Slurm job" in text, text
    wait_until(lambda: not jobs_of(slurm[0]))
    status, text = project.amcl("cancel", "toy")
    assert status == 0 and "nothing is queued or at work" in text, text


def test_the_page_on_batches_is_executed(slurm):
    """Its cells for a cluster run only here; nbdev_test passes over them elsewhere."""
    page = ROOT / "nbs" / "80_reproduce" / "850_batches.ipynb"
    done = subprocess.run(["nbdev_test", "--path", page, "--flags", "slurm", "--n_workers", "0"],
                          env=slurm[0], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cancelled_before_it_started_is_no_crash(project, slurm):
    project.notebook(RESULT)
    project.job(TOY % ("1, 2", ""))
    ask(slurm[0], "scontrol", "update", f"NodeName={slurm[1]}", "State=DRAIN", "Reason=test")
    try:
        engine = project.start("run", "toy", "--where", "slurm", "--retries", "2")
        wait_until(lambda: len(jobs_of(slurm[0])) == 2)
        time.sleep(3)                                        # the engine has seen them wait
        ask(slurm[0], "scancel", jobs_of(slurm[0])[1].split()[0])
    finally: ask(slurm[0], "scontrol", "update", f"NodeName={slurm[1]}", "State=RESUME")
    out, err = engine.communicate(timeout=60)
    assert engine.returncode == 130 and "1 finished, 0 failed, 0 skipped, 1 interrupted" in out, out
    assert "trying again" not in out


def test_a_silent_controller_is_waited_for(project, slurm, tmp_path, monkeypatch):
    """While squeue fails, nothing is submitted again, and cancel doesn't claim success."""
    project.notebook(RESULT)
    project.job(TOY % ("1", ""))
    ask(slurm[0], "scontrol", "update", f"NodeName={slurm[1]}", "State=DRAIN", "Reason=test")
    try:
        assert project.amcl("run", "toy", "--where", "slurm", "--detach")[0] == 0
        (tmp_path / "bin").mkdir()
        wrapper = tmp_path / "bin" / "squeue"
        wrapper.write_text(f"""#!/bin/bash
count={tmp_path}/count; echo x >> $count
if [ $(wc -l < $count) -le 3 ]; then echo "Socket timed out" >&2; exit 1; fi
exec {shutil.which("squeue")} "$@"
""")
        wrapper.chmod(0o755)
        before = project.env["PATH"]
        project.env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{before}"
        engine = project.start("run", "toy", "--where", "slurm")
        wait_until(lambda: (tmp_path / "count").exists() and
                   len((tmp_path / "count").read_text().split()) > 4)
        project.env["PATH"] = before
        assert len(jobs_of(slurm[0])) == 1
    finally: ask(slurm[0], "scontrol", "update", f"NodeName={slurm[1]}", "State=RESUME")
    out, err = engine.communicate(timeout=60)
    assert engine.returncode == 0 and "found again" in out and "submitted" not in out, out + err


def test_nothing_of_the_cluster_outlives_it():
    before = set(subprocess.run(["pgrep", "-f", "slurm|munged"], capture_output=True,
                                text=True).stdout.split())
    with cluster() as (env, host):
        assert ask(env, "sinfo", "-h", "-o", "%D").strip().startswith("1")
        process = subprocess.Popen(["srun", "sleep", "300"], env=env)
        wait_until(lambda: jobs_of(env))
    process.wait(20)
    time.sleep(0.5)
    after = set(subprocess.run(["pgrep", "-f", "slurmctld|slurmd|munged"], capture_output=True,
                               text=True).stdout.split())
    assert not after - before
