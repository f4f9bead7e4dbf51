"""The transformer compiled by parts against the plain one: the same numbers, from few forms."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor import metrics

from livetalk import config
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import Parts, WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.models.lora import LoraConfig, adapt
from livetalk.rollout import gaussian, new_cache, rollout
from livetalk.training import compiled, distributed, sharding
from livetalk.training.compiled import compile_network
from livetalk.training.dmd import Iteration
from livetalk.training.sharding import Sharding
from livetalk.training.trainer import Learning, TrainConfig, Trainer
from tests.models.test_dit import TINY, clip, tiny
from tests.training import test_dmd, test_graphed

DEEP = replace(TINY, layers=9)
LEVELS = (1000.0, 937.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Traces and differentiates as the real one does, but, on a CPU, leaves the kernels out."""
    made, limit = compiled.parts, torch._dynamo.config.recompile_limit
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(compiled, "parts", lambda: made("aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    with inductor.patch({"triton.mix_order_reduction": inductor.triton.mix_order_reduction}):
        yield
    torch._dynamo.config.recompile_limit = limit
    distributed.leave()


def forms():
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def gradients(module):
    return {name: sharding.whole(p.grad).clone() for name, p in module.named_parameters() if p.grad is not None}


def full(dit, x, conditions):
    return dit(x, torch.tensor([500.0], device=x.device), conditions, FullAttention())


def causal(dit, x, conditions):
    return dit(x, torch.tensor([[500.0] * 3 + [900.0] * 3], device=x.device), conditions, BlockCausal(3))


def rolled(dit, x, conditions):
    noise = gaussian(torch.Generator().manual_seed(7), x.dtype, x.device)
    cache = new_cache(dit, CacheConfig(6, 3, 3), rows=2, columns=3, dtype=x.dtype, device=x.device, turned=True)
    return torch.cat(list(rollout(dit, conditions, 6, LEVELS, cache, noise, graded=range(6))), 2)


def learn(dit, act, precision="fp32", recompute=False, device="cpu", rows=2, columns=3):
    """What a pass gives, and its gradients."""
    x, conditions = clip(rows=rows, columns=columns)
    dit, x, conditions = dit.to(device), x.to(device), conditions.map(lambda value: value.to(device))
    if precision == "bf16":
        dit, x, conditions = dit.float(), x.float(), conditions.map(lambda value: value.float())
    dit.recompute = recompute
    dit.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        out = act(dit, x, conditions)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=device)
        (out.double() * weight.view_as(out)).sum().backward()
    return out.detach(), gradients(dit)


@pytest.mark.parametrize("precision, recompute", [("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("act, wanted", [(full, 4), (causal, 4), (rolled, 8)])
def test_all_layers_share_the_forms_of_their_parts_and_give_the_plain_numbers(act, wanted, precision, recompute):
    plain, gradient = learn(tiny(DEEP), act, precision)
    dit = tiny(DEEP)
    compile_network(dit, "parts")
    for _ in range(2):
        found, ours = learn(dit, act, precision, recompute)
        assert forms() == wanted, "of every part with gradient and, in a rollout, without"
    alike((found, ours), (plain, gradient), 0.02 if precision == "bf16" else 1e-9)


def alike(found, wanted, near):
    (out, ours), (plain, gradient) = found, wanted
    assert float((out - plain).norm()) <= near * float(plain.norm())
    assert ours.keys() == gradient.keys()
    for name, value in gradient.items():
        assert float((ours[name] - value).norm()) <= near * float(value.norm()) + 1e-12, name


@pytest.mark.gpu
@pytest.mark.parametrize("act, wanted", [(full, 4), (causal, 4), (rolled, 8)])
def test_a_card_gives_the_plain_numbers_too(act, wanted):
    wide = replace(DEEP, dim=256, ffn_dim=512)
    plain = learn(tiny(wide), act, "bf16", device="cuda")
    dit = tiny(wide)
    compile_network(dit, "parts")
    for recompute in (True, False):
        found = learn(dit, act, "bf16", recompute, device="cuda")
        assert forms() == wanted
        alike(found, plain, 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["parts", "blocks"])
def test_gradients_of_modulations_that_thousands_of_tokens_share_are_right(way):
    """At a size at which PyTorch would sum over rows and columns in one kernel, if it were let: 24,576 rows of 256."""
    wide, size = replace(TINY, layers=3, dim=256, ffn_dim=512), {"device": "cuda", "rows": 64, "columns": 64}
    plain = learn(tiny(wide), full, "bf16", **size)
    metrics.reset()
    dit = tiny(wide)
    with inductor.patch(force_disable_caches=True):
        compile_network(dit, way)
        alike(learn(dit, full, "bf16", **size), plain, 0.1)
    assert metrics.codegen_mix_order_reduction == 0


@pytest.mark.parametrize("way", ["parts", "blocks", True])
def test_sums_over_rows_and_columns_stay_apart_where_networks_learn_compiled(way):
    with inductor.patch({"triton.mix_order_reduction": True}):
        compile_network(tiny(), False)
        assert inductor.triton.mix_order_reduction
        compile_network(tiny(), way)
        assert not inductor.triton.mix_order_reduction


@pytest.mark.gpu
def test_captured_steps_of_compiled_parts_learn_what_eager_ones_do(tmp_path):
    runs = []
    for how in (False, "parts"):
        given = {"graph": bool(how), "steps": 20, "precision": "bf16", "recompute": True}
        run = test_graphed.trainer("dmd", tmp_path / str(how), "cuda", **given)
        told = run.objective
        for network in (told.student, told.critic, told.teacher):
            compile_network(network, how)
        run.fit()
        runs.append(run)
    assert runs[1].scalars == pytest.approx(runs[0].scalars, rel=0.2, abs=1e-2)


@pytest.mark.parametrize("shard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_game_compiles_in_its_first_steps_alone(shard, tmp_path, monkeypatch):
    monkeypatch.setattr(test_dmd, "TINY", DEEP)
    told = test_dmd.objective(every=2)
    networks = [told.student, told.critic, told.teacher]
    settings = {"shard": True} if shard else {}
    for network in networks:
        compile_network(network, "parts")
        if shard:
            sharding.shard(network, Sharding(shard=True), torch.device("cpu"), "bf16")
    learning = TrainConfig(steps=9, batch=2, ema=0.9, recompute=True, **settings)
    run = Trainer(told, learning, tmp_path, players={"student": learning, "critic": Learning()})
    found = []
    for _ in range(4):
        run.update()
        found.append(forms())
    # Of student and critic, with and without gradient; the teacher sees two clips at once.
    assert found[1:] == [4 * 5] * 3


def test_weights_that_are_cast_before_change_no_bit():
    told = test_dmd.objective()
    compile_network(told.student, "parts")
    conditions = told.pairs.conditions(torch.arange(2), told.text[:2])

    def run():
        told.student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scored = told.generate(conditions, Iteration(exit=1, start=0), torch.Generator().manual_seed(0))
        scored.latents.float().square().mean().backward()
        return {"": scored.latents.detach(), **gradients(told.student)}

    for _ in range(2):
        narrow = run()
        assert told.narrow.dit.blocks[0].ffn[0].weight.dtype == torch.bfloat16
        plain, told._plain = told._plain, lambda kind: told.student
        wide, told._plain = run(), plain
        assert narrow.keys() == wide.keys() and all(torch.equal(value, wide[name]) for name, value in narrow.items())
        with torch.no_grad():
            told.student.blocks[1].ffn[0].weight.mul_(1.5)
    assert {name for name, _ in told.student.named_parameters()} < set(narrow)
    assert all(parameter.requires_grad for parameter in told.student.parameters())


def test_adapted_layers_compile_too():
    dit = tiny(DEEP)
    adapt(dit, LoraConfig(2, 4.0))
    dit.double()
    plain, gradient = learn(dit, full)
    compile_network(dit, True)
    found, ours = learn(dit, full)
    assert forms() == 4 + 2, "what comes before the first adapter has no gradient"
    assert torch.allclose(found, plain)
    assert ours.keys() == gradient.keys() and all("lora" in name for name in ours)
    assert all(torch.allclose(ours[name], value) for name, value in gradient.items())


def test_few_layers_are_compiled_whole_and_many_by_parts():
    def way(layers, *settings, **others):
        with torch.device("meta"):
            dit = WanDiT(replace(TINY, layers=layers))
        compile_network(dit, *settings, **others)
        whole = {block._compiled_call_impl is not None for block in dit.blocks}
        assert len(whole) == 1
        return whole.pop(), dit.parts != Parts()

    assert way(8, True) == (True, False) and way(9, True) == (False, True)
    assert way(8, "parts") == (False, True) and way(9, "blocks") == (True, False)
    assert way(8, False) == way(9, False) == (False, False)
    assert way(8, "blocks", cached=True) == (False, True)


def test_the_way_is_true_false_or_a_word():
    def said(*words):
        return config.load(None, list(words), run="bench_training").train.compile

    assert said() is False and said("train.compile=true") is True and said("train.compile=parts") == "parts"
    with pytest.raises(ValueError, match="compile=halves: choose true, false, parts or blocks"):
        said("train.compile=halves")
    with pytest.raises(ValueError, match="train.compile: 3 is not true or false"):
        said("train.compile=3")
    assert TrainConfig(compile="blocks").compile == "blocks"
