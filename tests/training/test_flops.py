import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livetalk.conditions import Conditions
from livetalk.geometry import Geometry
from livetalk.models.attention import BlockCausal, FullAttention
from livetalk.models.dit import DiTConfig, WanDiT
from livetalk.models.kv_cache import CacheConfig
from livetalk.rollout import gaussian, new_cache, rollout
from livetalk.training import flops

SIZES = DiTConfig(
    dim=64, ffn_dim=96, heads=2, layers=6, text_dim=24, text_len=7, freq_dim=16, audio_dim=12, audio_hidden=8
)
GEOMETRY = Geometry(height=64, width=96, window=6, anchors=3, clip_latents=9)


def counted(act):
    # Of the kernels for attention on a CPU only the plain one is counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


@pytest.fixture
def dit():
    torch.manual_seed(0)
    return WanDiT(SIZES)


def told():
    side = (GEOMETRY.latent_height, GEOMETRY.latent_width)
    return Conditions(torch.randn(1, 7, 24), torch.randn(1, 16, 1, *side), torch.randn(1, 9, 48))


@pytest.mark.parametrize("block", [0, 3])
def test_a_pass_over_a_clip_is_what_is_counted(dit, block):
    conditions = told()
    x = torch.randn(1, 16, 9, *conditions.reference.shape[-2:])
    t = torch.full((1, 9) if block else (1,), 500.0)
    attend = BlockCausal(block) if block else FullAttention()
    with torch.no_grad():
        found = counted(lambda: dit(x, t, conditions, attend))
    assert flops.clip_flops(SIZES, GEOMETRY, block) == pytest.approx(found, rel=0.01)
    graded = counted(lambda: dit(x, t, conditions, attend).sum().backward())
    assert 3 * found == pytest.approx(graded, rel=0.15), "attention of short sequences aside, thrice as much"


def test_a_rollout_is_what_is_counted(dit):
    cache = new_cache(dit, CacheConfig(6, 3, 3), rows=GEOMETRY.rows, columns=GEOMETRY.columns)
    noise = gaussian(torch.Generator().manual_seed(0), torch.float32, "cpu")

    @torch.no_grad()
    def roll():
        list(rollout(dit, told(), 9, (1000.0, 500.0), cache, noise))

    assert flops.rollout_flops(SIZES, GEOMETRY, 2) == pytest.approx(counted(roll), rel=0.02)


def test_a_step_of_both_players_is_the_sum_of_its_passes():
    other = DiTConfig(**{**vars(SIZES), "layers": 8})
    clip, rolled = flops.clip_flops(SIZES, GEOMETRY), flops.rollout_flops(SIZES, GEOMETRY, 3)
    alone = flops.dmd_flops(SIZES, SIZES, other, GEOMETRY, 2, 2, learns=False)
    assert alone == rolled + 3 * clip
    both = flops.dmd_flops(SIZES, SIZES, other, GEOMETRY, 2, 2, learns=True)
    graded = both - alone - rolled - clip - 2 * flops.clip_flops(other, GEOMETRY)
    assert rolled / 4 < graded / 2 < rolled / 2, "of four passes a block one carries gradient"


def test_the_published_sizes_are_those_of_the_known_pass():
    """16.7 TFLOP a pass over a block of three latents with a full window, 512x512."""
    found = flops.block_flops(DiTConfig.wan_1_3b(), Geometry(), 12)
    assert found == pytest.approx(16.7e12, rel=0.05)
