"""`amcl objects`: what it prints and writes, how it ends, and that it goes on where it was stopped."""
import json
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from amcl_suite.core.formats import read_npz
from amcl_suite.objects.config import preset
from amcl_suite.objects.families import generate
from amcl_suite.objects.scene_files import read_scenes, write_scenes
from amcl_suite.objects.scenes import Scenes
from amcl_suite.objects.slot_attention import make_model
from amcl_suite.objects.weights import load_slot_model, save_slot_model, to_published
from amcl_suite.reproduce.cli import main
from toys import no_traceback

FAMILY, SIZES = "tetrominoes-micro", ("--sizes", "24,4,6")
TRAIN = ("train", "micro", "--smoke", "--seed", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def amcl(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("AMCL_DEBUG", raising=False)

    def call(*words):
        with pytest.raises(SystemExit) as end: main(["objects", *(str(word) for word in words)])
        return end.value.code, *capsys.readouterr()
    return call


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes.h5"
    with pytest.raises(SystemExit) as end: main(["objects", "make-scenes", FAMILY, str(path), *SIZES])
    assert end.value.code == 0
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    torch.manual_seed(0)
    made = make_model(preset("micro").model)
    return save_slot_model(tmp_path_factory.mktemp("model") / "model.pt", made, data=FAMILY, n_test=6, test_steps=1)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    one, two = map(Image.fromarray, generate(FAMILY, 2).images)
    one.save(folder / "good.png")
    two.convert("RGBA").save(folder / "more" / "rgba.png")
    Image.fromarray(np.linspace(0, 65_535, 196).astype(np.uint16).reshape(14, 14)).save(folder / "grey16.png")
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:60])
    one.resize((20, 30)).save(folder / "tall.png")
    return folder


def test_help_is_light_and_names_all_commands():
    code = "import sys; from amcl_suite.objects import command_line; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    program = (sys.executable, "-m", "amcl_suite", "objects", "--help")
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("make-scenes", "check", "train", "evaluate", "decompose", "traverse"): assert name in done.stdout


def test_make_and_check(amcl, scenes, tmp_path):
    status, out, err = amcl("check", scenes)
    assert status == 0 and "the scenes are fine" in out and "14 x 14" in out, err
    again = tmp_path / "again.h5"
    assert amcl("make-scenes", FAMILY, again, *SIZES, "--workers", 1)[0] == 0
    for split in ("train", "val", "test"):
        ours, theirs = read_scenes(scenes, split), read_scenes(again, split)
        assert (ours.images == theirs.images).all() and (ours.factors == theirs.factors).all()
    status, out, err = amcl("make-scenes", FAMILY, again, *SIZES)
    assert no_traceback(status, out, err) and "--force" in err
    words = ("--set", "n_objects=[1,1]", "--composition", "seen,seen,unseen", "--force", "--seed", 5)
    assert amcl("make-scenes", FAMILY, again, "--sizes", "0,3,5", *words)[0] == 0
    status, out, _ = amcl("check", again)
    assert status == 0 and "train" not in out and read_scenes(again, "test").visible().sum(1).max() == 2
    with h5py.File(again, "r+") as file: file["test/masks"][3, 0, 2, 2] = 255 - file["test/masks"][3, 0, 2, 2]
    status, out, _ = amcl("check", again)
    assert status == 1 and "failed: " in out and "test/masks: row 3" in out
    for content, what in ((scenes.read_bytes()[:5000], "damaged"), (b"", "damaged")):
        (tmp_path / "cut.h5").write_bytes(content)
        status, out, err = amcl("check", tmp_path / "cut.h5")
        assert status == 1 and "cut.h5" in out and what in out and "Traceback" not in out + err, out


def test_a_folder_of_clevrtex_is_checked(amcl, tmp_path):
    for i in range(10):
        name = tmp_path / "tex" / f"CLEVRTEX_full_{i:06d}.png"
        name.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 24), (i, 9, 9)).save(name)
        flat = np.zeros((24, 32), np.uint8)
        flat[8:12, 12:16] = 1 + i % 2
        Image.fromarray(flat).save(name.with_name(f"{name.stem}_flat.png"))
    status, out, err = amcl("check", tmp_path / "tex")
    assert status == 0 and "full" in out and "1 to 1" in out, err
    (tmp_path / "tex/CLEVRTEX_full_000007_flat.png").unlink()
    status, out, _ = amcl("check", tmp_path / "tex")
    assert status == 1 and "CLEVRTEX_full_000007_flat.png" in out
    (tmp_path / "none").mkdir()
    assert "no pictures CLEVRTEX" in amcl("check", tmp_path / "none")[1]


def test_train_stops_goes_on_and_is_used(amcl, scenes, tmp_path):
    run = tmp_path / "run"
    words = (*TRAIN, "--data", scenes, "--out", run, "--geco", "auto", "--set", "warm_start=5", "--set", "beta_ramp=0")
    status, out, err = amcl(*words, "--minutes", 0)
    assert status == 0 and "epoch 1 of 2" in out and "step 10, after 0 minutes" in out, err
    assert (run / "model.pt").exists()
    status, out, err = amcl(*words)
    assert status == 0 and "epoch 1 of 2" not in out and "epoch 2 of 2" in out and "step 20, after the last" in out, err
    stored = torch.load(run / "model.pt", weights_only=True)
    assert stored["metadata"]["step"] == 20 and stored["metadata"]["geco_zeta"] >= .55
    before = (run / "model.pt").stat().st_mtime_ns
    status, out, err = amcl(*words)                            # done before: nothing is trained again
    assert status == 0 and "epoch" not in out and f"model: {run / 'model.pt'}" in out, err
    assert (run / "model.pt").stat().st_mtime_ns == before
    status, out, err = amcl(*words, "--set", "model.temperature=0.5")
    assert no_traceback(status, out, err) and "temperature" in err and "another folder" in err

    table = tmp_path / "images.parquet"
    status, out, err = amcl("evaluate", run, "--steps", "0,1", "--slots", "3,4", "--out", table, "--device", "cpu")
    assert status == 0 and "ari_fg" in out and "6 images of 14 x 14" in out, err
    frame = pandas.read_parquet(table)
    assert len(frame) == 2 * 2 * 6 and set(frame["n_slots"]) == {3, 4} and frame["mse"].notna().all()
    one = amcl("evaluate", run, "--data", FAMILY, "--limit", 1, "--composition", "unseen")
    assert one[0] == 0 and "none for one image" in one[1], one[2]

    status, out, err = amcl("traverse", run, "--out", tmp_path / "turned", "--dims", "0,3", "--slot", "1", "--values", 3)
    assert status == 0 and "slots 1; numbers 0, 3" in out, err
    assert {p.name for p in (tmp_path / "turned").iterdir()} == {"grid.png", "range.npz", "traversal.gif", "traversal.png"}
    assert read_npz(tmp_path / "turned/range.npz")["limits"].shape == (16, 2)


def test_scenes_without_objects_have_no_score(amcl, model, tmp_path):
    empty = Scenes(np.zeros((3, 14, 14, 3), np.uint8), np.ones((3, 1, 14, 14), bool), np.zeros((3, 1, 0), np.float32), ())
    write_scenes(tmp_path / "empty.h5", {"test": empty})
    status, out, err = amcl("evaluate", model, "--data", tmp_path / "empty.h5", "--device", "cpu")
    line = next(line for line in out.splitlines() if "ari_fg" in line)
    assert status == 0 and "no image has a value" in line and "nan" not in out, out + err


def test_the_baseline_is_trained_from_the_same_preset(amcl, tmp_path):
    run = tmp_path / "run"
    status, out, err = amcl(*TRAIN, "--kind", "slot_attention", "--out", run, "--sizes", "8,4,4",
                            "--set", "n_steps=10")
    assert status == 0 and "slot_attention" in out and load_slot_model(run / "model.pt").config.kind == "slot_attention", err
    status, out, err = amcl("evaluate", run, "--steps", "2")
    assert no_traceback(status, out, err) and "no refinement" in err
    assert amcl("evaluate", run)[0] == 0


def test_a_folder_of_own_pictures(amcl, model, pictures, tmp_path):
    out_folder = tmp_path / "out"
    words = ("decompose", model, pictures, "--out", out_folder, "--device", "cpu")
    status, out, err = amcl(*words)
    assert status == 1 and "3 decomposed, 2 failed" in out and not err, out + err
    assert "failed: " in out and "broken.png: not a picture" in out
    assert "tall.png: 30 x 20 pixels (height x width), the model takes 14 x 14" in out and "--resize" in out
    assert sorted(p.parent.relative_to(out_folder).as_posix() for p in out_folder.rglob("result.json")) == [
        "good", "grey16", "more/rgba"]
    labels = Image.open(out_folder / "more/rgba/labels.png")
    masks = read_npz(out_folder / "more/rgba/masks.npz")["masks"]
    assert labels.mode == "P" and (np.asarray(labels) == masks.argmax(0)).all()
    assert Image.open(out_folder / "good/slot2.png").mode == "RGBA"
    frame = pandas.read_parquet(out_folder / "slots.parquet")
    assert len(frame) == 9 and list(frame) == ["picture", "slot", "share", "owned", "entropy", "mean", "raw"]
    assert len(frame["mean"].iloc[0]) == 16
    stamps = {p: p.stat().st_mtime_ns for p in out_folder.rglob("*.npz")}
    status, out, _ = amcl(*words)
    assert status == 1 and out.count("done before") == 3
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    status, out, _ = amcl(*words, "--force", "--resize", "--slots", 4, "--steps", 0)
    assert status == 1 and "4 decomposed, 1 failed" in out and "done before" not in out
    assert len(pandas.read_parquet(out_folder / "slots.parquet")) == 16
    assert Image.open(out_folder / "decomposition.png").size[0] > 400


def test_pictures_by_name(amcl, model, pictures, tmp_path):
    out_folder = tmp_path / "out"
    status, out, err = amcl("decompose", model, pictures / "good.png", "--out", out_folder)
    assert status == 0 and "1 decomposed, 0 failed" in out, err
    Image.open(pictures / "good.png").convert("L").convert("RGBA").resize((14, 14)).save(pictures / "good.webp", lossless=True)
    status, out, err = amcl("decompose", model, pictures / "good.png", pictures / "good.webp", "--out", out_folder)
    assert no_traceback(status, out, err) and "would have their results in one folder" in err
    clear = Image.new("RGBA", (14, 14), (9, 9, 9, 0))
    clear.save(pictures / "clear.png")
    status, out, err = amcl("decompose", model, pictures / "clear.png", "--out", out_folder)
    assert status == 1 and "clear.png: has transparent pixels" in out, err
    status, out, err = amcl("decompose", model, pictures, pictures / "good.png", "--out", out_folder)
    assert no_traceback(status, out, err) and "name it alone" in err


@pytest.mark.parametrize("words, contains", [
    (("make-scenes", "tetrominos", "x.h5"), "did you mean 'tetrominoes'"),
    (("make-scenes", FAMILY, "x.h5", "--sizes", "8,8"), "--sizes"),
    (("make-scenes", FAMILY, "x.h5", "--sizes", "8,8,8", "--composition", "sen"), "sen"),
    (("make-scenes", FAMILY, "x.h5", "--sizes", "8,8,8", "--set", "n_object=3"), "did you mean 'n_objects'"),
    (("make-scenes", FAMILY, "/proc/x.h5", "--sizes", "1,1,1"), "/proc"),
    (("check", "nowhere.h5"), "nowhere.h5"),
    (("train", "micro"), "--out"),
    (("train", "mikro", "--out", "x"), "did you mean 'micro'"),
    (("train", "micro", "--out", "x", "--kind", "iodine"), "iodine"),
    (("train", "micro", "--out", "x", "--set", "n_slot=3"), "did you mean 'n_slots'"),
    (("train", "micro", "--out", "x", "--set", "n_slots"), "KEY=VALUE"),
    (("train", "micro", "--out", "x", "--set", "sigma=0"), "sigma"),
    (("train", "micro", "--out", "x", "--set", "curriculum=[[-1,-1]]"), "curriculum"),
    (("train", "micro", "--out", "x", "--set", "n_steps=30"), "every"),
    (("train", "micro", "--out", "x", "--geco", "on"), "geco: expected a number"),
    (("train", "micro", "--out", "x", "--minutes", "1", "--devices", "2"), "--minutes"),
    (("train", "micro", "--out", "x", "--data", "clevr66"), "did you mean 'clevr6'"),
    (("train", "micro", "--out", "x", "--data", "nowhere.h5"), "nowhere.h5"),
    (("train", "micro", "--smoke", "--out", "x", "--data", "tetrominoes"), "model.height"),
    (("train", "tetrominoes", "--out", "x", "--data", "tetrominoes_h5", "--data-path", "."), "zenodo"),
    (("evaluate", "nowhere.pt"), "nowhere.pt"),
    (("evaluate", "MODEL", "--steps", "-1"), "--steps"),
    (("evaluate", "MODEL", "--slots", "0"), "--slots"),
    (("evaluate", "MODEL", "--split", "tset"), "tset"),
    (("evaluate", "MODEL", "--data", "tetrominoes"), "(14, 14)"),
    (("evaluate", "MODEL", "--data", "SCENES", "--limit", "9"), "6 (scenes of the file)"),
    (("evaluate", "MODEL", "--device", "gpu"), "device"),
    (("decompose", "MODEL", "nowhere", "--out", "x"), "nowhere"),
    (("decompose", "MODEL", ".", "--out", "x"), "holds no pictures"),
    (("decompose", "MODEL", ".", "--out", "x", "--steps", "-1"), "steps"),
    (("decompose", "MODEL", ".", "--out", "x", "--slots", "0"), "slots"),
    (("traverse", "MODEL", "--out", "x", "--slot", "3"), "slots"),
    (("traverse", "MODEL", "--out", "x", "--dims", "16"), "dims"),
    (("traverse", "MODEL", "--out", "x", "--image", "6"), "image"),
    (("decompos", "MODEL"), "decompos"),
])
def test_wrong_calls_are_one_line(amcl, model, scenes, tmp_path, monkeypatch, words, contains):
    monkeypatch.chdir(tmp_path)
    names = {"MODEL": model, "SCENES": scenes}
    status, out, err = amcl(*(names.get(word, word) for word in words))
    assert no_traceback(status, out, err) and contains in err, (status, out, err)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.h5"))


def test_a_target_out_of_reach_is_noted(amcl, tmp_path):
    status, out, err = amcl(*TRAIN, "--out", tmp_path / "run", "--sizes", "8,4,4", "--geco", "-9", "--set", "n_steps=10")
    assert status == 0 and "note: target: -9 nats per value is out of reach" in out, out + err


def test_models_that_are_none(amcl, model, pictures, tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f"touch {tmp_path}/executed",)
    from amcl_suite.separation import checkpoints
    separator = dict(format=checkpoints._FORMAT, version=1, backbone="dprnn", config={}, metadata={}, state={})
    torch.save(separator, tmp_path / "separator.pt")
    torch.save({"state_dict": {}, "rows": []}, tmp_path / "last.ckpt")
    torch.save(to_published(make_model(preset("tetrominoes").model)), tmp_path / "released.pth")
    torch.save({"model": Evil()}, tmp_path / "torch.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:2000])
    content = torch.load(model, weights_only=True)
    torch.save(content | {"config": content["config"] | {"dim": 8}}, tmp_path / "other.pt")
    for name, told in {"separator.pt": "no model of slots", "last.ckpt": "checkpoint of a training",
                       "released.pth": "released code", "torch.pt": "holds more than tensors", "pickle.pt": "no zip",
                       "cut.pt": "no zip archive", "other.pt": "of another architecture"}.items():
        status, out, err = amcl("decompose", tmp_path / name, pictures, "--out", tmp_path / "out")
        assert no_traceback(status, out, err) and name in err and told in err, err
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_a_checkpoint_of_the_released_code_is_used(amcl, tmp_path):
    torch.manual_seed(0)
    torch.save(to_published(make_model(preset("tetrominoes").model)), tmp_path / "released.pth")
    Image.fromarray(generate("tetrominoes", 1).images[0]).save(tmp_path / "scene.png")
    words = ("--published", "tetrominoes", "--out", tmp_path / "out", "--device", "cpu")
    status, out, err = amcl("decompose", tmp_path / "released.pth", tmp_path / "scene.png", *words)
    assert status == 0 and "1 decomposed" in out, err
    assert json.loads((tmp_path / "out/scene/result.json").read_text())["n_steps"] == 3
    status, out, err = amcl("evaluate", tmp_path / "released.pth", "--published", "tetrominoes", "--data", "tetrominoes",
                            "--limit", 2, "--steps", 0)
    assert status == 0 and "ari_fg" in out, err
