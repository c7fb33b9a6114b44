"""LibriMix from the published lists: the real lists, real recordings, and files of the published recipe's bytes."""
import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from amcl_suite.core.data import data_folders
from amcl_suite.core.files import DataError
from amcl_suite.reproduce.cli import main
from amcl_suite.separation.layouts import read_corpus
from amcl_suite.separation.librimix import make_librimix, read_librimix_list
from amcl_suite.separation.validation import validate
from scipy.signal import resample_poly
from toys import no_traceback


def beside(name): return next((f / name for f in data_folders() if (f / name).is_file()), None)


LISTS, CLIPS = beside("mixture_lists.zip"), beside("librispeech_mini.zip")
needs_data = pytest.mark.skipif(not (LISTS and CLIPS), reason="the published lists or the recordings are not here")
ROWS = {2: 13_900, 3: 9_300}    # of train-clean-100


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    "The real lists, and the real recordings in LibriSpeech's own folders."
    folder = tmp_path_factory.mktemp("published")
    with zipfile.ZipFile(LISTS) as pack:
        pack.extractall(folder, [name for name in pack.namelist() if name.startswith("librimix/")])
    with zipfile.ZipFile(CLIPS) as pack:
        for name in pack.namelist():
            if not name.endswith(".flac") or not name.startswith("train-clean-100/"): continue
            speaker, chapter, _ = Path(name).stem.split("-")
            place = folder / "LibriSpeech/train-clean-100" / speaker / chapter
            place.mkdir(parents=True)
            (place / Path(name).name).write_bytes(pack.read(name))
    return folder


@pytest.fixture
def amcl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    def call(*words):
        with pytest.raises(SystemExit) as end: main(["separation", *map(str, words)])
        return end.value.code, *capsys.readouterr()
    return call


def regrouped(published, n_src, n_rows, folder, noise=None):
    """Write a list whose rows hold real recordings at their real factors; no published row has all of its own here.

    Returns the rows as (paths, gains).
    """
    speech, there = published / "LibriSpeech", []
    for row in read_librimix_list(published / f"librimix/libri{n_src}mix_train-clean-100.csv", n_src):
        there += [(path, gain) for path, gain in zip(row.paths[:-1], row.gains) if (speech / path).is_file()]
    rows = [there[k:k + n_src] for k in range(0, n_src * n_rows, n_src)]
    file = folder / f"libri{n_src}mix_train-clean-100.csv"
    folder.mkdir(exist_ok=True)
    with open(file, "w", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["mixture_ID", *(f"source_{i + 1}_{what}" for i in range(n_src) for what in ("path", "gain")),
                         "noise_path", "noise_gain"])
        for row in rows:
            writer.writerow(["_".join(Path(path).stem for path, _ in row),
                             *(cell for pair in row for cell in pair), noise or "tr/none.wav", .5])
    return rows


def by_the_recipe(speech, row, rate, mode):
    "What the published recipe writes: read, multiply, resample, fit, add, write; by soundfile and SciPy."
    sources = [resample_poly(soundfile.read(speech / path, dtype="float32")[0] * gain, rate, 16_000)
               for path, gain in row]
    if mode == "min": sources = [s[:min(map(len, sources))] for s in sources]
    else: sources = [np.pad(s, (0, max(map(len, sources)) - len(s))) for s in sources]
    mixture = np.zeros_like(sources[0])
    for source in sources: mixture += source
    files = []
    for signal in (mixture, *sources):
        soundfile.write(buffer := io.BytesIO(), signal, rate, format="WAV")
        files.append(buffer.getvalue())
    return files


@needs_data
def test_the_real_lists_are_read(published):
    for n_src, n_rows in ROWS.items():
        for part, count in {"train-clean-100": n_rows, "dev-clean": 3000, "test-clean": 3000}.items():
            rows = read_librimix_list(published / f"librimix/libri{n_src}mix_{part}.csv", n_src)
            assert len(rows) == count and len({row.id for row in rows}) == count
            assert all(path.startswith(f"{part}/") for row in rows for path in row.paths[:-1])
            assert all(0.01 < gain < 100 for row in rows for gain in row.gains)
        with pytest.raises(DataError, match="source" if n_src == 2 else "more than 2 sources"):
            read_librimix_list(published / f"librimix/libri{n_src}mix_dev-clean.csv", 5 - n_src)


@needs_data
@pytest.mark.parametrize("n_src, rate, mode", [(2, 8000, "min"), (2, 16_000, "max"), (3, 8000, "max"),
                                               (3, 16_000, "min")])
def test_real_recordings_give_the_recipes_bytes(published, tmp_path, n_src, rate, mode):
    rows = regrouped(published, n_src, 3, tmp_path / "lists")
    root = make_librimix(tmp_path / "lists", published, tmp_path / "out", n_src, None, rate, mode)
    corpus = read_corpus(root, "tr", n_src)
    assert len(corpus) == 3 and corpus.sample_rate == rate and validate(corpus).ok
    for row, own in zip(rows, corpus):
        wanted = by_the_recipe(published / "LibriSpeech", row, rate, mode)
        assert [file.read_bytes() for file in own.files] == wanted
        assert own.speakers == tuple(Path(path).stem.split("-")[0] for path, _ in row)


@needs_data
def test_a_missing_recording_is_told_with_its_row_of_the_real_list(published, tmp_path, amcl):
    words = ("make-corpus", "librimix", tmp_path / "out", "--metadata", published / "librimix",
             "--librispeech", published / "LibriSpeech", "--splits", "train-clean-100")
    status, out, err = amcl(*words)
    assert no_traceback(status, out, err) and status == 2 and not (tmp_path / "out").exists()
    assert "libri2mix_train-clean-100.csv, row 0 (line 2) names train-clean-100/1578/6379/1578-6379-0038.flac" in err
    assert "27558 recordings are missing in all" in err, err


@needs_data
def test_the_command_makes_checks_and_goes_on(published, tmp_path, amcl):
    regrouped(published, 2, 4, tmp_path / "lists")
    words = ("make-corpus", "librimix", tmp_path / "out", "--metadata", tmp_path / "lists", "--librispeech",
             published / "LibriSpeech", "--splits", "train-clean-100")
    status, out, err = amcl(*words)
    assert status == 0 and "--speakers 2 --splits train-100" in out, err
    status, out, err = amcl("check", tmp_path / "out", "--splits", "train-100")
    assert status == 0 and "the corpus is fine" in out, out + err
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "out/corpus.json").rename(tmp_path / "out/corpus.part.json")      # killed before its end
    lost = sorted(p for p in files if p.parent.name == "mix_clean")[2]
    lost.unlink()
    assert amcl(*words)[0] == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == files
    status, out, err = amcl(*words, "--mode", "max")
    assert no_traceback(status, out, err) and "made otherwise (mode)" in err


@needs_data
def test_noise_of_wham_is_added_and_leaves_the_voices_alone(published, tmp_path):
    noise = .1 * np.random.default_rng(0).standard_normal((40_000, 2))            # shorter than the voices
    (tmp_path / "wham_noise/tr").mkdir(parents=True)
    soundfile.write(tmp_path / "wham_noise/tr/n.wav", noise, 16_000)
    rows = regrouped(published, 2, 2, tmp_path / "lists", "tr/n.wav")
    arguments = (tmp_path / "lists", published)
    clean = make_librimix(*arguments, tmp_path / "clean")
    noisy = make_librimix(*arguments, tmp_path / "noisy", wham=tmp_path)
    for path in clean.rglob("*.wav"):
        assert (noisy / path.relative_to(clean)).read_bytes() == path.read_bytes()
    both = read_corpus(noisy, "train-100", kind="mix_both")
    assert validate(both).ok and both.name == "Libri2Mix both"
    speech, (row, *_) = published / "LibriSpeech", rows
    voices = [soundfile.read(speech / path, dtype="float32")[0] for path, _ in row]
    short, window = soundfile.read(tmp_path / "wham_noise/tr/n.wav", dtype="float32")[0][:, 0], np.hanning(16_001)
    longer = short                      # as the recipe repeats it: in double precision, with half a window each way
    while len(longer) < max(map(len, voices)):
        join = longer[-8001:] * window[8000::-1] + short[:8001] * window[:8001]
        longer = np.concatenate((longer[:-8001], join, short[8001:]))
    signals = [resample_poly(x * gain, 8000, 16_000) for x, gain in
               [*zip(voices, (gain for _, gain in row)), (longer[:max(map(len, voices))], .5)]]
    signals = [signal[:min(map(len, signals))] for signal in signals]
    mixture = np.zeros_like(signals[0])
    for signal in signals: mixture += signal
    for signal, file in ((signals[-1], both[0].noise), (mixture, both[0].mixture)):
        soundfile.write(buffer := io.BytesIO(), signal, 8000, format="WAV")
        assert buffer.getvalue() == file.read_bytes()
    soundfile.write(tmp_path / "wham_noise/tr/n.wav", noise, 8000)
    with pytest.raises(DataError, match=r"row 0 \(line 2\): .*n.wav: has 8000 Hz, expected 16000"):
        make_librimix(*arguments, tmp_path / "no", wham=tmp_path)


@pytest.mark.parametrize("words, says", [
    ((), "--metadata: needed for kind librimix"),
    (("--metadata", "m"), "--librispeech: needed for kind librimix"),
    (("--metadata", "m", "--librispeech", "l", "--seed", "1"), "--seed: has no meaning for kind librimix"),
    (("--metadata", "m", "--librispeech", "l", "--clips", "c"), "--clips: has no meaning for kind librimix"),
    (("--metadata", "m", "--librispeech", "l"), "m: no libri2mix_*.csv"),
])
def test_the_command_says_what_is_missing(amcl, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = amcl("make-corpus", "librimix", "out", *words)
    assert no_traceback(status, out, err) and says in err
