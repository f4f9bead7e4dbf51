"""Networks spread over two processes against one: the same numbers, and never whole weights."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import WanDiT
from livetalk.training import checkpoint, distributed, sharding
from livetalk.training.buckets import mixed
from livetalk.training.sequence import flow_of
from livetalk.training.sharding import Sharding
from livetalk.training.trainer import Learning, TrainConfig, Trainer
from tests.models.test_dit import TINY, clip, tiny
from tests.training import test_buckets, test_dmd, test_ode
from tests.training.pairs import in_pairs, join

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    steps=3, batch=4, lr=1e-3, warmup=1, ema=0.5, precision="fp32", log_every=1, save_every=2, shard=True, at_once=2
)
TWO = replace(CONFIG, steps=2)
PARTS = replace(CONFIG, at_once=1, save_every=9)
CRITIC = Learning(lr=1e-3, warmup=0)


class Recorded(Trainer):
    """Keeps the gradients of every turn."""

    gradients = ()

    def _descend(self, player, *others):
        out = super()._descend(player, *others)
        grads = {name: p.grad.clone() for name, p in player.modules.named_parameters() if p.grad is not None}
        self.gradients = [*self.gradients, grads]
        return out


def trainer_of(kind, folder, config, kept=Trainer):
    if kind == "buckets":
        return kept(mixed(test_buckets.parts_of("ode"), test_buckets.CLIPS, seed=1), config, folder)
    torch.manual_seed(0)
    objective = test_ode.objective(WanDiT(TINY)) if kind == "ode" else test_dmd.objective(every=2)
    objective.group = sharding.sequence_group(config.sequence)
    if kind == "ode":
        return kept(objective, config, folder)
    if config.shard:
        sharding.shard(objective.teacher, config, CPU, config.precision)
    return kept(objective, config, folder, players={"student": config, "critic": CRITIC})


def run(kind, folder, config, kept=Trainer):
    trainer = trainer_of(kind, folder, config, kept)
    trainer.fit()
    return results(trainer)


def results(trainer):
    """What a run came to: this process's part of it."""
    weights = trainer.modules.state_dict() | {f"ema.{name}": value for name, value in trainer.weights().items()}
    turns = trainer.gradients if isinstance(trainer, Recorded) else []
    return {
        "scalars": trainer.scalars,
        "weights": {name: sharding.local(value) for name, value in weights.items()},
        "gradients": [{name: sharding.local(value) for name, value in turn.items()} for turn in turns],
        "step": trainer.step,
    }


def together(pair, kind):
    """The results of two processes that have halves of everything, as wholes; scalars are each one's own."""
    halves = [one[kind] for one in pair]

    def joined(first, second):
        assert first.keys() == second.keys()
        return {name: torch.cat([value, second[name]]) for name, value in first.items()}

    turns = zip(*(half["gradients"] for half in halves), strict=True)
    whole = {"weights": joined(*(half["weights"] for half in halves)), "gradients": [joined(*turn) for turn in turns]}
    return [half | whole for half in halves]


@pytest.fixture
def alone():
    yield
    distributed.leave()


def parts_of(trainer):
    """Elements of weights, gradients, optimiser state and averages in this process, and in all, of what is large."""
    here, there = 0, 0
    for player in trainer.players.values():
        held = [*player.parameters, *(player.ema.weights.values() if player.ema else [])]
        held += [value for state in player.optimiser.state.values() for value in state.values() if value.ndim]
        for value in held:
            assert isinstance(value, DTensor)
            here, there = here + value.to_local().numel(), there + value.numel()
    return here / there


def both_ways(attend):
    """Flow and gradients of a pass that two processes share the rows of, and those of one alone."""
    x, conditions = clip(rows=4)
    results = []
    for group in (sharding.sequence_group(2), None):
        dit = tiny()
        flow = flow_of(dit, x, torch.tensor([500.0]), conditions, attend, group)
        flow.square().mean().backward()
        distributed.average_gradients(dit.parameters())
        grads = {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}
        results.append({"flow": flow.detach(), **grads})
    return results


def work(rank, port, folder):
    """One of two processes: trains in one go, or with a stop, and says how much it held."""
    join(rank, port)
    folder, found = Path(folder), {}
    for kind in ("ode", "buckets"):
        found[kind] = run(kind, folder / kind, replace(CONFIG, save_every=9), Recorded)
    for kind, no_sync in (("ode", False), ("ode", True), ("dmd", False), ("dmd", True)):
        name = f"{kind}, no_sync={no_sync}"
        with Exchanges() as seen:
            found[name] = run(kind, folder / name, replace(PARTS, no_sync=no_sync), Recorded)
        found[f"exchanges of {name}"] = seen.counts
    found["rows"] = [both_ways(attend) for attend in (FullAttention(), BlockCausal(3))]
    found |= stopped(folder / "dmd", folder / "stopped", rank)
    distributed.leave()
    torch.save(found, folder / f"{rank}.pt")


class Exchanges(TorchDispatchMode):
    """Counts how often layers are gathered and gradients are exchanged."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, called, types, given=(), settings=None):
        if called.namespace == "c10d":
            self.counts[called._opname] += 1
        return called(*given, **(settings or {}))


def stopped(folder, aside, rank):
    """A run of DMD that stops after two steps, its checkpoint copied aside, and goes on."""
    gathered = []
    plain = DTensor.full_tensor
    DTensor.full_tensor = lambda self, **given: gathered.append(self.numel()) or plain(self, **given)
    first = trainer_of("dmd", folder, replace(CONFIG, until=2), Recorded)
    first.fit()
    found = {"gathered": max(gathered), "share": parts_of(first)}
    if rank == 0:
        shutil.copytree(folder, aside)
    distributed.wait()
    second = trainer_of("dmd", folder, CONFIG, Recorded)
    second.fit()
    before, whole = results(first), results(second)
    return found | {"dmd": whole | {"gradients": before["gradients"] + whole["gradients"]}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, in_pairs(work, folder)


def close(found, wanted, atol=1e-6):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape and torch.allclose(found[name], value, rtol=1e-4, atol=atol), name


@pytest.mark.parametrize("kind", ["ode", "dmd", "buckets"])
def test_two_processes_train_as_one(kind, pair, tmp_path, alone):
    one = run(kind, tmp_path, CONFIG, Recorded)
    first, second = together(pair[1], kind)
    for two in (first, second):
        assert two["scalars"] == pytest.approx(one["scalars"], rel=1e-4)
    close(first["weights"], one["weights"])
    assert len(first["gradients"]) == len(one["gradients"]) == {"ode": 3, "dmd": 4, "buckets": 3}[kind]
    for found, wanted in zip(first["gradients"], one["gradients"], strict=True):
        close(found, wanted)


@pytest.mark.parametrize("kind", ["ode", "dmd"])
def test_parts_of_a_batch_that_exchange_once_learn_as_one_process_does(kind, pair, tmp_path, alone):
    one = run(kind, tmp_path, PARTS, Recorded)
    for two in together(pair[1], f"{kind}, no_sync=True"):
        assert two["scalars"] == pytest.approx(one["scalars"], rel=1e-4)
        for found, wanted in zip(two["gradients"], one["gradients"], strict=True):
            close(found, wanted)


def test_they_gather_every_layer_and_reduce_its_gradients_once_a_step(pair):
    for found in pair[1]:
        (each, once), (dmd, dmd_once) = (
            [found[f"exchanges of {kind}, no_sync={no_sync}"] for no_sync in (False, True)] for kind in ("ode", "dmd")
        )
        units = PARTS.steps * (2 * TINY.layers + 4)  # see sharding.shard
        assert each["_reduce_scatter_base_"] == 2 * units and each["_allgather_base_"] > 3 * units
        assert once["_reduce_scatter_base_"] == once["_allgather_base_"] == units
        assert all(dmd_once[name] < dmd[name] for name in ("_reduce_scatter_base_", "_allgather_base_"))


@pytest.mark.parametrize("attend", [0, 1], ids=["full", "block-causal"])
def test_a_pass_that_two_share_is_that_of_one(attend, pair):
    for two in pair[1]:
        shared, alone = two["rows"][attend]
        close(shared, alone, atol=1e-9)


def share(rank, port, folder):
    join(rank, port)
    settings = replace(TWO, sequence=2)
    found = {kind: run(kind, Path(folder) / f"{kind}-rows", settings, Recorded) for kind in ("ode", "dmd")}
    distributed.leave()
    torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_that_share_every_sample_train_as_one(tmp_path, alone):
    pairs = in_pairs(share, tmp_path)
    for kind in ("ode", "dmd"):
        one = run(kind, tmp_path / kind, TWO, Recorded)
        for two in together(pairs, kind):
            assert two["scalars"] == pytest.approx(one["scalars"], rel=1e-4)
            for found, wanted in zip(two["gradients"], one["gradients"], strict=True):
                close(found, wanted)


@pytest.mark.parametrize("kind", ["ode", pytest.param("dmd", marks=pytest.mark.slow)])
def test_a_sharded_process_trains_as_a_plain_one(kind, tmp_path, alone):
    config = replace(TWO, at_once=0)
    sharded = run(kind, tmp_path / "sharded", config, Recorded)
    plain = run(kind, tmp_path / "plain", replace(config, shard=False), Recorded)
    assert sharded["scalars"] == pytest.approx(plain["scalars"], rel=1e-5)
    close(sharded["weights"], plain["weights"])
    for found, wanted in zip(sharded["gradients"], plain["gradients"], strict=True):
        close(found, wanted)


def test_no_process_ever_holds_more_than_its_part(pair):
    for two in pair[1]:
        assert two["gathered"] == 1, "a norm is all that is put together"
        assert two["share"] == pytest.approx(0.5, abs=0.05)


def test_a_run_saved_on_two_goes_on_on_one(pair, tmp_path, alone):
    folder = pair[0] / "stopped"
    assert [path.name for path in checkpoint.whole(folder)] == ["step-0000002"]
    one = run("dmd", folder, CONFIG)
    whole = together(pair[1], "dmd")[0]
    assert one["step"] == 3
    close(one["weights"], whole["weights"])


def go_on(rank, port, folder):
    join(rank, port)
    found = {"dmd": run("dmd", Path(folder) / "run", CONFIG)}
    distributed.leave()
    torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_and_from_one_on_two(pair, tmp_path, alone):
    run("dmd", tmp_path / "run", replace(CONFIG, until=2))
    distributed.leave()
    for two in together(in_pairs(go_on, tmp_path), "dmd"):
        assert two["step"] == 3
        close(two["weights"], together(pair[1], "dmd")[0]["weights"])


def test_a_stop_changes_nothing_to_the_bit(tmp_path, alone):
    whole = run("ode", tmp_path / "whole", CONFIG)
    run("ode", tmp_path / "parts", replace(CONFIG, until=2))
    parts = run("ode", tmp_path / "parts", CONFIG)
    for name, value in whole["weights"].items():
        assert torch.equal(value, parts["weights"][name]), name


def test_layers_gathered_in_bfloat16_learn_as_autocast_does(tmp_path, alone):
    config = replace(CONFIG, at_once=0, precision="bf16", steps=1, recompute=True)
    sharded = run("ode", tmp_path / "sharded", config, Recorded)
    plain = run("ode", tmp_path / "plain", replace(config, shard=False), Recorded)
    assert sharded["scalars"] == pytest.approx(plain["scalars"], rel=2e-3)
    for name, value in plain["gradients"][0].items():
        found = sharded["gradients"][0][name]
        assert found.dtype == torch.float32
        assert float((found - value).norm()) <= 0.03 * float(value.norm()) + 1e-6, name


@pytest.mark.parametrize("kind", ["ode", "dmd"])
def test_their_parts_are_added_up_in_float32(kind, tmp_path, alone):
    config = replace(PARTS, precision="bf16", steps=2, recompute=True)
    each, once = (run(kind, tmp_path / str(no), replace(config, no_sync=no), Recorded) for no in (False, True))
    assert once["scalars"] == pytest.approx(each["scalars"], rel=1e-3)
    for name, value in each["gradients"][0].items():
        found = once["gradients"][0][name]
        assert found.dtype == torch.float32
        assert float((found - value).norm()) <= 1e-4 * float(value.norm()) + 1e-9, name


# Damage and mistakes


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, alone):
    run("ode", tmp_path, CONFIG)
    newest = checkpoint.whole(tmp_path)[-1]
    piece = next(newest.glob("*.distcp"))
    piece.write_bytes(piece.read_bytes()[:100])
    trainer = trainer_of("ode", tmp_path, CONFIG)
    assert trainer.resume() and trainer.step == 2
    for path in checkpoint.whole(tmp_path):
        (path / checkpoint.SHARDED).write_bytes(b"")
    with pytest.raises(ValueError, match="remove the folder"):
        trainer.resume()


def test_a_failed_save_is_told_and_leaves_the_one_before(tmp_path, alone, monkeypatch):
    run("ode", tmp_path, replace(CONFIG, until=2))
    monkeypatch.setattr(checkpoint, "complete", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run("ode", tmp_path, CONFIG)
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-0000002"]


def test_runs_of_the_other_kind_and_of_other_networks_are_refused(tmp_path, alone):
    run("ode", tmp_path / "sharded", replace(CONFIG, until=2))
    with pytest.raises(ValueError, match="train.shard=true"):
        trainer_of("ode", tmp_path / "sharded", replace(CONFIG, shard=False)).resume()
    run("ode", tmp_path / "plain", replace(CONFIG, until=2, shard=False))
    with pytest.raises(ValueError, match="without train.shard"):
        trainer_of("ode", tmp_path / "plain", CONFIG).resume()
    (tmp_path / "sharded").rename(tmp_path / "dmd")
    with pytest.raises(ValueError, match="other networks"):
        trainer_of("dmd", tmp_path / "dmd", CONFIG).resume()


def test_a_run_without_an_average_begins_one_with_the_weights_it_goes_on_from(tmp_path, alone):
    run("ode", tmp_path, replace(CONFIG, until=2, ema=0.0))
    trainer = trainer_of("ode", tmp_path, CONFIG)
    trainer.resume()
    for name, value in trainer.modules.state_dict().items():
        assert torch.equal(sharding.whole(value), sharding.whole(trainer.weights()[name]))


def test_the_metrics_are_means_over_the_processes(pair):
    rows = [json.loads(line) for line in (pair[0] / "ode" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] == pytest.approx(pair[1][1]["ode"]["scalars"]["loss"])


def test_a_batch_is_split_evenly_or_refused():
    assert TrainConfig(batch=64, at_once=2).parts(8) == 4
    assert TrainConfig(batch=64, at_once=2, shard=True, sequence=2).parts(8) == 8
    assert TrainConfig(batch=64, accumulate=4).parts(8) == 4
    with pytest.raises(ValueError, match="batch 64 does not split over 3 processes that take 2 at once"):
        TrainConfig(batch=64, at_once=2).parts(3)
    with pytest.raises(ValueError, match="batch 4 does not split over 8 processes that take 1 at once"):
        TrainConfig(batch=4, at_once=1).parts(8)
    with pytest.raises(ValueError, match="sequence=2 does not divide 3"):
        TrainConfig(shard=True, sequence=2).parts(3)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"shard": True, "graph": True}, "graph=true and shard=true"),
        ({"offload": True}, "shard=true, too"),
        ({"sequence": 2}, "shard=true, too"),
        ({"no_sync": True}, "shard=true, too"),
        ({"at_once": -1}, "at least 0"),
        ({"at_once": 2, "accumulate": 2}, "leave accumulate out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**settings)


def test_what_does_not_learn_is_sharded_too(alone):
    net = nn.Linear(3, 3).requires_grad_(False)
    wanted = net(torch.ones(1, 3))
    sharding.shard(net, Sharding(shard=True), CPU, "fp32")
    assert isinstance(net.weight, DTensor) and not net.weight.requires_grad
    assert torch.equal(net(torch.ones(1, 3)), wanted)
