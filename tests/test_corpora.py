"""Batches don't depend on processes: workers, start methods, ranks of a process group, a trainer."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from amcl_suite.core.audio import write_audio
from amcl_suite.core.files import DataError
from amcl_suite.separation.corpora import Corpus, MixtureRow
from amcl_suite.core.order import EpochSampler
from amcl_suite.separation.datasets import MixtureDataset, collate, make_loader
from amcl_suite.separation.dynamic import DynamicMixing, clips_of


def corpus_in(root, n_rows=9):
    rng, rows = np.random.default_rng(0), []
    for k in range(n_rows):
        sources = 0.1 * rng.standard_normal((2, 3000 + 100 * k)).clip(-3, 3)
        parts = {"mix": sources.sum(0), "s1": sources[0], "s2": sources[1]}
        files = [write_audio(root / part / f"{k}.wav", x, 8000) for part, x in parts.items()]
        rows.append(MixtureRow(f"m{k}", files[0], tuple(files[1:]), sources.shape[1], 2,
                               speakers=(f"a{k % 3}", f"b{k % 2}"), where=f"row {k}"))
    return Corpus("noises", "tr", 8000, tuple(rows), root)


def stream(loader, epoch):
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [(batch.ids, batch.mixture, batch.sources) for batch in loader]


def same(one, two):
    assert len(one) == len(two) > 0
    for (ids, mixture, sources), (ids_2, mixture_2, sources_2) in zip(one, two):
        assert ids == ids_2 and torch.equal(mixture, mixture_2) and torch.equal(sources, sources_2)


@pytest.mark.parametrize("kind", ["files", "cached", "dynamic"])
def test_any_number_of_workers_gives_the_same_batches_in_every_epoch(tmp_path, kind):
    corpus = corpus_in(tmp_path)
    data = (DynamicMixing(clips_of(corpus), 2, 0.3, 12, speeds=(0.9, 1.1)) if kind == "dynamic"
            else MixtureDataset(corpus, 0.3, cache=kind == "cached"))
    alone, shared = (make_loader(data, 3, shuffle=True, n_workers=n, seed=5) for n in (0, 2))
    first = stream(alone, 0)
    same(first, stream(shared, 0))
    same(stream(alone, 4), stream(shared, 4))                # persistent workers learn the epoch
    assert not torch.equal(first[0][1], stream(alone, 4)[0][1])
    spawned = DataLoader(data, batch_sampler=alone.batch_sampler, collate_fn=collate,
                         num_workers=1, multiprocessing_context="spawn")
    if kind == "cached": same(stream(alone, 1), stream(spawned, 1))


def test_an_error_in_a_worker_names_the_row(tmp_path):
    corpus = corpus_in(tmp_path)
    whole = corpus[4].sources[1].read_bytes()
    corpus[4].sources[1].write_bytes(whole[:2000])
    with pytest.raises(DataError, match="row 4: .*truncated"):
        list(make_loader(MixtureDataset(corpus, 0.3), 3, n_workers=1))
    with pytest.raises(DataError, match="row 4: .*truncated"):
        MixtureDataset(corpus, 0.3, cache=True)
    corpus[4].sources[1].unlink()
    with pytest.raises(DataError, match="row 4: .*no such sound file"):
        list(make_loader(MixtureDataset(corpus, 0.3), 3))


RANKS = """
import sys, torch.distributed as dist
from amcl_suite.core.order import EpochSampler
sampler = EpochSampler(11, seed=7)                            # before the processes know each other
fixed = EpochSampler(11, shuffle=False)
assert len(sampler) == 11
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]),
                        world_size=2)
sampler.set_epoch(3)
print([index for _, index in sampler], [index for _, index in fixed], len(sampler), len(fixed),
      sep=";")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_of_a_process_group_share_an_epoch_without_overlap(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([sys.executable, "-c", RANKS, str(tmp_path / "store"), str(rank)],
                              stdout=subprocess.PIPE, text=True, env=environment)
             for rank in range(2)]
    answers = [[eval(part) for part in rank.communicate(timeout=120)[0].split(";")]
               for rank in ranks]
    (one, fixed_one, *lengths_one), (two, fixed_two, *lengths_two) = answers
    alone = EpochSampler(11, seed=7)
    alone.set_epoch(3)
    order = [index for _, index in alone]
    assert one == order[0:10:2] and two == order[1:10:2]      # the same order, dealt out
    assert sorted(fixed_one + fixed_two) == list(range(11))   # evaluation leaves nothing out
    assert (lengths_one, lengths_two) == ([5, 6], [5, 5])


def test_the_trainer_tells_the_sampler_the_epoch(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    data, seen = MixtureDataset(corpus_in(tmp_path), 0.3), []

    class Listener(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, index):
            seen.append((self.current_epoch, batch.mixture.cpu()))
            return self.weight * batch.sources.mean()

        def validation_step(self, batch, index): seen.append(("valid", batch.mixture.cpu()))
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.1)

    train, valid = make_loader(data, 4, shuffle=True, seed=2), make_loader(data, 9)
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, barebones=False,
                                enable_checkpointing=False, enable_progress_bar=False,
                                enable_model_summary=False, use_distributed_sampler=False,
                                num_sanity_val_steps=0)
    trainer.fit(Listener(), train, valid)
    for epoch in range(3):
        wanted = [mixture for _, mixture, _ in stream(make_loader(data, 4, True, seed=2), epoch)]
        got = [mixture for e, mixture in seen if e == epoch]
        assert len(got) == len(wanted) and all(map(torch.equal, got, wanted))
    fixed = [mixture for e, mixture in seen if e == "valid"]
    assert len(fixed) == 3 and all(torch.equal(mixture, fixed[0]) for mixture in fixed)
