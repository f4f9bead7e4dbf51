"""The fused decoder beside the plain one."""

import weakref

import pytest
import torch

from livetalk.media import pixels_of
from livetalk.models.vae import VAEConfig, WanVAE
from livetalk.streaming.engine.decoder import DecodedStream, FusedDecoder, conv, folded, joined, plain_norm_silu, woven


def vae(dtype=torch.float64, config=None) -> WanVAE:
    torch.manual_seed(0)
    made = WanVAE(config or VAEConfig(base_dim=8, res_blocks=1)).to(dtype).eval().requires_grad_(False)
    for value in made.parameters():
        value.add_(torch.randn_like(value) * 0.02)
    return made


def pieces(block: int, blocks: int, like: torch.Tensor, size=(2, 3)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 16, block, *size, generator=generator).to(like) for _ in range(blocks)]


def after(stream: DecodedStream, latents: torch.Tensor) -> torch.Tensor:
    """The frames of all latents."""
    frames = torch.cat([part.clone() for part in stream.decode(latents)])
    stream.keep()
    return frames


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
    found = [after(stream, piece) for piece in given]
    assert all(map(equal, found, wanted)) and len(found[0]) == 4 * block - 3
    assert wanted[-1].float().std() > 1

    stream.reset()
    assert all(torch.equal(after(stream, piece), out) for piece, out in zip(given, found, strict=True))


@torch.inference_mode()
def test_parts_of_a_sum_are_let_go_once_it_is_written():
    """At the next norm nothing holds them any more: of the published size they are 0.6 GB each."""
    shared = FusedDecoder(vae())
    norm, written, seen = shared.norm, [], 0

    def watched(x, bias, other, *places):
        nonlocal seen
        assert all(part() is None for part in written)
        written[:] = [weakref.ref(part) for part in (x, other) if part is not None and bias is not None]
        seen += len(written)
        norm(x, bias, other, *places)

    shared.norm = watched
    after(DecodedStream(shared, 3, 2, 3, graphs=False), pieces(3, 1, shared.enter.weight)[0])
    assert seen > 20


@torch.inference_mode()
@pytest.mark.parametrize("host", [False, True])
def test_going_back_is_never_having_been(host):
    model = vae()
    given = pieces(2, 6, model.conv2.weight)
    wanted = [
        after(stream, piece) for stream in [DecodedStream(FusedDecoder(model), 2, 2, 3, False)] for piece in given
    ]
    stream = DecodedStream(FusedDecoder(model), 2, 2, 3, graphs=False, back=3, host=host)
    saved = [stream.snapshot()]
    for stop, to in ((3, 0), (2, 1), (3, 3), (4, 1), (2, 1), (6, 4), (5, 3), (6, 6)):
        while len(saved) <= stop:
            assert torch.equal(after(stream, given[len(saved) - 1]), wanted[len(saved) - 1])
            saved.append(stream.snapshot())
        # What is gone back over was another block, and then it is not there to go back to.
        stream.restore(saved[to])
        del saved[to + 1 :]
        if to < stop:
            after(stream, given[to] + 1)
            stream.restore(saved[to])
    with pytest.raises(ValueError, match="back from pass 6 of the decoder to 2"):
        stream.restore(2)
    with pytest.raises(ValueError, match="back from pass 6 of the decoder to 7"):
        stream.restore(7)
    stream.restore(3)
    with pytest.raises(ValueError, match="to 2: 0 are kept"):
        stream.restore(2)
    assert all(torch.equal(after(stream, piece), out) for piece, out in zip(given[3:], wanted[3:], strict=True))


@pytest.mark.parametrize("host", [False, True])
def test_the_plan_names_what_is_there(host):
    shared = FusedDecoder(vae(torch.float32))
    plan = shared.plan(2, 2, 3, 3, host)
    places = shared.places(2, 2, 3).nbytes()
    assert plan["decoder's places"] == sum(places)
    if host:
        assert "decoder's snapshots" not in plan
        assert 4 * places[1] <= plan["decoder's snapshots (on the host)"] < 8 * places[1]
    else:
        assert plan["decoder's snapshots"] == 4 * places[1] and "decoder's snapshots (on the host)" not in plan


@torch.inference_mode()
def test_another_precision_leaves_the_vae_as_it_is():
    model = vae(torch.float32)
    given = pieces(2, 2, model.conv2.weight)
    plain, half = (DecodedStream(FusedDecoder(model, dtype), 2, 2, 3, graphs=False) for dtype in (None, torch.bfloat16))
    assert model.conv2.weight.dtype == torch.float32
    for piece in given:
        difference = (after(plain, piece).float() - after(half, piece).float()).square().mean()
        assert 0 < difference < 4


def test_the_sum_is_kept_for_the_shortcut():
    x, other = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    bias, gamma, total, out = torch.randn(8), torch.rand(8), torch.empty_like(x), torch.empty(4, 3, 4, 8)
    plain_norm_silu(x, bias, other, gamma, total, out, torch.zeros(2, 3, 4, 8))
    assert torch.equal(total, x + bias + other)
    normal = torch.nn.functional.normalize(total, dim=-1) * 8**0.5 * gamma
    torch.testing.assert_close(out[2:], torch.nn.functional.silu(normal))
    assert not out[:2].any()


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_what_is_joined_is_what_came_before(frames):
    x = torch.randn(4 * frames, 2, 3, 4)
    kept, out = torch.zeros(2, 2, 3, 4), torch.empty(2 + frames, 2, 3, 4)
    whole = torch.cat([kept, x])
    for start in range(0, len(x), frames):
        joined(x[start : start + frames], out, kept)
        assert torch.equal(out, whole[start : start + frames + 2])


def test_a_folded_convolution_is_that_of_the_enlarged_picture():
    torch.manual_seed(0)
    large = torch.nn.Conv2d(4, 3, 3, padding=1).double()
    x = torch.randn(2, 5, 7, 4, dtype=torch.float64)
    wanted = large(torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0)).permute(0, 2, 3, 1)
    found = woven(conv(folded(large), x)) + large.bias
    assert found.shape == wanted.shape == (2, 10, 14, 3)
    torch.testing.assert_close(found, wanted)
