"""`amcl separation`: what it prints and writes, how it ends, and that it goes on where it was stopped."""
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pandas
import pytest
import torch
from amcl_suite.core.audio import audio_info, read_audio, write_audio
from amcl_suite.core.training import bfloat16_works
from amcl_suite.separation.checkpoints import save_model
from amcl_suite.reproduce.cli import main
from amcl_suite.separation.models import DPRNNConfig, build_model
from toys import no_traceback

PROGRAM = (sys.executable, "-m", "amcl_suite", "separation")
TRAIN = ("train", "--epochs", "1", "--set", "segment=1", "--seed", "1")


@pytest.fixture
def amcl(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("AMCL_DEBUG", raising=False)

    def call(*words):
        with pytest.raises(SystemExit) as end: main(["separation", *(str(word) for word in words)])
        return end.value.code, *capsys.readouterr()
    return call


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "voices"
    with pytest.raises(SystemExit) as end:
        main(["separation", "make-corpus", "synthetic", str(folder), "--sizes", "8,4,4", "--seconds", "1"])
    assert end.value.code == 0
    return folder


@pytest.fixture(scope="session")
def separator(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(DPRNNConfig.small(n_blocks=1, hidden=8, bottleneck=8, n_filters=16))
    return save_model(tmp_path_factory.mktemp("model") / "separator.pt", model)


@pytest.fixture
def recordings(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for k, rate in enumerate((8000, 16_000, 11_025)):
        write_audio(tmp_path / "in" / f"r{k}.wav", .1 * torch.randn(2 * rate, generator=generator), rate)
    return tmp_path / "in"


def test_help_is_light_and_names_all_commands():
    code = "import sys; from amcl_suite.separation import command_line; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    done = subprocess.run([*PROGRAM, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("make-corpus", "check", "train", "evaluate", "separate"): assert name in done.stdout


def test_make_and_check(amcl, corpus, tmp_path):
    status, out, _ = amcl("check", corpus)
    assert status == 0 and "the corpus is fine" in out
    status, out, err = amcl("check", corpus / "wav8k/min/metadata/tt/2_2.csv", "--splits", "tt")
    assert status == 0 and "the corpus is fine" in out, err     # a table finds its root by itself
    bad = shutil.copytree(corpus, tmp_path / "bad")
    victim = sorted(bad.rglob("tt/s1/*.wav"))[0]
    waveform, rate = read_audio(victim)
    write_audio(victim, waveform.flip(0), rate)
    status, out, _ = amcl("check", bad, "--splits", "tt")
    assert status == 1 and "row 0 (line 2)" in out and "1 problem\n" in out
    victim.write_bytes(victim.read_bytes()[:900])
    status, out, err = amcl("check", bad, "--splits", "tt")
    assert status == 1 and "truncated" in out and "Traceback" not in err


def test_make_again_gives_the_same(amcl, corpus, tmp_path):
    words = ("--sizes", "8,4,4", "--seconds", "1")
    assert amcl("make-corpus", "synthetic", tmp_path / "again", *words)[0] == 0
    names = sorted(p.relative_to(corpus) for p in corpus.rglob("*.wav"))
    assert len(names) == 3 * 16
    assert all((corpus / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


def test_make_from_clips(amcl, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for speaker in range(8):
        for clip in range(4):
            write_audio(tmp_path / "clips" / f"p{speaker}" / f"p{speaker}-{clip}.wav",
                        .1 * torch.randn(4000, generator=generator), 8000)
    words = ("--clips", tmp_path / "clips", "--sizes", "2,2,2", "--seconds", "0.5", "--speakers", "2")
    status, out, err = amcl("make-corpus", "clips", tmp_path / "mixed", *words)
    assert status == 0 and "next: amcl separation check" in out, err
    assert amcl("check", tmp_path / "mixed")[0] == 0


def test_train_evaluate_separate(amcl, corpus, tmp_path):
    words = (*TRAIN, "--corpus", corpus, "--out", tmp_path / "run", "--objective", "amcl_sisdr")
    status, out, err = amcl(*words)
    assert status == 0 and "epoch 1 of 1" in out and str(tmp_path / "run" / "separator.pt") in out, err
    status, out, err = amcl(*words)                            # done before: nothing is trained again
    assert status == 0 and "epoch 1 of 1" not in out and "ended: after the last epoch" in out, err
    status, out, err = amcl(*words[:-1], "wta_sisdr")          # another objective in this folder
    assert no_traceback(status, out, err) and "amcl_sisdr" in err and "another folder" in err
    kept = torch.load(tmp_path / "run" / "separator.pt", weights_only=True)
    assert kept["metadata"]["configuration"]["training"]["seed"] == 1

    table = tmp_path / "metrics.parquet"
    status, out, err = amcl("evaluate", tmp_path / "run", corpus, "--out", table, "--by", "input_level",
                            "--extras", "sdr")
    assert status == 0 and "pit_si_sdri" in out and "count_accuracy" in out and "input_level" in out, err
    frame = pandas.read_parquet(table)
    assert len(frame) == 4 and frame["pit_si_sdr"].dtype == float and frame["sdr"].notna().all()

    three = tmp_path / "three"
    assert amcl("make-corpus", "synthetic", three, "--sizes", "1,1,2", "--seconds", "1", "--speakers", "2-3")[0] == 0
    status, out, err = amcl("evaluate", tmp_path / "run", three, "--speakers", "2-3")
    assert status == 0 and "2 outputs for up to 3 speakers" in out, err

    mixture = sorted(corpus.rglob("tt/mix/*.wav"))[0]
    status, out, err = amcl("separate", mixture, "--checkpoint", tmp_path / "run", "--out", tmp_path / "tracks",
                            "--threshold", 0)
    assert status == 0 and "2 speakers" in out, err
    for k in (1, 2):
        assert audio_info(tmp_path / "tracks" / mixture.stem / f"s{k}.wav") == audio_info(mixture)

    words = ("separate", mixture, "--checkpoint", tmp_path / "run", "--out", tmp_path / "tracks", "--threshold", 0)
    full = read_audio(tmp_path / "tracks" / mixture.stem / "s1.wav")[0]
    assert "done before" in amcl(*words)[1]
    status, out, err = amcl(*words, "--precision", "bf16")          # another result, which is made anew
    if not bfloat16_works(): assert no_traceback(status, out, err) and "precision" in err; return
    half = read_audio(tmp_path / "tracks" / mixture.stem / "s1.wav")[0]
    assert status == 0 and "done before" not in out and not torch.equal(half, full), err
    assert 10 * torch.log10(full.square().sum() / (half - full).square().sum()) > 20       # dB
    assert "done before" in amcl(*words, "--precision", "bf16")[1]
    status, out, err = amcl(*words, "--precision", "16")
    assert no_traceback(status, out, err) and "precision" in err


@pytest.mark.parametrize("words, contains", [
    (("train", "--out", "x", "--objective", "pit_sisdrr"), "pit_sisdrr"),
    (("train", "--out", "x", "--configuration", "amlc-3"), "did you mean 'amcl-3'"),
    (("train", "--out", "x", "--set", "epochs=3"), "did you mean 'n_epochs'"),
    (("train", "--out", "x", "--set", "epochs"), "KEY=VALUE"),
    (("train", "--out", "x", "--set", "temperature=-1"), "temperature"),
    (("train", "--out", "x", "--objective", "relaxed_sisdr", "--set", "epsilon=2"), "epsilon"),
    (("train", "--out", "x", "--speakers", "3", "--n-hyps", "2"), "n_hyps"),
    (("train", "--out", "x", "--speakers", "many"), "--speakers"),
    (("train", "--out", "x", "--backbone", "dprn"), "did you mean 'dprnn'"),
    (("train", "--out", "x", "--epochs", "0"), "epochs"),
    (("train", "--out", "x", "--corpus", "librispech"), "did you mean 'librispeech'"),
    (("train", "--corpus", "synthetic"), "--out"),
    (("make-corpus", "espeek", "x"), "KIND"),
    (("make-corpus", "clips", "x"), "--clips"),
    (("make-corpus", "synthetic", "x", "--wsj0", "y"), "--wsj0"),
    (("make-corpus", "synthetic", "x", "--sizes", "8,8"), "--sizes"),
    (("make-corpus", "wsj0", "x", "--mix-lists", "y", "--wsj0", "z", "--seconds", "2"), "--seconds"),
    (("make-corpus", "synthetic", "/proc/x", "--sizes", "1,1,1"), "/proc"),
    (("check", "/nowhere"), "/nowhere"),
    (("evaluate", "/nowhere", "synthetic"), "/nowhere"),
    (("evaluate", "/nowhere", "synthetic", "--by", "sex"), "--by"),
    (("separate", "/nowhere.wav", "--checkpoint", "a", "--out", "b"), "/nowhere.wav"),
    (("separete", "a.wav"), "separete"),
])
def test_wrong_calls_are_one_line(amcl, tmp_path, monkeypatch, words, contains):
    monkeypatch.chdir(tmp_path)
    status, out, err = amcl(*words)
    assert no_traceback(status, out, err) and contains in err, err
    assert not list(tmp_path.rglob("*.pt"))


def test_without_a_checkpoint_the_demo_separates(amcl, recordings, tmp_path):
    status, out, err = amcl("separate", recordings, "--out", tmp_path / "out", "--threshold", 0)
    assert status == 0 and "small demo" in out + err
    assert len(list((tmp_path / "out").rglob("s2.wav"))) >= 1


def test_checkpoints_that_are_none(amcl, recordings, tmp_path, separator):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/executed",)
    files = {"text.pt": b"hello", "pickle.pt": pickle.dumps(Evil()), "cut.pt": separator.read_bytes()[:2000]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        status, out, err = amcl("separate", recordings, "--checkpoint", tmp_path / name, "--out", tmp_path / "out")
        assert no_traceback(status, out, err) and name in err, err
    torch.save({"model": Evil()}, tmp_path / "torch.pt")
    status, out, err = amcl("separate", recordings, "--checkpoint", tmp_path / "torch.pt", "--out", tmp_path / "out")
    assert no_traceback(status, out, err) and "torch.pt" in err
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_bad_recordings_dont_stop_the_others(amcl, recordings, tmp_path, separator):
    (recordings / "r1.wav").write_bytes((recordings / "r1.wav").read_bytes()[:500])
    (recordings / "empty.wav").write_bytes(b"")
    words = ("separate", recordings, "--checkpoint", separator, "--out", tmp_path / "out", "--threshold", 0)
    status, out, err = amcl(*words)
    assert status == 1 and "2 separated, 2 failed" in out and "r1.wav: truncated" in out and "empty.wav" in out
    assert sorted(p.parent.name for p in (tmp_path / "out").rglob("result.json")) == ["r0", "r2"]
    status, out, err = amcl(*words)
    assert status == 1 and out.count("done before") == 2
    result = json.loads((tmp_path / "out" / "r0" / "result.json").read_text())
    assert result["count"] == 2 and result["sample_rate"] == 8000 and len(result["scores"]) == 2


@pytest.mark.slow
def test_killed_while_separating_goes_on(amcl, recordings, tmp_path, separator):
    for k in range(3, 40): shutil.copy(recordings / "r0.wav", recordings / f"r{k}.wav")
    words = ["separate", str(recordings), "--checkpoint", str(separator), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").rglob("result.json"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    results = (tmp_path / "out").rglob("result.json")           # whole, and one may say "not finished"
    done = {p: p.stat().st_mtime_ns for p in results if "count" in json.loads(p.read_text())}
    status, out, _ = amcl(*words)
    assert status == 0 and out.count("done before") == len(done) and "40 separated, 0 failed" in out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())


@pytest.mark.slow
def test_interrupt_ends_with_130(recordings, tmp_path, separator):
    for k in range(3, 60): shutil.copy(recordings / "r0.wav", recordings / f"r{k}.wav")
    words = ["separate", str(recordings), "--checkpoint", str(separator), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("result.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in err and "Traceback" not in err


def test_several_recordings_are_separated_in_one_call(amcl, separator, recordings, tmp_path):
    options = ("--checkpoint", separator, "--out", tmp_path / "out", "--threshold", 0)
    status, out, err = amcl("separate", recordings / "r0.wav", recordings / "r1.wav", *options)
    assert status == 0 and "2 separated, 0 failed" in out, err
    assert (tmp_path / "out" / "r0" / "s1.wav").exists() and (tmp_path / "out" / "r1" / "s1.wav").exists()
    status, _, err = amcl("separate", recordings, recordings / "r0.wav", *options)
    assert status == 2 and "in is a folder; name it alone" in err, err
    shutil.copytree(recordings, tmp_path / "again")
    status, _, err = amcl("separate", recordings / "r0.wav", tmp_path / "again" / "r0.wav", *options)
    assert status == 2 and "would have their results in one folder" in err, err
