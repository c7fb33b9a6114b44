"""`amcl audition`: play by keys, train and go on, judge, film, and one line for every wrong call."""
import io
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from scipy.io import wavfile

from amcl_suite.audition.agent_files import agent_settings, read_agent_settings
from amcl_suite.audition.episodes import load_episode, replay_episode
from amcl_suite.audition.separator import MaskSeparator, SeparatorConfig, save_separator
from amcl_suite.audition.sounds import SoundBank
from amcl_suite.audition.walk import WALK_COLUMNS, Walk
from amcl_suite.core.formats import read_npz
from amcl_suite.reproduce.cli import main
from toys import no_traceback

TINY = ("--world", "tiny", "--seed", 3, "--sound", "none", "--scores", "none")
TRAIN = ("train", "--world", "tiny", "--smoke")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def amcl(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("AMCL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with pytest.raises(SystemExit) as end: main(["audition", *(str(word) for word in words)])
        return end.value.code, *capsys.readouterr()
    return call


@pytest.fixture(scope="session")
def agent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents") / "tiny"
    with pytest.raises(SystemExit) as end: main(["audition", *TRAIN, "--out", str(folder)])
    assert end.value.code == 0
    return folder


def test_help_is_light_and_names_all_commands():
    code = "import sys; from amcl_suite.audition import command_line; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    done = subprocess.run([sys.executable, "-m", "amcl_suite", "audition", "-h"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("play", "train", "evaluate", "render"): assert f"  {name} " in done.stdout


def test_play_by_given_keys_keeps_scores_and_episode(amcl, tmp_path):
    words = ("play", *TINY[:-2], "--keys", "lfb lfffff", "--record", "mine")
    status, out, err = amcl(*words, "--sound", "pose.wav")
    assert status == 0 and "all found" in out and "1 of 1" in out and not err, err
    for name in ("keys", "random", "straight", "planner"): assert name in out
    assert "·" not in out.partition("all found")[0] and "x" in out.partition("all found")[2]      # the map comes at the end
    rate, sound = wavfile.read("pose.wav")
    assert rate == 8000 and sound.shape[1] == 2
    assert amcl(*words)[0] == 0
    scores = pandas.read_csv("audition_scores.csv")
    assert tuple(scores) == WALK_COLUMNS and list(scores.steps) == [9, 9] and scores.success.all()
    episode, held = load_episode("mine/episode.json"), read_npz("mine/sounds.npz")
    bank = SoundBank(held["signals"], tuple(map(str, held["names"])), int(held["sample_rate"]))
    assert len(list(replay_episode(episode, bank, strict=True))) == 10
    assert amcl("render", "mine/episode.json", "--out", "mine.gif")[0] == 0 and (tmp_path / "mine.gif").stat().st_size > 1000


def test_keys_come_line_by_line_where_there_is_no_terminal(amcl, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("l\nlf?\nffff\n"))
    status, out, err = amcl("play", *TINY, "--map")
    assert status == 0 and "'?' does nothing here" in out and "human" in out and "1 of 1" in out, out + err
    monkeypatch.setattr(sys, "stdin", io.StringIO("f\nq\nf\n"))
    status, out, _ = amcl("play", *TINY, "--episodes", 2)
    assert status == 0 and "0 of 2" in out and out.count("step 1 of 50") == 2


def test_arrow_keys_act_at_once(amcl, monkeypatch):
    for world, sent, told in (("tiny", b"\x1b[D\x1b[Dfffff", "turn left"), ("spring", b"\x1b[A\x1bOB,.lq", "up")):
        master, terminal = pty.openpty()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdin", open(terminal))
        os.write(master, sent)
        words = ("--set", "order=0", "--set", "seconds=0.5", "--set", "window=loop") if world == "spring" else ()
        status, out, err = amcl("play", "--world", world, *TINY[2:], *words)
        assert status == 0 and f"step 1 of {50 if world == 'tiny' else 100}, {told}" in out, out + err
        if world == "tiny": assert "all found" in out
        else:
            for name in ("down", "turn left", "turn right", "left"): assert f", {name}, 2 sources" in out, name
            assert "straight" not in out and "planner" in out
        sys.stdin.close(), os.close(master)


def test_the_same_episode_for_person_and_agent(amcl, agent):
    status, out, err = amcl("play", "--agent", agent, *TINY[2:], "--keys", "q")
    assert status == 0 and "features" in out and "random" in out, err
    with pytest.raises(ValueError, match="was over"):
        walk = Walk(agent_settings("tiny").world, seed=3)
        for action in (2, 2, 0, 0, 0, 0, 0, 0): walk.act(action)


def test_train_goes_on_bit_by_bit_and_is_judged_and_filmed(amcl, agent, tmp_path):
    half = tmp_path / "half"
    status, out, err = amcl(*TRAIN, "--out", half, "--until", 1024)
    assert status == 0 and "1,024 of 2,048" in out and "the same command goes on" in out, err
    status, out, err = amcl(*TRAIN, "--out", half)
    assert status == 0 and "1,024 of" not in out and "2,048 of 2,048: won" in out and "evaluate" in out, err
    nets = [torch.load(folder / "last.pt", weights_only=True)["net"] for folder in (agent, half)]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    for name in ("episodes.csv", "validation.csv"): assert (agent / name).read_text() == (half / name).read_text()
    status, out, err = amcl(*TRAIN, "--out", half)                         # done before
    assert status == 0 and "2,048 of" not in out and "ended: 2,048 steps" in out, err
    status, out, err = amcl(*TRAIN, "--out", half, "--set", "order=1")
    assert no_traceback(status, out, err) and "order" in err and "another folder" in err
    assert read_agent_settings(half)[0].training.n_steps == 2048 and (half / "best.pt").exists()

    status, out, err = amcl("evaluate", half, "--episodes", 5, "--seed", 1, "--out", "table.csv")
    assert status == 0 and "features greedy" in out and "5 held-out episodes" in out, err
    frame = pandas.read_csv("table.csv")
    assert tuple(frame) == WALK_COLUMNS and set(frame.agent) == {"features", "features greedy", "random", "straight", "planner"}
    assert (frame.groupby("agent").size() == 5).all() and frame[frame.agent == "planner"].success.all()

    status, out, err = amcl("render", half, "--out", "film", "--seed", 3)
    assert status == 0 and "film.gif" in out and (tmp_path / "film/film.wav").exists(), err
    assert json.loads((tmp_path / "film/episode.json").read_text())["seed"] == 3
    assert amcl("render", "film/episode.json", "--out", "again.gif")[0] == 0
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "film/film.gif").read_bytes()
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "film/film.wav").read_bytes()
    assert amcl("render", "planner", "--world", "tiny", "--out", "planned")[0] == 0


def test_masks_that_learn_and_masks_that_stay(amcl, tmp_path):
    words = (*TRAIN, "--agent", "separator", "--set", "hidden=4", "--set", "n_validation=2", "--set", "validation_freq=256",
             "--set", "learning_starts=128")
    status, out, err = amcl(*words, "--out", "learns", "--until", 256)
    assert status == 0 and "256 of 2,048" in out, out + err
    status, out, err = amcl("evaluate", "learns", "--episodes", 2)
    assert status == 0 and "separator greedy" in out, err
    save_separator(tmp_path / "masks.pt", MaskSeparator(SeparatorConfig(1, hidden=4), seed=0))
    status, out, err = amcl(*words, "--separator", "masks.pt", "--out", "stays", "--until", 256)
    assert status == 0, err
    (tmp_path / "masks.pt").unlink()                                       # the folder has its own copy
    assert amcl("evaluate", "stays", "--episodes", 2)[0] == 0
    save_separator(tmp_path / "two.pt", MaskSeparator(SeparatorConfig(2, hidden=4), seed=0))
    status, out, err = amcl(*words, "--separator", "two.pt", "--out", "no")
    assert no_traceback(status, out, err) and "sources of the world" in err


@pytest.mark.parametrize("make, contains", [
    (lambda p: None, "no sound files"),
    (lambda p: wavfile.write(p / "a.wav", 22050, np.zeros(9000, np.int16)), "silent"),
    (lambda p: wavfile.write(p / "a.wav", 8000, np.full(9000, np.nan, np.float32)), "NaN"),
    (lambda p: wavfile.write(p / "a.wav", 44100, np.sin(np.arange(9000) / 9).astype(np.float32)), "expected 2 or more"),
    (lambda p: (p / "a.wav").write_bytes(b"RIFF"), "a.wav"),
])
def test_own_sounds_that_are_unfit(amcl, tmp_path, make, contains):
    (tmp_path / "own").mkdir()
    make(tmp_path / "own")
    status, out, err = amcl(*TRAIN, "--sounds", "own", "--out", "run")
    assert no_traceback(status, out, err) and contains in err, err
    assert not (tmp_path / "run").exists()


def test_own_sounds_of_any_rate_are_played(amcl, tmp_path):
    (tmp_path / "own").mkdir()
    for k, rate in enumerate((22050, 8000)):
        wavfile.write(tmp_path / "own" / f"{k}.wav", rate, (9e3 * np.sin(np.arange(rate) * .3 * (k + 1))).astype(np.int16))
    status, out, err = amcl("play", *TINY, "--sounds", "own", "--keys", "llfffff")
    assert status == 0 and "1 of 1" in out, err
    assert amcl(*TRAIN, "--sounds", "own", "--out", "run", "--until", 256)[0] == 0
    wavfile.write(tmp_path / "own" / "2.wav", 8000, (9e3 * np.sin(np.arange(8000) * .9)).astype(np.int16))
    status, out, err = amcl("evaluate", "run", "--episodes", 2)
    assert no_traceback(status, out, err) and "not those" in err


def test_folders_that_are_no_agent(amcl, agent, tmp_path):
    import shutil

    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/executed",)
    for name in ("evil", "other", "config", "strange"): shutil.copytree(agent, tmp_path / name)
    torch.save({"weights": Evil()}, tmp_path / "evil/best.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other/best.pt")
    (tmp_path / "config/config.json").write_text("{")
    (tmp_path / "strange/config.json").write_text(json.dumps({"format": "audition agent", "settings": {}}))
    for name, contains in (("evil", "best.pt"), ("other", "another network"), ("config", "not valid JSON"),
                           ("strange", "can't be read"), ("nowhere", "holds no agent")):
        status, out, err = amcl("evaluate", name)
        assert no_traceback(status, out, err) and contains in err, (name, err)
    assert not (tmp_path / "executed").exists()


PLAY, RENDER = ("play", "--sound", "none", "--keys", "f"), ("render", "planner", "--out", "x", "--world", "tiny")


@pytest.mark.parametrize("words, contains", [
    ((*PLAY, "--world", "tinny"), "did you mean 'tiny'"),
    ((*PLAY, "--world", "experiment 6"), "did you mean 'experiment"),
    ((*PLAY[:-1], "fx", "--world", "tiny"), "'x' does nothing here"),
    (("play", *TINY, "--keys", "llfffffff"), "over after 7 steps; leave out the last 2"),
    ((*PLAY, "--world", "tiny", "--scores", "/proc/x.csv"), "/proc"),
    ((*PLAY[:2], "/proc/x.wav", *PLAY[3:], "--world", "tiny"), "/proc"),
    ((*PLAY, "--agent", "nowhere"), "holds no agent"),
    ((*PLAY, "--agent", "AGENT", "--set", "order=1"), "--agent"),
    ((*PLAY, "--episodes", "0"), "--episodes"),
    ((*PLAY, "--sounds", "nowhere"), "nowhere"),
    (("train", "--world", "tiny"), "--out"),
    ((*TRAIN, "--out", "/proc/x"), "/proc"),
    ((*TRAIN, "--out", "x", "--agent", "nose"), "'features' or 'separator'"),
    ((*TRAIN, "--out", "x", "--separator", "a.pt"), "pretrained"),
    ((*TRAIN, "--out", "x", "--agent", "separator", "--separator", "a.pt"), "a.pt"),
    ((*TRAIN, "--out", "x", "--steps", "0"), "--steps"),
    ((*TRAIN, "--out", "x", "--set", "order"), "KEY=VALUE"),
    ((*TRAIN, "--out", "x", "--set", "order=1", "--set", "order=2"), "twice"),
    ((*TRAIN, "--out", "x", "--set", "ordr=1"), "did you mean 'order'"),
    ((*TRAIN, "--out", "x", "--set", "kind=hexagon"), "world.room.kind"),
    ((*TRAIN, "--out", "x", "--set", "world.room.kind=hexagn"), "hexagon"),
    ((*TRAIN, "--out", "x", "--set", "n_sources=0"), "n_sources"),
    ((*TRAIN, "--out", "x", "--set", "radius=0.2"), "half a step"),
    ((*TRAIN, "--out", "x", "--set", "size=[0.5, 0.5]"), "room"),
    ((*TRAIN, "--out", "x", "--set", "size=4"), "size"),
    ((*TRAIN, "--out", "x", "--set", "order=-1"), "order"),
    ((*TRAIN, "--out", "x", "--set", "absorption=1.5"), "absorption"),
    ((*TRAIN, "--out", "x", "--set", "degrees=50"), "degrees"),
    ((*TRAIN, "--out", "x", "--set", "spacing=0"), "spacing"),
    ((*TRAIN, "--out", "x", "--set", "n_sounds=1"), "n_sounds"),
    ((*TRAIN, "--out", "x", "--set", "learning_rate=0"), "learning_rate"),
    (("evaluate", "AGENT", "--episodes", "0"), "--episodes"),
    (("evaluate", "AGENT", "--episodes", "1", "--out", "/proc/x.csv"), "/proc"),
    (("render", "plannner", "--out", "x", "--world", "tiny"), "did you mean 'planner'"),
    (("render", "nowhere.json", "--out", "x.gif"), "nowhere.json"),
    (("render", "AGENT", "--out", "x", "--set", "order=1"), "--agent"),
    ((*RENDER, "--set", "agent=fixed", "--set", "position=[9, 9]"), "position"),
    (("ply",), "ply"),
])
def test_wrong_calls_are_one_line(amcl, agent, tmp_path, words, contains):
    status, out, err = amcl(*(agent if word == "AGENT" else word for word in words))
    assert no_traceback(status, out, err) and contains in err, (status, out, err)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.csv"))


def test_films_of_a_stored_episode_that_is_damaged(amcl, tmp_path, monkeypatch):
    assert amcl(*RENDER)[0] == 0
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        status, out, err = amcl("render", "x/episode.json", "--out", "film.mp4")
        assert no_traceback(status, out, err) and "ffmpeg" in err
    status, out, err = amcl("render", "x/episode.json", "--out", "film.avi")
    assert no_traceback(status, out, err) and ".gif" in err
    wrong = json.loads((tmp_path / "x/episode.json").read_text()) | {"actions": [0, 7]}
    (tmp_path / "x/episode.json").write_text(json.dumps(wrong))
    status, out, err = amcl("render", "x/episode.json", "--out", "film.gif")
    assert no_traceback(status, out, err) and "got 7" in err, err
    (tmp_path / "x/sounds.npz").unlink()
    status, out, err = amcl("render", "x/episode.json", "--out", "film.gif")
    assert no_traceback(status, out, err) and "sounds.npz" in err
