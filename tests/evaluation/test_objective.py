"""Losses against hand calculations; augmentation; the objective's contract."""

import math

import pytest
import torch

from livetalk.evaluation import objective as module
from livetalk.evaluation.judges import Judges
from livetalk.evaluation.objective import JudgesObjective, ObjectiveConfig

from .test_judges import SMALL
from .toy import toy_batch, toy_clip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_contrastive_loss_of_two_pairs():
    """Two people, two frames each, opposite embeddings: -log(e^(1/t) / (e^(1/t) + 2 e^(-1/t)))."""
    embedding = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    value = module.contrastive_loss(embedding, torch.tensor([3, 3, 8, 8]), temperature=0.5)
    assert value.item() == pytest.approx(math.log(1 + 2 * math.exp(-4)), rel=1e-4)
    alone = module.contrastive_loss(embedding, torch.arange(4), temperature=0.5)
    assert alone.item() == 0


def test_correlation_loss_ignores_scale_and_still_clips():
    curve = torch.randn(3, 20, generator=seeded())
    truth = torch.stack([curve[0] * 3 + 1, -curve[1], torch.full((20,), 0.4)])
    assert module.correlation_loss(curve, truth).item() == pytest.approx((0 + 2) / 2, abs=1e-4)


def test_attribute_loss_skips_what_prompts_do_not_say():
    logits = torch.tensor([[0.0, 5.0], [2.0, -3.0]])
    target = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
    assert module.attribute_loss(logits, target).item() == pytest.approx(math.log(2))
    assert module.attribute_loss(logits, torch.full((2, 2), math.nan)).item() == 0
    with pytest.raises(ValueError, match="attributes"):
        module.attribute_loss(logits, target[:, :1])


def test_track_loss_weighs_the_mouth():
    target = torch.zeros(1, 1, 5)
    mouth, other = target.clone(), target.clone()
    mouth[..., 0], other[..., 1] = 1, 1
    ratio = module.track_loss(mouth, target, 4.0) / module.track_loss(other, target, 4.0)
    assert ratio.item() == pytest.approx(4)


def test_partners_are_other_clips_of_the_same_person():
    identity = torch.tensor([5, 2, 5, 9, 2, 5])
    chosen = torch.arange(6).repeat(200)
    found = module.partners(identity, chosen, seeded())
    assert torch.equal(identity[found], identity[chosen])
    assert torch.equal(found[chosen == 3], torch.full((200,), 3))
    others = chosen != 3
    assert not torch.any(found[others] == chosen[others])
    assert set(found[chosen == 0].tolist()) == {2, 5}


def test_augmentation_without_strength_changes_nothing():
    x = torch.rand(2, 3, 3, 32, 32, generator=seeded()) * 2 - 1
    nothing = ObjectiveConfig(spoil=0, light=0, shift=0, zoom=0)
    same, strengths = module.augment(x, nothing, seeded())
    torch.testing.assert_close(same, x, atol=1e-5, rtol=0)
    assert strengths.abs().max() == 0


def test_augmentation_is_one_draw_a_clip_and_repeats():
    x = (torch.rand(4, 1, 3, 32, 32, generator=seeded()) * 2 - 1).expand(4, 5, 3, 32, 32)
    config = ObjectiveConfig(spoil=1, noise=0)
    first, strengths = module.augment(x, config, seeded(1))
    torch.testing.assert_close(first, first[:, :1].expand_as(first))
    assert not torch.equal(first, x) and strengths.min() > 0
    assert torch.equal(first, module.augment(x, config, seeded(1))[0])


def test_blur_lowers_detail_in_proportion():
    x = torch.rand(1, 1, 3, 64, 64, generator=seeded())
    assert module.blurred(x).std() < 0.4 * x.std()
    torch.testing.assert_close(module.blurred(torch.ones_like(x)), torch.ones_like(x))


def test_swapped_surroundings_keep_the_middle():
    x = torch.stack([torch.full((3, 64, 64), float(i)) for i in range(4)])
    swapped = module.swap_surroundings(x, 1.0, seeded(3))
    torch.testing.assert_close(swapped[:, :, 28:36, 28:36], x[:, :, 28:36, 28:36], atol=0.05, rtol=0)
    assert (swapped[:, :, 0, 0] - x[:, :, 0, 0]).abs().max() > 0.9
    assert torch.equal(module.swap_surroundings(x, 0.0, seeded(3)), x)


def test_corruptions_do_what_their_names_say():
    x = torch.arange(24.0).view(1, 24, 1).expand(64, 24, 2)
    damaged, kind = module.corrupt_time(x, seeded())
    assert set(kind.tolist()) == {0, 1, 2, 3}
    row = {name: damaged[kind == i][0, :, 0] for i, name in enumerate(module.CORRUPTIONS)}
    assert row["natural"].tolist() == list(range(24))
    assert row["double speed"][:12].tolist() == list(range(0, 24, 2))
    assert row["held"][:8].tolist() == [0, 0, 0, 0, 4, 4, 4, 4]
    shuffled = row["shuffled"]
    assert sorted(shuffled.tolist()) == list(range(24)) and shuffled.tolist() != list(range(24))
    assert torch.equal(shuffled // 6, torch.arange(24) // 6)


@pytest.fixture
def ready():
    torch.manual_seed(0)
    batch = toy_batch([toy_clip(i, identity=i % 2, frames=10) for i in range(4)])
    objective = JudgesObjective(Judges(SMALL), ObjectiveConfig())
    objective.calibrate([batch])
    return objective, batch


def test_every_parameter_gets_a_gradient_also_under_autocast(ready):
    objective, batch = ready
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = objective.loss(batch, seeded())
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert set(parts) == {"tracks", "correlation", "identity", "video", "quality"}
    assert not any(part.requires_grad for part in parts.values())
    missing = [name for name, p in objective.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


def test_loss_depends_on_the_generator_alone(ready):
    objective, batch = ready
    assert objective.loss(batch, seeded(1))[0] == objective.loss(batch, seeded(1))[0]
    assert objective.loss(batch, seeded(1))[0] != objective.loss(batch, seeded(2))[0]


def test_calibration_standardises_and_refuses_constant_tracks(ready):
    objective, batch = ready
    standard = objective.judges.face.standardise(batch["tracks"]).flatten(0, 1)
    torch.testing.assert_close(standard.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(objective.judges.face.units(standard)[:, 1].view(4, 10), batch["tracks"]["eye_open"])
    batch["tracks"]["roll"] = torch.zeros(4, 10)
    with pytest.raises(ValueError, match="roll"):
        objective.calibrate([batch])
    del batch["tracks"]["yaw"]
    with pytest.raises(ValueError, match="yaw"):
        objective.judges.face.standardise(batch["tracks"])


def test_errors_name_every_judge(ready):
    objective, batch = ready
    errors = objective.evaluate([batch, batch])
    assert {"mouth_open/pearson in speech", "identity/auc", "speech/accuracy", "attribute nod: nods/accuracy"} <= set(
        errors
    )
    with pytest.raises(ValueError, match="at least one batch"):
        objective.evaluate([])
