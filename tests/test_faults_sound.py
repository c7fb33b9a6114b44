"Faults S4, S11, C4 and the small ones: folders of recordings that people filled, corpora, commands."
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from amcl_suite.core.audio import read_audio, write_audio
from amcl_suite.core.sound import is_silent
from amcl_suite.core.data import data_folders
from amcl_suite.core.files import DataError
from amcl_suite.separation.checkpoints import CheckpointError, load_model, save_model
from amcl_suite.separation.clips import clips_from_folder, speaker_of
from amcl_suite.reproduce.cli import main
from amcl_suite.separation.corpora import Corpus, MixtureRow
from amcl_suite.separation.evaluation import load_metrics
from amcl_suite.separation.layouts import read_corpus, read_json_lists, read_metadata, read_wsj0_mix
from amcl_suite.separation.making import clips_corpus, left_out
from amcl_suite.separation.metrics import evaluate_batch
from amcl_suite.separation.mixing import mix
from amcl_suite.separation.models import DPRNNConfig, build_model
from amcl_suite.separation.recordings import separate_folder
from amcl_suite.separation.separate import separate
from amcl_suite.separation.temperature import stored_unit
from amcl_suite.separation.validation import validate
from amcl_suite.separation.wsj0 import make_wsj0_mix, read_mix_list

RNG = np.random.default_rng(0)
OPTIONS = dict(sizes=dict(tr=4, cv=2, tt=2), seconds=.5, seed=0)


def noise(n=8000): return np.clip(.1 * RNG.normal(size=n), -1, 1)


@pytest.fixture
def amcl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    def call(*words):
        with pytest.raises(SystemExit) as end: main(["separation", *(str(word) for word in words)])
        return end.value.code, *capsys.readouterr()
    return call


@pytest.fixture(scope="module")
def separator(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(DPRNNConfig.small(n_blocks=1, hidden=8, bottleneck=8, n_filters=16))
    return save_model(tmp_path_factory.mktemp("model") / "separator.pt", model)


def voices(folder, make, speakers="abcdefgh", n=6):
    for speaker in speakers:
        (folder / speaker).mkdir(parents=True)
        for k in range(n): soundfile.write(folder / speaker / f"u{k}.wav", make(), 8000)
    return folder


@pytest.mark.parametrize("make", [lambda: np.full(8000, .3),
                                  lambda: np.stack([x := noise(), -x], 1)])
def test_s4_clips_without_a_sound_make_no_corpus(tmp_path, make):
    with pytest.raises(DataError, match="u.*wav: silent"):
        clips_corpus(voices(tmp_path / "c", make), 2, tmp_path / "o", **OPTIONS)


def test_s4_silent_and_damaged_clips_are_left_out_by_name(amcl, tmp_path):
    clips = voices(tmp_path / "c", noise)
    soundfile.write(clips / "a/u1.wav", np.full(8000, .3), 8000)
    whole = (clips / "b/u2.wav").read_bytes()
    (clips / "b/u2.wav").write_bytes(whole[:4000])
    Path(str(clips) + "/c/u\udce9.wav").write_bytes(b"")
    (clips / "d/._u0.wav").write_bytes(b"\0\5\x16\7")
    words = ("make-corpus", "clips", tmp_path / "o", "--clips", clips, "--sizes", "4,2,2", "--seconds", ".5")
    for _ in range(2):                                              # the second call finds it
        status, out, err = amcl(*words)
        failed = [line for line in out.splitlines() if line.startswith("failed: ")]
        assert status == 1 and len(failed) == 3 and not err, out + err
        for name in ("a/u1.wav: silent", "b/u2.wav: truncated", "c/u\\xe9.wav: the file is empty"):
            assert any(name in line for line in failed)
    assert len(left_out(tmp_path / "o")) == 3
    assert all(not validate(read_corpus(tmp_path / "o", s)).problems for s in ("tr", "cv", "tt"))


def test_s4_check_names_what_does_not_vary(tmp_path):
    x = noise()
    flat = np.full(8000, 2000 / 32768)
    files = [write_audio(tmp_path / f"{k}.wav", s, 8000) for k, s in enumerate((x / 2 + flat, x / 2, flat))]
    row = MixtureRow("m", files[0], tuple(files[1:]), 8000, 2)
    (problem,) = validate(Corpus("c", "tr", 8000, (row,), tmp_path)).problems
    assert problem.kind == "silent" and "source [2]" in problem.message
    with pytest.raises(ValueError, match="source 1 is silent"): mix([x, np.full(8000, .3)], [1, -1], 8000)
    assert not is_silent(mix([x + .3, noise()], [1, -1], 8000).sources).any()       # an offset is fine


@pytest.mark.parametrize("samples", [np.zeros(9000), np.full(9000, .3), np.stack([noise(9000)] * 2, 1) * [1, -1]])
def test_s4_separate_says_that_a_recording_is_silent(amcl, separator, tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    status, out, _ = amcl("separate", tmp_path / "a.wav", "--checkpoint", separator, "--out", tmp_path / "o")
    assert status == 0 and "a: the recording is silent" in out and "speakers" not in out
    result = json.loads((tmp_path / "o/a/result.json").read_text())
    assert result["count"] == 0 and "silent" in result["note"] and not list((tmp_path / "o/a").glob("*.wav"))
    assert "silent" in repr(separate(tmp_path / "a.wav", separator))


def test_s4_metrics_skip_targets_that_do_not_vary():
    x = torch.from_numpy(noise()).float()
    targets = torch.stack([x, torch.full_like(x, .3)])[None]
    assert evaluate_batch(targets, None, targets, targets.sum(1))["n_true"].tolist() == [1]


def odd_folder(folder):
    "The recordings of C4, and more: a stream, a name that isn't UTF-8, capitals, Mac files, a pipe."
    folder.mkdir()
    x = (.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype("float32")
    for name in ("a.wav", "b.flac", "z.wav"): soundfile.write(folder / name, x, 8000)
    content = bytearray((folder / "b.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (folder / "b.flac").write_bytes(content)
    Path(str(folder) + "/b\udce9.wav").write_bytes((folder / "a.wav").read_bytes())
    (folder / "z.wav").rename(folder / "Z.WAV")
    (folder / "._a.wav").write_bytes(b"\0\5\x16\7")
    os.mkfifo(folder / "pipe.wav")
    (folder / "gone.wav").symlink_to(folder / "nowhere")
    return folder


def test_c4_one_odd_file_ends_no_folder(amcl, separator, tmp_path):
    words = ("separate", odd_folder(tmp_path / "rec"), "--checkpoint", separator, "--out", tmp_path / "o")
    status, out, err = amcl(*words, "--threshold", 0)
    assert status == 1 and "4 separated, 1 failed" in out and "failed: " in out and "gone.wav" in out, out + err
    assert "b\\xe9: 2 speakers" in out and "Traceback" not in err
    assert len(read_audio(tmp_path / "o/b/s1.wav")[0]) == 8000


def test_c4_two_files_of_one_name_end_no_folder(separator, tmp_path):
    for name in ("a.wav", "a.flac", "b.wav"):
        (tmp_path / "rec").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "rec" / name, noise(), 8000)
    results = separate_folder(tmp_path / "rec", tmp_path / "o", separator)
    assert {r.name: r.state for r in results} == dict.fromkeys(("a.wav", "a.flac", "b"), "separated")


def wsj0(folder, upper):
    "A small WSJ0 of one list, whose recordings have names in capitals or not."
    lines, names = [], []
    for s in ("01t", "20g"):
        name = f"wsj0/si_tr_s/{s}/{s}o030v.wav"
        place = folder / (f"wsj0/SI_TR_S/{s}/{s}o030v".upper().replace("WSJ0", "wsj0") + ".WAV" if upper else name)
        write_audio(place, noise(), 16000)
        names.append(name)
    lists = folder / "lists" / "mix_2_spk_tr.txt"
    lists.parent.mkdir()
    lists.write_text(f"{names[0]} 1.5 {names[1]} -1.5\n")
    return lists.parent


@pytest.mark.parametrize("upper", [False, True])
def test_s11_lists_name_recordings_in_any_case(tmp_path, upper):
    lists = wsj0(tmp_path, upper)
    for k, root in enumerate((tmp_path, tmp_path / "wsj0")):
        make_wsj0_mix(lists, root, tmp_path / f"o{k}", splits=["tr"])
        assert len(read_corpus(tmp_path / f"o{k}", "tr")) == 1


def test_s11_corpora_in_capitals_lose_no_row(tmp_path):
    base = tmp_path / "2speakers/wav8k/min/tr"
    parts = noise(), noise()
    for name in ("01ta_1.0_20ga_-1.0.WAV", "01tb_1.0_20gb_-1.0.wav"):
        for part, x in zip(("mix", "s1", "s2"), (sum(parts), *parts)): write_audio(base / part / name, x, 8000)
        (base / "mix" / f"._{name}").write_bytes(b"\0\5\x16\7")
    corpus = read_wsj0_mix(tmp_path, "tr")
    assert [row.levels for row in corpus] == [(1., -1.)] * 2 and validate(corpus).ok
    table = tmp_path / "t.csv"
    table.write_text("mix,n_src,length,s1,s2\n" + ",".join(
        f"2speakers/wav8k/min/tr/{part}/01ta_1.0_20ga_-1.0.wav" + (",2,8000" if part == "mix" else "")
        for part in ("mix", "s1", "s2")) + "\n")
    assert validate(read_metadata(table, tmp_path)).ok
    (tmp_path / "lists").mkdir()
    for part in ("mix", "s1", "s2"):
        entry = [f"2speakers/wav8k/min/tr/{part}/01TB_1.0_20gb_-1.0.wav", 8000]
        (tmp_path / "lists" / f"{part}.json").write_text(json.dumps([entry]))
    assert validate(read_json_lists(tmp_path / "lists", "tr", root=tmp_path)).ok


def test_s11_clips_in_capitals(tmp_path):
    for k, name in enumerate(("A/x.WAV", "A/y.Flac", "B/z.wav")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, noise(), 8000, format="FLAC" if k == 1 else "WAV")
        (tmp_path / name).with_name("._" + Path(name).name).write_bytes(b"")
    assert [clip.name for clip in clips_from_folder(tmp_path)] == ["A-x", "A-y", "B-z"]


def test_c9_damaged_small_files_are_named(tmp_path, separator):
    lists = {"mix": [["a.wav"]], "s1": [[3, 4]], "s2": [None]}
    for content in ("", "[", "{}", "[3]", json.dumps(lists["mix"]), json.dumps(lists["s1"]), "[null]"):
        for part in ("mix", "s1"): (tmp_path / f"{part}.json").write_text(content)
        with pytest.raises(DataError, match=str(tmp_path)): read_json_lists(tmp_path, "tr")
    for content in (b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b"{}"):
        (tmp_path / "m.parquet").write_bytes(content)
        with pytest.raises(DataError, match="m.parquet"): load_metrics(tmp_path / "m.parquet")
        (tmp_path / "corpus.json").write_bytes(content.replace(b"{}", b"[]"))
        with pytest.raises(DataError, match="corpus.json"): read_corpus(tmp_path, "tr")
        (tmp_path / "unit.json").write_bytes(content)
        assert stored_unit(tmp_path / "unit.json", lambda: 3.) == 3.
        (tmp_path / "c.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="c.pt"): load_model(tmp_path / "c.pt")
    flipped = bytearray(separator.read_bytes())
    weights = next(iter(load_model(separator).parameters())).detach().numpy().tobytes()
    flipped[flipped.index(weights) + 3] ^= 64
    (tmp_path / "c.pt").write_bytes(flipped)
    with pytest.raises(CheckpointError, match="check sum"): load_model(tmp_path / "c.pt")


@pytest.mark.parametrize("words, missing", [
    (("separate", ".", "--checkpoint", "x.pt", "--out", "o"), "asteroid"),
    (("train", "--out", "o"), "asteroid"),
    (("evaluate", "x.pt", "synthetic", "--extras", "pesq"), "pesq"),
    (("make-corpus", "synthetic", "o"), "soundfile"), (("check", "."), "soundfile")])
def test_small_a_missing_extra_is_reported_before_anything_heavy_is_imported(tmp_path, words, missing):
    code = (f"import sys; sys.modules[{missing!r}] = None\n"
            "from amcl_suite.reproduce.cli import main\n"
            f"try: main({['separation', *words]!r})\n"
            "finally: assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"amcl: {missing} is not installed")
    assert "amcl_suite[separation]" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_small_evaluate_prints_units_and_why_a_value_is_missing(amcl, separator, tmp_path):
    assert amcl("make-corpus", "synthetic", tmp_path / "c", "--sizes", "1,1,2", "--seconds", ".5")[0] == 0
    status, out, err = amcl("evaluate", separator, tmp_path / "c", "--limit", 1)
    assert status == 0 and "nan" not in out.lower() and out.count("dB") >= 9, out + err
    assert "none for one mixture" in out and "needs matched outputs and surplus ones" in out


ARCHIVE = next((f / "mixture_lists.zip" for f in data_folders() if (f / "mixture_lists.zip").is_file()), None)


@pytest.mark.skipif(ARCHIVE is None, reason="the published lists are not here")
def test_the_published_lists_are_read_and_their_doubles_counted(tmp_path):
    with zipfile.ZipFile(ARCHIVE) as pack: pack.extractall(tmp_path)
    twice = {}
    for path in sorted((tmp_path / "wsj0-mix").glob("*_t[tr].txt")):
        if path.name in ("mix_3_spk_tr.txt", "mix_4_spk_tr.txt", "mix_5_spk_tr.txt"): continue  # time
        n_src = int(path.name.split("_")[1])
        rows = read_mix_list(path, n_src)
        assert len(rows) == {"tr": 20_000, "cv": 5_000, "tt": 3_000}[path.stem[-2:]]
        twice[path.stem] = sum(len({speaker_of(Path(p).stem) for p in row.paths}) < n_src for row in rows)
    assert (twice["mix_4_spk_tt"], twice["mix_5_spk_tt"]) == (920, 1345)
    assert twice["mix_2_spk_tt"] == twice["mix_3_spk_tt"] == 0


def test_check_names_a_speaker_that_occurs_twice(tmp_path):
    files = [write_audio(tmp_path / f"{k}.wav", noise(), 8000) for k in range(2)]
    row = MixtureRow("m", None, tuple(files), 8000, 2, speakers=("421", "421"))
    (problem,) = validate(Corpus("c", "tt", 8000, (row,), tmp_path)).problems
    assert problem.kind == "speakers" and "421" in problem.message
