"Scenes in other processes: the same bytes, sent as pickles, files opened once in each."
import multiprocessing, os, pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from amcl_suite.core.files import DataError
from amcl_suite.core.formats import open_hdf5
from amcl_suite.objects import scene_files
from amcl_suite.objects.datasets import SceneSet, scene_loader, scene_set
from amcl_suite.objects.families import families, generate, generate_parts, generator_of
from amcl_suite.objects.published_sets import FileScenes
from amcl_suite.objects.scene_files import SceneFile, read_scenes, write_scenes


@pytest.fixture
def path(tmp_path):
    return write_scenes(tmp_path / "scenes.h5", {"train": generate("tetrominoes", 64, seed=1)})


@pytest.mark.parametrize("family", families())
def test_any_number_of_workers_makes_the_same_scenes(family):
    alone = generate(family, 11, seed=2)
    for n_workers in (1, 3):
        parts = list(generate_parts(family, 11, seed=2, n_workers=n_workers, chunk=4))
        assert [len(part) for part in parts] == [4, 4, 3]
        for name in ("images", "masks", "factors"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tobytes() == getattr(alone, name).tobytes()


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ValueError, match="found no room"):
        generate("tetrominoes", 4, n_workers=1, n_objects=(14, 14))


def test_stopping_early_leaves_no_workers_behind():
    parts = generate_parts("tetrominoes-micro", 10_000, n_workers=2, chunk=8)
    next(parts)
    parts.close()
    assert not multiprocessing.active_children()


def test_a_generator_can_be_sent_to_another_process():
    generator = generator_of("clevr6", size=32)
    again = pickle.loads(pickle.dumps(generator))
    assert again == generator
    assert (again.render(5, np.arange(2)).images == generator.render(5, np.arange(2)).images).all()


def test_a_file_that_is_open_can_be_sent_as_a_pickle(path):
    file = SceneFile(path)
    first = file.rows("imgs", [3])
    again = pickle.loads(pickle.dumps(file))
    assert again._opened == (0, None, None)
    assert (again.rows("imgs", [3]) == first).all()
    file.close(), again.close()


def _logged(log):
    "Return `open_hdf5` that writes the number of its process for every call."
    def open_and_note(name):
        with open(log, "a") as notes: notes.write(f"{os.getpid()}\n")
        return open_hdf5(name)
    return open_and_note


def test_each_worker_opens_the_file_once(path, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(scene_files, "open_hdf5", _logged(log))
    data = SceneSet(FileScenes(SceneFile(path)), in_memory=False)
    data[0]                                       # the parent has it open when it forks
    log.write_text("")
    loader = scene_loader(data, 4, n_workers=2)
    images = [batch["image"] for _ in range(2) for batch in loader]      # two epochs
    opened = log.read_text().split()
    assert len(opened) == len(set(opened)) == 2 and str(os.getpid()) not in opened
    wanted = torch.from_numpy(read_scenes(path).images).permute(0, 3, 1, 2)
    assert (torch.cat(images[:16]) == wanted).all() and (torch.cat(images[16:]) == wanted).all()
    assert (data[63]["image"] == wanted[63]).all()                       # the parent reads on
    del loader
    data.source.file.close()


def test_processes_that_start_anew_read_the_same(path):
    data = SceneSet(FileScenes(SceneFile(path)), in_memory=False)
    data[0]
    loader = scene_loader(data, 32, n_workers=1)
    spawned = DataLoader(data, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn,
                         num_workers=1, multiprocessing_context="spawn")
    images = torch.cat([batch["image"] for batch in spawned])
    assert (images == SceneSet(data.source, in_memory=True).source.images).all()
    data.source.file.close()


@pytest.mark.parametrize("n_workers", (0, 2))
def test_workers_change_neither_order_nor_bytes(n_workers):
    data = scene_set("tetrominoes-micro", n=100)
    loader = scene_loader(data, 16, shuffle=True, seed=3, n_workers=n_workers)
    loader.batch_sampler.sampler.set_epoch(2)
    batches = list(loader)
    order = np.arange(100)
    np.random.default_rng((3, 2)).shuffle(order)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == order[:96].tolist()
    assert all((b["image"] == data.source.images[b["index"]]).all() for b in batches)


def test_a_file_damaged_under_way_is_named_and_can_be_read_again(path):
    file = SceneFile(path)
    whole = path.read_bytes()
    with open_hdf5(path) as opened: offset = opened["train/imgs"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw: raw.seek(offset), raw.write(bytes(64))
    with pytest.raises(DataError, match="scenes.h5: damaged"): file.rows("imgs", [0])
    path.write_bytes(whole)
    assert file.rows("imgs", [0]).any()
    file.close()
