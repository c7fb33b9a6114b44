"""A job of one's own: a file anywhere, notebooks beside it, runs beside it; and the command that calls it."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from amcl_suite.core.files import read_json, write_json_atomic
from amcl_suite.core.reading import load_run
from amcl_suite.core.records import SCHEMA_VERSION
from amcl_suite.reproduce.cli import main
from amcl_suite.reproduce.jobs import load_job, load_jobs
from amcl_suite.reproduce.places import JobError, find_job
from toys import RESULT, Project

WATCHES = ("nbs/80_reproduce/_template",)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "suite").mkdir()
    made = Project(tmp_path / "suite")
    monkeypatch.setenv("AMCL_ROOT", str(made.root))
    monkeypatch.delenv("AMCL_RUNS_PATH", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    made.notebook(RESULT)
    made.job("- {notebook: nbs/10_toy.ipynb, grid: {n: [1, 2]}, minutes: 3}")
    return made


@pytest.fixture
def mine(project, tmp_path):
    """A folder with a job `job.yaml`, its notebook and a module that the notebook imports."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "helper.py").write_text("def square(n): return n * n\n")
    project.notebook("from helper import square\n" + RESULT.replace("n * n", "square(n)"), name="try")
    shutil.move(project.root / "nbs" / "try.ipynb", folder / "try.ipynb")
    (folder / "job.yaml").write_text("title: Mine\nruns:\n- {notebook: try.ipynb, grid: {n: [3]}}\n")
    return folder


@pytest.fixture
def amcl(project, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as end: main([str(word) for word in arguments])
        return end.value.code, *capsys.readouterr()
    return call


def test_a_job_by_its_path_runs_is_skipped_shown_reported_and_cleaned(mine, amcl, monkeypatch):
    monkeypatch.chdir(mine)
    status, out, err = amcl("run", "job.yaml")
    assert status == 0 and "1 finished" in out and f"results go to {mine / 'runs'}" in out, (out, err)
    folder, = (mine / "runs" / "job").glob("try-3-????????")
    assert load_run(folder).metrics == {"square": {"square": 9.0}}
    assert load_run(folder).record["notebook"] == "try.ipynb"
    monkeypatch.chdir("/")
    assert "1 skipped" in amcl("run", mine / "job.yaml")[1]
    assert re.search(r"try-3 .*finished", amcl("show", mine / "job.yaml")[1])
    status, out, _ = amcl("status", mine / "job.yaml")
    unwrapped = re.sub(r"[│\s\d]", "", out)                 # a long path may go over two lines
    assert status == 0 and "job.yaml" in unwrapped and re.search(r"│ 1\s+│ 0\s+│ 0", out), out
    status, out, _ = amcl("report", mine / "job.yaml")
    assert status == 0 and str(mine / "runs" / "job" / "report.html") in out and "9.0" in out, out
    (mine / "helper.py").write_text("def square(n): return n ** 2 + 0\n")       # one's own code counts
    code = "import sys\nfrom amcl_suite.reproduce.cli import main\nmain(sys.argv[1:])"
    def fresh(*words):
        return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True).stdout
    assert re.search(r"try-3 .*new", fresh("show", mine / "job.yaml"))
    assert "removed superseded" in fresh("clean", mine / "job.yaml", "--superseded", "--yes")
    assert not folder.exists()


def test_the_runs_of_the_suite_stay_where_they_were(project, mine):
    assert load_job("toy").runs[0].folder.parent == project.root / "runs" / "toy"
    assert load_job(project.root / "scripts" / "jobs" / "toy.yaml").runs == load_job("toy").runs
    assert load_job(mine / "job.yaml").runs[0].folder.parent == mine / "runs" / "job"


def test_settings_can_send_all_runs_to_one_folder(project, mine, tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_RUNS_PATH", str(tmp_path / "all"))
    assert load_job(mine / "job.yaml").runs[0].folder.parent == tmp_path / "all" / "job"
    (mine / "toy.yaml").write_text((mine / "job.yaml").read_text())
    with pytest.raises(JobError, match="is a job of the suite"): load_job(mine / "toy.yaml")
    other = tmp_path / "other"
    shutil.copytree(mine, other)
    with pytest.raises(JobError, match="two of these jobs are called 'job'"): load_jobs([mine / "job.yaml", other / "job.yaml"])
    monkeypatch.delenv("AMCL_RUNS_PATH")
    with pytest.raises(JobError, match="different folders"): load_jobs([mine / "job.yaml", other / "job.yaml"])
    with pytest.raises(JobError, match="different folders"): load_jobs([mine / "job.yaml", "toy"])
    assert len(load_jobs([mine / "job.yaml", mine / "." / "job.yaml"])) == 1


def test_runs_of_an_unknown_job_are_never_superseded(project, mine, amcl, tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_RUNS_PATH", str(tmp_path / "all"))
    run, = load_job(mine / "job.yaml").runs
    record = {"schema": SCHEMA_VERSION, "job": "job", "name": run.name, "notebook": "try.ipynb", "parameters": {},
              "hash": run.hash, "state": "finished"}
    write_json_atomic(run.folder / "record.json", record)
    out = amcl("clean", "--superseded", "--yes")[1]
    assert run.folder.exists() and "nothing of job counts as superseded: name the path" in out, out
    assert "0 removed" in amcl("clean", mine / "job.yaml", "--superseded", "--yes")[1] and run.folder.exists()


@pytest.mark.parametrize("word, words", [
    ("jop.yaml", "did you mean {mine}/job.yaml?"), ("toy.yaml", "for a job of the suite, did you mean 'toy'?"),
    (".", "is a folder; name the job file in it"), ("none/at-all.yaml", "`amcl init FOLDER` makes one"),
    ("job", "did you mean the file job.yaml?"), ("broken.yaml", "broken.yaml: titel: unknown key"),
    ("gone.yaml", "nowhere.ipynb: not a notebook, can't be read"), ("stored.yaml", "records: a job runs"),
    ("-x.yaml", "No such option"), ("_.yaml", "'_' can't name a folder"),
])
def test_what_is_no_job_file_is_named_in_one_line(mine, amcl, monkeypatch, word, words):
    monkeypatch.chdir(mine)
    (mine / "broken.yaml").write_text("titel: Mine\ntitle: Mine\nruns: [{notebook: try.ipynb}]\n")
    (mine / "gone.yaml").write_text("title: Mine\nruns: [{notebook: nowhere.ipynb}]\n")
    (mine / "_.yaml").write_text("title: Mine\nruns: [{notebook: try.ipynb}]\n")
    (mine / "stored.yaml").write_text("title: Mine\nruns: [{notebook: stored.ipynb, parameters: {records: stored}}]\n")
    text = (mine / "try.ipynb").read_text()
    (mine / "stored.ipynb").write_text(text.replace("out_dir: str", 'records: str = \\"stored\\"\\nout_dir: str'))
    status, out, err = amcl("run", word)
    assert status == 2 and words.format(mine=mine) in err, err
    assert len(err.splitlines()) == 1 and not re.search(r"[.?];|' Known", err), err


def test_paths_of_ones_own_may_lead_anywhere(mine, project):
    (mine / "sub").mkdir()
    (mine / "sub" / "up.yaml").write_text("title: Up\nruns: [{notebook: ../text.ipynb, parameters: {path: /data/x.csv}}]\n")
    text = (mine / "try.ipynb").read_text()
    (mine / "text.ipynb").write_text(text.replace("n: int = 2", 'path: str = \\"\\"\\nn: int = 2'))
    run, = load_job(mine / "sub" / "up.yaml").runs
    assert run.notebook == "../text.ipynb" and run.parameters == {"path": "/data/x.csv"}
    project.job("- {notebook: nbs/10_toy.ipynb, parameters: {n: 2}}\n- {notebook: ../mine/text.ipynb}")
    with pytest.raises(JobError, match="leads out of the project"): load_job("toy")


def test_a_job_runs_and_shows_no_stored_records(project, amcl):
    project.notebook("assert records == '', records\n" + RESULT,
                     parameters='n: int = 2\nrecords: str = "stored"\nout_dir: str = ""')
    project.job("- {notebook: nbs/10_toy.ipynb, name: a}")
    status, out, _ = amcl("run", "toy")
    assert status == 0 and "1 finished" in out, out
    folder, = (project.root / "runs" / "toy").glob("a-*")
    assert load_run(folder).parameters == {}


def test_a_part_may_bring_jobs_of_its_own(project, mine, monkeypatch):
    from amcl_suite.core.parts import Face
    from amcl_suite.reproduce import places
    monkeypatch.setattr(places, "parts", lambda: {"toy": Face("toy", "A toy", jobs=(str(mine / "job.yaml"),))})
    assert places.job_names() == ["job", "toy"]
    place = find_job("job")
    assert (place.root, place.runs, place.own) == (mine, project.root / "runs", True)
    assert load_job(mine / "job.yaml").runs == load_job("job").runs


def commit(root):
    git = ("git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.invalid")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "nbs", "scripts", "settings.ini"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)


def test_only_finished_records_of_a_commit_are_published(project, amcl):
    project.notebook("if n == 1: raise ValueError('one')\n" + RESULT.replace("_ =", "run.arrays(x=[n])\n_ ="))
    commit(project.root)
    assert project.amcl("run", "toy")[0] == 1
    kept = project.root / "nbs" / "90_results" / "records" / "toy"
    status, out, _ = amcl("publish", "toy")
    assert status == 1 and "left out: toy-1 (it is failed, not finished)" in out and "published: " in out, out
    folder, = kept.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "record.json"]
    assert not {"host", "pid", "token"} & set(read_json(folder / "record.json"))
    assert load_run(folder).arrays["x"].tolist() == [2]
    (project.root / "nbs" / "10_toy.ipynb").write_text((project.root / "nbs" / "10_toy.ipynb").read_text() + "\n ")
    assert project.amcl("run", "toy", "--force")[0] == 1                      # now with a change on top
    status, out, _ = amcl("publish", "toy", "--only", "n=2")
    assert status == 1 and "uncommitted changes" in out and list(kept.iterdir()) == [folder], out


def test_ones_own_jobs_are_not_published(mine, amcl):
    status, _, err = amcl("publish", mine / "job.yaml")
    assert status == 2 and "only jobs of the suite" in err


def test_the_command_greets_and_helps_without_an_error(amcl):
    status, out, err = amcl()
    assert status == 0 and not err and len(re.findall(r"^  amcl ", out, re.M)) == 5
    assert re.fullmatch(r"amcl_suite \d+\.\d+\.\d+\n", amcl("--version")[1])
    for words in ((), ("run",), ("data",), ("separation",), ("separation", "train"), ("ensembles", "sweep")):
        assert amcl(*words, "-h")[:2] == amcl(*words, "--help")[:2] and amcl(*words, "-h")[0] == 0
    for group in ("data", "separation", "ensembles"): assert amcl(group) == amcl(group, "-h")


@pytest.mark.parametrize("words, said", [
    (("separation", "train"), "Missing option '--out'; see `amcl separation train --help`"),
    (("separation", "trian"), "Did you mean 'train'? See `amcl separation --help`"),
    (("versoin",), "No such command 'versoin'; see `amcl --help`"), (("data", "lst"), "Did you mean 'list'? See `amcl data --help`"),
    (("data", "check", "zzz"), "unknown data set 'zzz'. Known:"), (("run", "zzz"), "unknown job 'zzz'. Known: toy (files")])
def test_messages_have_one_stop_and_name_the_right_help(amcl, words, said):
    status, _, err = amcl(*words)
    assert status == 2 and said in err and ".;" not in err, err


def test_what_is_not_called_is_not_loaded():
    code = ("import sys\nfrom amcl_suite.reproduce.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'pandas', 'numpy', 'papermill', 'submitit', 'amcl_suite.separation.command_line') "
            "if m in sys.modules])")
    for words in ((), ("--help",), ("list",), ("show", "quick_start")):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        loaded = done.stdout.splitlines()[-1]
        assert loaded == "[]" or words[:1] == ("show",) and "torch" not in loaded, (words, loaded)


def test_shells_complete_names_of_jobs(project):
    env = {"PATH": "/usr/bin:/bin", "AMCL_ROOT": str(project.root), "COMP_WORDS": "amcl run t", "COMP_CWORD": "2",
           "_AMCL_COMPLETE": "complete_bash", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-m", "amcl_suite"], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["toy"], done


def test_without_the_extra_nothing_is_begun(mine, amcl, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    status, out, err = amcl("run", mine / "job.yaml")
    assert status == 2 and 'pip install "amcl_suite[run]"' in err and not (mine / "runs").exists()
