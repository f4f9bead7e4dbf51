"""The fused decoder beside the plain one."""

import pytest
import torch

from livetalk.media import pixels_of
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.streaming.engine.decoder import DecodedStream, FusedDecoder, conv, folded, plain_norm_silu, woven


def vae(dtype=torch.float64, config=None) -> WanVAE:
    torch.manual_seed(0)
    made = WanVAE(config or VAEConfig(base_dim=8, res_blocks=1)).to(dtype).eval().requires_grad_(False)
    for value in made.parameters():
        value.add_(torch.randn_like(value) * 0.02)
    return made


def pieces(block: int, blocks: int, like: torch.Tensor, size=(2, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 16, block, *size, generator=generator).to(like) for _ in range(blocks)]


def equal(given: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Rounding to a level may fall the other way."""
    difference = (given.int() - wanted.int()).abs()
    return given.shape == wanted.shape and difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_stream_is_that_of_the_plain_decoder(block, dtype):
    model = vae(dtype)
    given = pieces(block, 4, model.conv2.weight)
    state = model.decoder_state()
    wanted = [pixels_of(model.decode_step(piece, state))[0] for piece in given]
    stream = DecodedStream(FusedDecoder(model), block, 2, 3, graphs=False)
    found = [stream.decode(piece) for piece in given]
    assert all(map(equal, found, wanted)) and len(found[0]) == 4 * block - 3
    assert wanted[-1].float().std() > 1

    stream.reset()
    assert all(torch.equal(stream.decode(piece), out) for piece, out in zip(given, found, strict=True))


@torch.inference_mode()
def test_going_back_is_never_having_been():
    model = vae()
    given = pieces(2, 4, model.conv2.weight)
    stream = DecodedStream(FusedDecoder(model), 2, 2, 3, graphs=False)
    wanted, saved = [], []
    for piece in given:
        saved.append(stream.snapshot())
        wanted.append(stream.decode(piece))
    for index in (2, 0, 3):
        stream.restore(saved[index])
        stream.decode(given[index] + 1)
        stream.restore(saved[index])
        assert torch.equal(stream.decode(given[index]), wanted[index])


@torch.inference_mode()
def test_another_precision_leaves_the_vae_as_it_is():
    model = vae(torch.float32)
    given = pieces(2, 2, model.conv2.weight)
    plain, half = (DecodedStream(FusedDecoder(model, dtype), 2, 2, 3, graphs=False) for dtype in (None, torch.bfloat16))
    assert model.conv2.weight.dtype == torch.float32
    for piece in given:
        difference = (plain.decode(piece).float() - half.decode(piece).float()).square().mean()
        assert 0 < difference < 4


def test_the_sum_is_kept_for_the_shortcut():
    x, other = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    bias, gamma, total, out = torch.randn(8), torch.rand(8), torch.empty_like(x), torch.empty_like(x)
    plain_norm_silu(x, bias, other, gamma, total, out)
    assert torch.equal(total, x + bias + other)
    normal = torch.nn.functional.normalize(total, dim=-1) * 8**0.5 * gamma
    torch.testing.assert_close(out, torch.nn.functional.silu(normal))


def test_a_folded_convolution_is_that_of_the_enlarged_picture():
    torch.manual_seed(0)
    large = torch.nn.Conv2d(4, 3, 3, padding=1).double()
    x = torch.randn(2, 5, 7, 4, dtype=torch.float64)
    wanted = large(torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0)).permute(0, 2, 3, 1)
    found = woven(conv(folded(large), x)) + large.bias
    assert found.shape == wanted.shape == (2, 10, 14, 3)
    torch.testing.assert_close(found, wanted)
