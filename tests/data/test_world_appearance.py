import dataclasses

import numpy as np
import pytest

from livetalk.data.world.appearance import BACKDROPS, HAIR_STYLES, Look
from livetalk.data.world.backdrop import backdrop
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.mesh import vertex_normals
from livetalk.data.world.paint import FaceMap
from livetalk.data.world.scene import build_scene

MODEL = FaceModel.tiny()
WHERE = FaceMap.of(MODEL)


def plain(look):
    return {f.name: getattr(look, f.name) for f in dataclasses.fields(look) if f.name != "identity"}


def test_equal_generators_give_equal_looks_and_others_differ():
    a, b, c = (Look.sample(np.random.default_rng(seed), MODEL) for seed in (1, 1, 2))
    assert plain(a) == plain(b) and np.array_equal(a.identity, b.identity)
    assert plain(a) != plain(c) and not np.array_equal(a.identity, c.identity)


def test_people_and_places_vary():
    looks = [Look.sample(np.random.default_rng(seed), MODEL) for seed in range(120)]
    assert {look.hair.style for look in looks} == set(HAIR_STYLES)
    assert {look.backdrop for look in looks} == set(BACKDROPS)
    assert 10 < sum(look.glasses is not None for look in looks) < 70


@pytest.mark.parametrize("kind", BACKDROPS)
def test_backdrops_are_soft_pictures(kind):
    look = dataclasses.replace(Look.sample(np.random.default_rng(3), MODEL), backdrop=kind)
    image = backdrop(look, 48)
    assert image.shape == (48, 48, 3) and image.min() >= 0 and image.max() <= 1
    assert 0.05 < image.mean() < 0.97
    assert np.abs(np.diff(image, axis=1)).max() < 0.45


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_a_scene_is_consistent_for_every_hair_style(style):
    look = Look.sample(np.random.default_rng(4), MODEL)
    look = dataclasses.replace(look, hair=dataclasses.replace(look.hair, style=style))
    scene = build_scene(MODEL, WHERE, look, 32)
    count = len(scene.base)
    assert scene.triangles.max() == count - 1 and len(scene.two_sided) == len(scene.triangles)
    per_vertex = (scene.follow, scene.occlusion, scene.gloss, scene.albedo, scene.incident, scene.loose)
    assert {len(array) for array in per_vertex} == {count}
    assert np.isfinite(scene.base).all() and scene.albedo.min() >= 0 and scene.albedo.max() <= 1


def test_closed_parts_face_outwards():
    scene = build_scene(MODEL, WHERE, Look.sample(np.random.default_rng(5), MODEL), 32)
    (start, stop), _ = scene.eyes
    chosen = (scene.triangles >= start).all(1) & (scene.triangles < stop).all(1)
    outward = scene.base[start:stop] - scene.eye_centre[0]
    normal = vertex_normals(scene.base[start:stop], scene.triangles[chosen] - start)
    assert ((outward * normal).sum(1) > 0).all()


def test_a_look_of_another_model_is_refused():
    look = Look.sample(np.random.default_rng(0), MODEL)
    with pytest.raises(ValueError, match="identity weights"):
        build_scene(MODEL, WHERE, dataclasses.replace(look, identity=np.zeros(7)), 32)
