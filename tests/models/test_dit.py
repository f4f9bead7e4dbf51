import pytest
import torch
import torch.nn.functional as F

from livetalk.conditions import Conditions
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import DiTConfig, WanDiT, timestep_features
from livetalk.models.kv_cache import CacheConfig, KVCache
from livetalk.rollout import rollout

TINY = DiTConfig(
    dim=24, ffn_dim=32, heads=2, layers=4, text_dim=10, text_len=5, freq_dim=16, audio_dim=6, audio_hidden=4
)


def tiny(config=TINY, seed=0):
    torch.manual_seed(seed)
    return WanDiT(config).double().eval()


def clip(frames=6, batch=1, seed=0, rows=2, columns=3):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    conditions = Conditions(draw(batch, 5, 10), draw(batch, 16, 1, 2 * rows, 2 * columns), draw(batch, frames, 24))
    return draw(batch, 16, frames, 2 * rows, 2 * columns), conditions


def cache_for(dit, window, anchors=0, rows=2, columns=3, turned=False, **extra):
    config = dit.config
    return KVCache(
        CacheConfig(window, anchors, 3, **extra),
        layers=config.layers,
        heads=config.heads,
        head_dim=config.head_dim,
        rows=rows,
        columns=columns,
        dtype=torch.float64,
        turned=turned,
    )


@torch.no_grad()
def test_prepared_conditions_equal_fresh_ones():
    dit = tiny()
    x, conditions = clip()
    fresh = dit(x, torch.tensor([625.0]), conditions, FullAttention())
    prepared = dit.prepare(conditions, 6, [625.0])
    assert torch.equal(dit(x, 625.0, prepared, FullAttention()), fresh)
    assert torch.allclose(dit(x, torch.full((1, 6), 625.0), prepared, FullAttention()), fresh)


@torch.no_grad()
def test_a_batch_is_its_samples():
    dit = tiny()
    x, conditions = clip(batch=3)
    t = torch.tensor([900.0, 500.0, 100.0])
    whole = dit(x, t, conditions, FullAttention())
    for i in range(3):
        one = dit(x[i : i + 1], t[i : i + 1], conditions.map(lambda a, i=i: a[i : i + 1]), FullAttention())
        assert torch.allclose(whole[i : i + 1], one)


@torch.no_grad()
@pytest.mark.parametrize("window, anchors", [(12, 0), (9, 3)])
def test_cached_blocks_equal_the_block_causal_mask(window, anchors):
    dit = tiny()
    x, conditions = clip(12)
    attend = BlockCausal(3, window if window < 12 else None, anchors, masked=True)
    whole = dit(x, torch.tensor([700.0]), conditions, attend)
    cache = cache_for(dit, window, anchors, positions="absolute")
    for start in range(0, 12, 3):
        cache.advance()
        part = dit(x[:, :, start : start + 3], 700.0, conditions.block(start, 3), cache)
        assert torch.allclose(part, whole[:, :, start : start + 3], atol=1e-6)


@torch.no_grad()
def test_later_input_never_changes_earlier_output():
    dit = tiny()
    x, conditions = clip(9)
    before = dit(x, torch.tensor([700.0]), conditions, BlockCausal(3))
    x2, other = clip(9, seed=1)
    x2[:, :, :6] = x[:, :, :6]
    audio = torch.cat([conditions.audio[:, :6], other.audio[:, 6:]], 1)
    changed = Conditions(conditions.text, conditions.reference, audio)
    after = dit(x2, torch.tensor([700.0]), changed, BlockCausal(3))
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.allclose(before[:, :, 6:], after[:, :, 6:])


@torch.no_grad()
def test_rollout_pins_the_reference_and_is_causal_and_repeatable():
    dit = tiny()
    _, conditions = clip(9)

    def run(conditions):
        generator = torch.Generator().manual_seed(7)
        noise = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
        cache = cache_for(dit, 9, 3)
        return list(rollout(dit, conditions, 9, (1000, 937.5, 2500 / 3, 625), cache, noise))

    blocks = run(conditions)
    assert torch.equal(blocks[0][:, :, :1], conditions.reference)
    audio = conditions.audio.clone()
    audio[:, 6:] += 1
    changed = run(Conditions(conditions.text, conditions.reference, audio))
    assert torch.equal(torch.cat(blocks[:2], 2), torch.cat(changed[:2], 2))
    assert not torch.allclose(blocks[2], changed[2])
    with pytest.raises(ValueError, match="whole number of blocks"):
        next(rollout(dit, conditions, 8, (1000,), cache_for(dit, 9, 3), torch.randn))


def test_published_sizes():
    with torch.device("meta"):
        counts = {
            preset.__name__: sum(p.numel() for p in WanDiT(preset()).parameters())
            for preset in (DiTConfig.nano, DiTConfig.wan_1_3b, DiTConfig.wan_14b)
        }
    assert counts["wan_1_3b"] == 1_421_187_232
    assert counts["wan_14b"] == 14_293_426_336
    assert 5e6 < counts["nano"] < 5.6e6


def test_timesteps_are_cosines_first():
    features = timestep_features(torch.tensor([3.0]), 4)[0]
    assert torch.allclose(
        features,
        torch.tensor([3.0, 0.03, 3.0, 0.03]).double().cos() * torch.tensor([1, 1, 0, 0])
        + torch.tensor([3.0, 0.03, 3.0, 0.03]).double().sin() * torch.tensor([0, 0, 1, 1]),
    )


def test_wrong_audio_length_is_refused():
    dit = tiny()
    x, conditions = clip(6)
    with pytest.raises(ValueError, match="audio for 6 latent frames, the pass has 3"):
        dit(x[:, :, :3], 1000.0, conditions, FullAttention())


@torch.no_grad()
def test_agrees_with_diffusers_on_random_weights():
    from diffusers import WanTransformer3DModel

    from livetalk.models.layouts import DIT_DIFFUSERS

    config = DiTConfig(
        dim=24, ffn_dim=32, heads=2, layers=3, in_channels=16, text_dim=10, text_len=5, freq_dim=16, audio_dim=0
    )
    torch.manual_seed(0)
    other = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=10,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        cross_attn_norm=True,
        eps=1e-6,
        rope_max_seq_len=32,
    ).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = WanDiT(config).eval()
    ours.load_state_dict(DIT_DIFFUSERS(other.state_dict()), strict=True)
    x, conditions = clip(3)
    x, text = x.float(), conditions.text.float()
    want = other(x, torch.tensor([625.0]), text, return_dict=False)[0]
    got = ours(x, torch.tensor([625.0]), Conditions(text), FullAttention())
    assert F.mse_loss(got, want) < 1e-10 * want.square().mean()


@pytest.mark.parametrize("attend", [FullAttention(), BlockCausal(3)])
def test_recomputed_blocks_give_the_same_gradient_and_are_run_again(attend):
    gradients, runs = [], []
    for recompute in (False, True):
        dit = tiny()
        dit.recompute = recompute
        counted = [0] * len(dit.blocks)

        def count(index, counted=counted):
            counted[index] += 1

        for index, block in enumerate(dit.blocks):
            block.register_forward_pre_hook(lambda *_, index=index, count=count: count(index))
        x, conditions = clip(batch=2)
        dit(x, torch.tensor([900.0, 300.0]), conditions, attend).square().mean().backward()
        gradients.append({name: value.grad for name, value in dit.named_parameters() if value.grad is not None})
        runs.append(counted)
    assert runs == [[1] * 4, [2] * 4]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(value, gradients[1][name], rtol=1e-9) for name, value in gradients[0].items())


def test_a_cached_pass_may_be_run_again_when_the_cache_has_gone_on():
    """What it saw is overwritten by then; it goes by its own copies."""
    gradients = []
    for recompute in (False, True):
        dit = tiny()
        dit.recompute = recompute
        runs = []
        dit.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        cache = cache_for(dit, 6)
        x, conditions = clip(9)
        total = 0
        for start in range(0, 9, 3):
            cache.advance()
            part, told = x[:, :, start : start + 3], conditions.block(start, 3)
            total = total + dit(part, 700.0, told, cache).square().mean()
            with torch.no_grad():
                dit(part, 0.0, told, cache)
        total.backward()
        gradients.append({name: value.grad for name, value in dit.named_parameters() if value.grad is not None})
        assert len(runs) == (9 if recompute else 6)
    assert all(torch.allclose(value, gradients[1][name], rtol=1e-9) for name, value in gradients[0].items())
