"""Pack the public ICT-FaceKit repository into the one .npz file that FaceModel.load reads.

`scripts/build_face_model.sh CLONE OUTPUT` runs it. The repository (ICT-VGL/ICT-FaceKit, MIT licence) keeps
one OBJ file a shape in FaceXModel/: the neutral head, identity000.obj and on, and one file an expression. All share the
neutral's vertices and faces; a shape's offsets are its vertices minus the neutral's.
"""

import json
import os
from pathlib import Path

import numpy as np

from livetalk.data.world.channels import EXPRESSIONS

NEUTRAL = "generic_neutral_mesh"
# Materials that are kept, in the order of `mats`; their triangles refer to them by index.
MATERIALS = (
    *("M_Face", "M_BackHead", "M_GumsTongue", "M_Teeth", "M_ScleraLeft", "M_IrisLeft", "M_ScleraRight"),
    *("M_IrisRight", "M_LacrimalFluid", "M_EyeBlend", "M_EyeOcclusion", "M_EyeLashes"),
)
LANDMARKS = "idx_to_landmark_verts"


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Vertices [V, 3], triangles [T, 3] (polygons as fans) and the material name of each triangle."""
    vertices, triangles, materials, material = [], [], [], ""
    with path.open() as lines:
        for line in lines:
            head, _, rest = line.partition(" ")
            if head == "v":
                vertices.append(rest.split()[:3])
            elif head == "usemtl":
                material = rest.strip()
            elif head == "f":
                corner = [int(word.split("/")[0]) - 1 for word in rest.split()]
                fan = [(corner[0], corner[i], corner[i + 1]) for i in range(1, len(corner) - 1)]
                triangles += fan
                materials += [material] * len(fan)
    return np.array(vertices, np.float32).reshape(-1, 3), np.array(triangles, np.int32).reshape(-1, 3), materials


def read_landmarks(path: Path) -> np.ndarray:
    """Vertex of each of the 68 landmarks [68] from vertex_indices.json."""
    indices = json.loads(path.read_text())
    if LANDMARKS not in indices:
        raise ValueError(f"{path} has no list {LANDMARKS!r}: use an unchanged clone of ICT-FaceKit")
    landmarks = np.array(indices[LANDMARKS], np.int64)
    if landmarks.shape != (68,):
        raise ValueError(
            f"{path} lists {len(landmarks)} landmarks instead of 68: use an unchanged clone of ICT-FaceKit"
        )
    return landmarks


def _offsets(folder: Path, name: str, neutral: np.ndarray) -> np.ndarray:
    path = folder / f"{name}.obj"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: use a complete clone of ICT-FaceKit")
    vertices, _, _ = read_obj(path)
    if vertices.shape != neutral.shape:
        raise ValueError(
            f"{path} has {len(vertices)} vertices, the neutral head {len(neutral)}: use an unchanged clone"
        )
    return (vertices - neutral).astype(np.float16)


def pack(clone: Path) -> dict[str, np.ndarray]:
    """The arrays of the face model (see FaceModel.load) from a clone of ICT-FaceKit.

    Raises ValueError when a file is missing or of another layout.
    """
    folder = clone / "FaceXModel"
    start = folder / f"{NEUTRAL}.obj"
    if not start.is_file():
        raise ValueError(f"{start} does not exist: give the folder of a clone of ICT-FaceKit")
    neutral, triangles, materials = read_obj(start)
    unknown = sorted(set(materials) - set(MATERIALS))
    if unknown:
        raise ValueError(
            f"{start} uses the unknown materials {', '.join(unknown)}: use an unchanged clone of ICT-FaceKit"
        )
    identities = sorted(path.stem for path in folder.glob("identity*.obj"))
    if not identities:
        raise ValueError(f"{folder} holds no identity*.obj: use a complete clone of ICT-FaceKit")
    return {
        "N": neutral,
        "E": np.stack([_offsets(folder, name, neutral) for name in EXPRESSIONS]),
        "I": np.stack([_offsets(folder, name, neutral) for name in identities]),
        "F": triangles,
        "M": np.array([MATERIALS.index(name) for name in materials], np.int8),
        "lm": read_landmarks(folder / "vertex_indices.json"),
        "mats": np.array(MATERIALS),
        "ex": np.array(EXPRESSIONS),
    }


def build(clone: Path, output: Path) -> Path:
    """Pack `clone` into the file `output`, which appears only when it is whole. Raises ValueError as pack does."""
    arrays = pack(clone)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial.npz")
    np.savez_compressed(partial, **arrays)
    os.replace(partial, output)
    return output
