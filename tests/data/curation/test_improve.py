"""Reference pictures through a pipeline of diffusers, and the check that they still show the same face."""

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.data.curation.examine import Tools
from livetalk.data.curation.improve import faults, improver_of
from livetalk.data.curation.limits import Limits
from tests.data.curation.cartoon import OTHER_SKIN, Faces, brighter, draw, identity, somebody_else

TOOLS = Tools(Faces(), voice=None, identity=identity)
LIMITS = Limits(identity=0.2)
BEFORE = draw(0.2)


def test_what_may_stand_for_a_picture():
    def why(after) -> str:
        return "; ".join(faults(BEFORE, np.asarray(after), TOOLS, LIMITS))

    image = Image.fromarray(BEFORE)
    assert why(BEFORE) == "" and why(brighter(image)) == ""
    assert "identity" in why(somebody_else(image)) and "identity" in why(draw(0.2, skin=OTHER_SKIN))
    assert "moved" in why(draw(0.2, at=(0.6, 0.5)))
    assert "2 faces" in why(np.concatenate([BEFORE, BEFORE], axis=1)) and "0 faces" in why(np.zeros_like(BEFORE))
    assert "blur" in why(image.resize((16, 16)).resize(image.size))


def test_what_is_no_improver(tmp_path):
    for name in (str(tmp_path), "none:x", "nothing"):
        with pytest.raises(ValueError, match="improve="):
            improver_of(name, "cpu")


@pytest.mark.slow
def test_a_pipeline_of_diffusers_improves_pictures(tmp_path):
    """A super-resolution pipeline of random weights, saved and read from its folder."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vq = diffusers.VQModel(
        block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3, num_vq_embeddings=16, **blocks
    )
    unet = diffusers.UNet2DModel(
        sample_size=32,
        in_channels=6,
        out_channels=3,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    pipeline = diffusers.LDMSuperResolutionPipeline(vq, unet, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path / "upscaler")
    improver = improver_of(str(tmp_path / "upscaler"), "cpu")
    picture = Image.fromarray(BEFORE)
    after = improver(picture)
    assert after.size == (2 * picture.width, 2 * picture.height)
    assert np.array_equal(np.asarray(after), np.asarray(improver(picture)))
