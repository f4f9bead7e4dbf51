"""Looks and motions to frames and to exact geometric tracks."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from livetalk.data.world.appearance import Look
from livetalk.data.world.channels import CHANNEL, EXPRESSIONS
from livetalk.data.world.face_model import FaceModel
from livetalk.data.world.paint import FaceMap
from livetalk.data.world.raster import shade, snap, visible
from livetalk.data.world.scene import Scene, build_scene, identity_shape

NECK = (0.0, -6.0, -1.5)  # the head turns about the top of the spine
NEAR = 18.0  # nothing comes nearer to the camera
BODY_SHARE = 0.12  # of the head's shift, and of its turn, that the body takes
LID_TURN = 30.0  # degrees of gaze at which the eyeLook shapes of the lids are fully on
GAMMA = 2.2

SCENE_BUILDERS = 4


class Renderer:
    """Renders clips of `size` x `size` pixels with the face model, on any torch device.

    `frames_at_once` bounds memory: frames of a clip that are rendered together (default: 8 on a CPU, 128 elsewhere).
    Clips never share a computation, so the pixels of one do not depend on what else is in a batch.
    """

    def __init__(
        self,
        model: FaceModel,
        size: int = 128,
        device: str | torch.device = "cpu",
        supersample: int = 2,
        frames_at_once: int | None = None,
    ):
        if size < 16 or supersample < 1:
            raise ValueError(
                f"size {size}, supersample {supersample}: use a size of 16 or more and a factor of 1 or more"
            )
        self.model = model
        self.size = size
        self.supersample = supersample
        self.device = torch.device(device)
        self.frames_at_once = frames_at_once or (8 if self.device.type == "cpu" else 128)
        self._face_map = FaceMap.of(model)
        self._expression = torch.from_numpy(model.expression.astype(np.float64)).to(self.device)

    @torch.no_grad()
    def render(self, looks: list[Look], motions: list) -> Tensor:
        """Frames of each look moving as each motion says: torch.uint8 [B, T, H, W, 3] on the renderer's device.

        All motions of a call have the same number of frames T; B may be any number. Raises ValueError when the lists
        or the motions do not fit together.
        """
        frames = _checked(looks, motions)
        shape = (len(looks), frames, self.size, self.size, 3)
        video = torch.empty(shape, dtype=torch.uint8, device=self.device)
        # Threads build the next clips' scenes while the device renders this one: on a GPU they are what takes the time.
        with ThreadPoolExecutor(min(SCENE_BUILDERS, os.cpu_count() or 1)) as builder:
            scenes = builder.map(lambda look: build_scene(self.model, self._face_map, look, self.size), looks)
            for row, (scene, look, motion) in enumerate(zip(scenes, looks, motions, strict=True)):
                clip = _Clip(self, scene, look, motion)
                for start in range(0, frames, self.frames_at_once):
                    video[row, start : start + self.frames_at_once] = clip.pixels(start, start + self.frames_at_once)
        return video

    def tracks(self, looks: list[Look], motions: list) -> dict[str, np.ndarray]:
        """Geometric truth in the head's own frame: mouth_open (upright gap of landmarks 62 and 66), mouth_width
        (48 and 54) and eye_open (mean lid gap), each over the identity's face length (landmarks 27 to 8): float32
        [B, T]."""
        _checked(looks, motions)
        rows = [self._tracks(look, motion) for look, motion in zip(looks, motions, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _tracks(self, look: Look, motion) -> dict[str, np.ndarray]:
        marks = self.model.landmarks
        neutral = identity_shape(self.model, look)[marks]
        moved = neutral + np.tensordot(with_gaze(motion), self.model.expression[:, marks].astype(np.float64), 1)
        face = np.linalg.norm(neutral[27] - neutral[8])

        def gap(a: list[int], b: list[int]) -> np.ndarray:
            return (np.linalg.norm(moved[:, a] - moved[:, b], axis=-1).mean(1) / face).astype(np.float32)

        return {
            # Upright, because a lip that is tucked behind the other is closed however far it is moved in depth.
            "mouth_open": (np.maximum(moved[:, 62, 1] - moved[:, 66, 1], 0) / face).astype(np.float32),
            "mouth_width": gap([48], [54]),
            "eye_open": gap([37, 38, 43, 44], [41, 40, 47, 46]),
        }


def _checked(looks: list[Look], motions: list) -> int:
    if not looks or len(looks) != len(motions):
        raise ValueError(f"{len(looks)} looks and {len(motions)} motions: give one motion a look, and at least one")
    lengths = {len(motion.expression) for motion in motions}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"motions of {sorted(lengths)} frames in one call: give motions of equal length, 1 or more")
    for motion in motions:
        if motion.expression.shape[1:] != (len(EXPRESSIONS),):
            raise ValueError(f"expression has shape {motion.expression.shape}: it needs {len(EXPRESSIONS)} columns")
    return lengths.pop()


def with_gaze(motion) -> np.ndarray:
    """Expression weights [T, 53] in float64, with lids that follow the gaze."""
    weights = motion.expression.astype(np.float64).copy()
    pitch, yaw = motion.gaze.astype(np.float64).T / LID_TURN
    toward = {
        "eyeLookDown_L": pitch,
        "eyeLookDown_R": pitch,
        "eyeLookUp_L": -pitch,
        "eyeLookUp_R": -pitch,
        "eyeLookOut_L": yaw,
        "eyeLookIn_R": yaw,
        "eyeLookIn_L": -yaw,
        "eyeLookOut_R": -yaw,
    }
    for name, turn in toward.items():
        column = CHANNEL[name]
        weights[:, column] = np.maximum(weights[:, column], np.clip(turn, 0, 1))
    return weights


def rotation(pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Rotations [T, 3, 3] from degrees [T]: pitch + nods down, yaw + turns and roll + tilts to the speaker's left."""
    (cp, sp), (cy, sy), (cr, sr) = ((np.cos(a), np.sin(a)) for a in np.deg2rad(np.stack([pitch, yaw, -roll])))
    zero, one = np.zeros_like(cp), np.ones_like(cp)
    about_x = np.array([[one, zero, zero], [zero, cp, -sp], [zero, sp, cp]])
    about_y = np.array([[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]])
    about_z = np.array([[cr, -sr, zero], [sr, cr, zero], [zero, zero, one]])
    return np.einsum("abt,bct,cdt->tad", about_z, about_y, about_x)


class _Clip:
    """One look and motion on the device. Positions are float64 until they are snapped to the screen's grid, so that
    the order of a sum, which chunking may change, does not show."""

    def __init__(self, renderer: Renderer, scene: Scene, look: Look, motion):
        device = renderer.device

        def tensor(array, dtype=torch.float64) -> Tensor:
            return torch.as_tensor(np.array(array)).to(device, dtype)

        self.size, self.samples = renderer.size, renderer.size * renderer.supersample
        self.scene, self.camera = scene, look.camera
        self.expression = rearrange(renderer._expression[:, tensor(scene.source, torch.int64)], "e v c -> e (v c)")
        self.base, self.follow = tensor(scene.base), tensor(scene.follow)[:, None]
        self.triangles = tensor(scene.triangles, torch.int64)
        self.incident = tensor(scene.incident, torch.int64)
        self.two_sided, self.loose = tensor(scene.two_sided, torch.bool), tensor(scene.loose, torch.bool)
        self.albedo, self.background = tensor(scene.albedo, torch.float32), tensor(scene.background, torch.float32)
        self.occlusion = tensor(scene.occlusion, torch.float32)[:, None]
        self.gloss = tensor(scene.gloss, torch.float32)[:, None]
        self.weights = tensor(with_gaze(motion))
        habit = np.array(look.camera.pose)[:, None]
        turn = motion.head_rotation.astype(np.float64).T
        self.head = tensor(rotation(*(turn + habit)))
        self.body = tensor(rotation(*(turn * BODY_SHARE * np.array([[0.3], [1], [0.5]]))))
        self.shift = tensor(motion.head_shift)
        self.gaze = tensor(rotation(*motion.gaze.astype(np.float64).T, np.zeros(len(motion.gaze))))
        light = look.light
        self.key_direction = tensor(light.key_direction, torch.float32)
        self.lights = [tensor(c, torch.float32) for c in (light.key, light.fill, light.ambient, light.ground)]
        self.neck, self.eye_centre = tensor(NECK), tensor(scene.eye_centre)

    def pixels(self, start: int, stop: int) -> Tensor:
        """Frames start .. stop of the clip: uint8 [N, H, W, 3]."""
        world = self._posed(slice(start, stop))
        points = self._projected(world)
        colours = self._lit(world)
        index = visible(points, self.triangles, self.two_sided, self.samples)
        image = shade(index, points, colours, self.triangles, self.background)
        return (image * 255 + 0.5).to(torch.uint8)

    def _posed(self, frames: slice) -> Tensor:
        """World positions [N, V, 3]."""
        weights = self.weights[frames]
        moved = rearrange(weights @ self.expression, "n (v c) -> n v c", c=3)
        local = self.base.expand(len(weights), -1, -1).clone()
        local[:, : moved.shape[1]] += moved
        for (first, last), centre in zip(self.scene.eyes, self.eye_centre, strict=True):
            ball = self.base[first:last] - centre
            local[:, first:last] = ball @ self.gaze[frames].transpose(1, 2) + centre
        shift = self.shift[frames][:, None]
        local = local - self.neck
        head = local @ self.head[frames].transpose(1, 2) + shift
        body = local @ self.body[frames].transpose(1, 2) + shift * BODY_SHARE
        return body + (head - body) * self.follow + self.neck

    def _projected(self, world: Tensor) -> Tensor:
        """Screen points [N, V, 3]: x and y in samples on the grid, and nearness."""
        camera = self.camera
        depth = (camera.distance - world[..., 2]).clamp_min(NEAR)
        scale = camera.distance / depth * (self.samples / camera.scale)
        x = (world[..., 0] + camera.shift[0]) * scale + self.samples / 2
        y = self.samples / 2 - (world[..., 1] + camera.shift[1]) * scale
        screen = snap(torch.stack([x, y], -1))
        return torch.cat([screen, (NEAR / depth)[..., None]], -1).to(torch.float32)

    def _lit(self, world: Tensor) -> Tensor:
        """Display colours [N, V, 3] in [0, 1] of the vertices."""
        corner = world.to(torch.float32)[:, self.triangles]
        face = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
        face = torch.cat([face, torch.zeros_like(face[:, :1])], 1)
        normal = sum(face[:, column] for column in self.incident.T)
        normal = torch.nn.functional.normalize(normal, dim=-1, eps=1e-9)
        away = self.loose[:, None] & (normal[..., 2:] < 0)
        normal = torch.where(away, -normal, normal)
        key, fill, ambient, ground = self.lights
        toward = normal @ self.key_direction
        # Wrapped a little: skin and cloth scatter light past the terminator.
        direct = ((toward + 0.25) / 1.25).clamp_min(0)[..., None]
        front = normal[..., 2:].clamp_min(0)
        sky = 0.5 + 0.5 * normal[..., 1:2]
        light = key * direct + fill * front + ground + (ambient - ground) * sky
        half = self.key_direction + self.key_direction.new_tensor([0.0, 0.0, 1.0])
        shine = (normal @ (half / half.norm())).clamp_min(0)[..., None] ** 24
        linear = (self.albedo * light + self.gloss * shine * key) * self.occlusion
        return linear.clamp(0, 1) ** (1 / GAMMA)
