import json

import numpy as np
import pytest

from livetalk.data.world.build_face_model import MATERIALS, build, pack, read_obj
from livetalk.data.world.channels import CHANNEL, EXPRESSIONS
from livetalk.data.world.face_model import FaceModel, Kind
from livetalk.data.world.mesh import grid_triangles
from livetalk.data.world.simplify import mesh_edges, nearest_seed, simplify


def test_expressions_are_53_distinct_names():
    assert len(EXPRESSIONS) == len(set(EXPRESSIONS)) == 53
    assert (CHANNEL["browDown_L"], CHANNEL["jawOpen"], CHANNEL["noseSneer_R"]) == (0, 26, 52)


def test_the_tiny_head_is_a_whole_model():
    model = FaceModel.tiny()
    count = len(model.neutral)
    assert model.expression.shape == (53, count, 3)
    assert model.identity.shape[1:] == (count, 3)
    assert model.landmarks.shape == (68,) and model.landmarks.max() < count
    assert model.triangles.min() == 0 and model.triangles.max() == count - 1
    assert {Kind.SKIN, Kind.MOUTH, Kind.TEETH} <= set(model.kind)
    upper, lower = model.neutral[model.landmarks[[62, 66]]]
    assert 0 < upper[1] - lower[1] < 0.2


def test_the_tiny_head_opens_its_mouth_and_closes_its_lids():
    model = FaceModel.tiny()

    def gap(name, a, b):
        moved = model.neutral + (model.expression[CHANNEL[name]] if name else 0)
        a, b = moved[model.landmarks[[a, b]]]
        return np.linalg.norm(a - b)

    assert gap("jawOpen", 62, 66) > gap(None, 62, 66) + 2
    assert gap("mouthPucker", 48, 54) < 0.8 * gap(None, 48, 54)
    assert gap("eyeBlink_L", 43, 47) < 0.2 * gap(None, 43, 47)
    assert gap("eyeBlink_L", 37, 41) == gap(None, 37, 41)


def grid(rows, columns):
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([x, -y, 0 * x], -1).reshape(-1, 3).astype(float), grid_triangles(rows, columns, closed=False)


def test_simplified_mesh_is_smaller_keeps_pins_and_its_area():
    positions, triangles = grid(30, 30)
    pinned = np.array([0, 29, 333, 870, 899])
    kept, small = simplify(positions, triangles, np.full(len(positions), 4.0), pinned)
    assert np.isin(pinned, kept).all()
    assert len(small) < len(triangles) / 8
    a, b, c = (positions[kept][small[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)[:, 2] / 2
    assert (area > -1e-9).all()
    assert area.sum() > 0.8 * 29 * 29
    again = simplify(positions, triangles, np.full(len(positions), 4.0), pinned)
    assert all(np.array_equal(x, y) for x, y in zip(again, (kept, small), strict=True))


def test_clusters_do_not_jump_between_surfaces():
    positions, triangles = grid(6, 6)
    both = np.concatenate([positions, positions + (0, 0, 0.01)])
    edges = mesh_edges(np.concatenate([triangles, triangles + len(positions)]))
    label = nearest_seed(both, edges, np.array([0, len(positions) + 20]))
    assert (label[:36] == 0).all() and (label[36:] == 56).all()


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut short"])
def test_load_names_the_file_and_the_remedy(tmp_path, content):
    path = tmp_path / "head.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"head\.npz.*build_face_model"):
        FaceModel.load(path)


def test_load_refuses_other_archives(tmp_path):
    np.savez(tmp_path / "other.npz", N=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="lacks the arrays I, E, F"):
        FaceModel.load(tmp_path / "other.npz")


def write_obj(path, vertices):
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices]
    lines += ["vt 0 0", "usemtl M_Face", "f 1/1/1 2/1/1 3/1/1 4/1/1", "usemtl M_Teeth", "f 2//1 3//1 5//1"]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def clone(tmp_path):
    """A miniature clone: five vertices, a quad of face and a triangle of teeth, two identities."""
    folder = tmp_path / "clone" / "FaceXModel"
    folder.mkdir(parents=True)
    neutral = np.arange(15, dtype=float).reshape(5, 3)
    write_obj(folder / "generic_neutral_mesh.obj", neutral)
    for number, name in enumerate((*EXPRESSIONS, "identity000", "identity001")):
        write_obj(folder / f"{name}.obj", neutral + (0, 0.25 * number, 0))
    (folder / "vertex_indices.json").write_text(json.dumps({"idx_to_landmark_verts": [i % 5 for i in range(68)]}))
    return tmp_path / "clone"


def test_packing_a_clone(clone):
    arrays = pack(clone)
    assert arrays["F"].tolist() == [[0, 1, 2], [0, 2, 3], [1, 2, 4]]
    assert [MATERIALS[m] for m in arrays["M"]] == ["M_Face", "M_Face", "M_Teeth"]
    assert arrays["E"].shape == (53, 5, 3) and arrays["I"].shape == (2, 5, 3)
    np.testing.assert_allclose(arrays["E"][CHANNEL["jawOpen"], :, 1], 0.25 * CHANNEL["jawOpen"])
    np.testing.assert_allclose(arrays["I"][1, :, 1], 0.25 * 54)
    assert arrays["lm"][:6].tolist() == [0, 1, 2, 3, 4, 0]


def test_build_writes_a_file_whose_arrays_load_accepts(clone, tmp_path):
    output = build(clone, tmp_path / "out" / "head.npz")
    assert [path.name for path in output.parent.iterdir()] == ["head.npz"]
    # Five vertices are no head, but the names of arrays and expressions are right.
    with pytest.raises(ValueError, match="5 vertices"):
        FaceModel.load(output)


def test_build_of_another_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="clone of ICT-FaceKit"):
        build(tmp_path, tmp_path / "out" / "head.npz")
    assert not (tmp_path / "out").exists()


def test_a_clone_that_lacks_a_shape_is_named(clone):
    (clone / "FaceXModel" / "jawOpen.obj").unlink()
    with pytest.raises(ValueError, match=r"jawOpen\.obj does not exist"):
        pack(clone)


def test_read_obj_fans_polygons(tmp_path):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 2 0\nusemtl X\nf 1 2 3 4 5\n")
    _, triangles, materials = read_obj(tmp_path / "a.obj")
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]] and materials == ["X"] * 3
