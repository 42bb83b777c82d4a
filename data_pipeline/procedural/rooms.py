"""Small rooms drawn by code: posed scenes for demos and tests, no download.

A scene is a square room with one to three spheres or boxes on its floor, seen from an arc of
cameras. NumPy draws the scene's parameters from (seed, split, index); JAX casts the rays, many
scenes at once. Nothing is read from disk and nothing depends on the order of access.

Axis legend: B scene  V view  Y X pixels  R ray of a view (2x2 per pixel)  O object  M surface.
World: right-handed, z up, floor at z = 0, unit one metre. Cameras: OpenCV camera-to-world
(x right, y down, z forward), pixel centres at +0.5, intrinsics in pixels.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.configuration import Settings, setting
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.media.progress import counted

SPLITS = {"train": 0, "heldout": 1, "example": 2}
SOLID, CHECKER, STRIPES, NOISE = range(4)

_SAMPLES = 2  # rays per pixel along each image axis
_RAYS_PER_CALL = 300_000  # large enough to keep the cores busy, small enough for their caches


@dataclasses.dataclass(frozen=True)
class SceneRecipe(Settings):
    """What the rooms look like. Lengths in metres, angles in degrees, pairs are (low, high).

    Attributes:
      size: image height and width in pixels.
      views: cameras of a scene, evenly spaced on an arc and stored in order along it.
      arc: angle that the cameras span.
      camera_radius, camera_height: of the cameras, from the middle of the room and from its floor.
      focal: focal length over image height.
      room: half of its side.
      objects: how many.
      object_radius, object_spread: their size, and how far from the middle they stand.
    """

    group = "recipe"
    size: int = setting(48, at_least=8)
    views: int = setting(8, at_least=1)
    arc: tuple[float, float] = (60.0, 100.0)
    camera_radius: tuple[float, float] = setting((2.15, 2.65), above=0)
    camera_height: tuple[float, float] = (0.80, 1.50)
    focal: float = 0.95
    room: float = 3.2
    objects: tuple[int, int] = setting((1, 3), at_least=1)
    object_radius: tuple[float, float] = (0.32, 0.55)
    object_spread: float = 1.05

    def __post_init__(self):
        super().__post_init__()
        for name in ("objects", "camera_radius"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(f"recipe.{name}={(low, high)}: must be (low, high)")
        if self.camera_radius[1] >= self.room:
            raise InputError(
                f"recipe.camera_radius={self.camera_radius}: must lie inside room={self.room}"
            )


class ProceduralScenes:
    """Random-access source of rendered scenes.

    Args:
      count: number of scenes.
      seed: 0 <= seed < 2**32. Scene i depends on (recipe, seed, split, i) only.
      split: "train", "heldout" or "example". The split is part of every scene's seed sequence, so
        that no two share a scene, whatever their seeds and sizes.
      recipe: what the rooms look like.
      progress: say on standard error how far it is.
      depth: also draw depth, which takes four thirds of the memory of the images more.

    All images are rendered here, once, into one uint8 array (55 kB a scene at 48 px x 8 views).
    `source[i]` is {"image" uint8 [V, Y, X, 3], "c2w" float32 [V, 4, 4] (world space, metres),
    "fxfycxcy" float32 [V, 4] (pixels), "scene" str} and, if asked for, "depth" float32 [V, Y, X]
    (see `render_depth`). The arrays are read-only views.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        split: str = "train",
        recipe: SceneRecipe | None = None,
        progress: bool = False,
        depth: bool = False,
    ):
        if not 1 <= count < 2**32:
            raise InputError(f"count={count}: must be at least 1 and below 2**32")
        self.recipe = recipe or SceneRecipe()
        self._name = f"{split}-{seed}"
        self._arrays = _render_all(self.recipe, count, seed, split, progress, depth)
        for array in self._arrays.values():
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self._arrays["image"])

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index = int(index) % len(self)
        arrays = {name: array[index] for name, array in self._arrays.items()}
        return {**arrays, "scene": f"{self._name}-{index:06d}"}

    def __repr__(self) -> str:
        return f"ProceduralScenes({self._name}, {len(self)} scenes, {self.recipe})"


def scene_parameters(recipe: SceneRecipe, *, seed: int, split: str, index: int) -> dict:
    """Draws one scene: a dict of NumPy arrays of fixed shape, O objects and M = O + 2 surfaces.

    Cameras: c2w [V, 4, 4], fxfycxcy [V, 4]. Surfaces (objects, then floor, then walls): centre
    [M, 3], turn [M, 2] (cosine and sine of the angle about z), half [M, 3] (half extents; a sphere
    has its radius three times, an absent object zero), box [M], colours [M, 2, 3], pattern [M],
    cell [M], offset [M, 3], axis [M, 3] (direction across the stripes). The room: waves [K, 4] of
    the noise (frequency and phase), light [3] (unit, towards the light), ambient [].
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r}: must be one of {', '.join(map(repr, SPLITS))}")
    if not 0 <= seed < 2**32:
        # A larger seed would spill into the words that hold the split and the index.
        raise InputError(f"seed={seed}: must be at least 0 and below 2**32")
    rng = np.random.default_rng([seed, SPLITS[split], index])
    most = recipe.objects[1]
    rows = most + 2
    scene = {
        "centre": np.zeros((rows, 3)),
        "half": np.zeros((rows, 3)),
        "box": rng.integers(2, size=rows).astype(np.float64),
        "colours": np.empty((rows, 2, 3)),
        "pattern": np.full(rows, SOLID),
        "cell": rng.uniform(0.3, 0.45, rows),
        "offset": rng.uniform(0.1, 0.9, (rows, 3)),
        "axis": _unit(rng.normal(size=(rows, 3))),
    }
    angle = rng.uniform(0, 2 * np.pi, rows)
    scene["turn"] = np.stack([np.cos(angle), np.sin(angle)], -1)

    count = rng.integers(recipe.objects[0], recipe.objects[1] + 1)
    radius = rng.uniform(*recipe.object_radius, count)
    is_box = scene["box"][:count, None] > 0
    sides = rng.uniform((0.7, 0.7, 0.6), (0.9, 0.9, 1.1), (count, 3))
    half = radius[:, None] * np.where(is_box, sides, 1.0)
    reach = np.where(is_box[:, 0], np.hypot(half[:, 0], half[:, 1]), radius)
    for i, spot in enumerate(_spots(rng, reach, recipe.object_spread)):
        scene["half"][i] = half[i]
        scene["centre"][i] = *spot, half[i, 2]
    for i in range(most):
        hue = rng.uniform()
        scene["colours"][i, 0] = _colour(rng, hue, (0.55, 0.9), (0.65, 0.95))
        scene["colours"][i, 1] = _colour(rng, hue + rng.uniform(0.2, 0.8), (0.1, 0.6), (0.6, 1.0))
        scene["pattern"][i] = rng.choice([SOLID, CHECKER, STRIPES], p=[0.5, 0.25, 0.25])

    floor, walls = most, most + 1
    hue = rng.uniform()
    scene["colours"][floor, 0] = _colour(rng, hue, (0.25, 0.6), (0.6, 0.9))
    scene["colours"][floor, 1] = _colour(rng, hue + rng.normal(0, 0.1), (0.2, 0.6), (0.3, 0.55))
    scene["pattern"][floor] = rng.choice([CHECKER, NOISE], p=[1 / 3, 2 / 3])
    scene["cell"][floor] = rng.uniform(1.0, 1.4)
    hue = rng.uniform()
    scene["colours"][walls, 0] = _colour(rng, hue, (0.1, 0.35), (0.8, 1.0))
    scene["colours"][walls, 1] = scene["colours"][walls, 0] * rng.uniform(0.75, 0.9, 3)
    scene["pattern"][walls] = rng.choice([SOLID, NOISE])

    direction, phase = _unit(rng.normal(size=(4, 3))), rng.uniform(0, 2 * np.pi, (4, 1))
    scene["waves"] = np.hstack([direction * 2 * np.pi / rng.uniform(1.2, 2.8, (4, 1)), phase])
    height, bearing = rng.uniform(0.6, 1.3), rng.uniform(0, 2 * np.pi)
    scene["light"] = _unit(np.array([np.cos(bearing), np.sin(bearing), height]))
    scene["ambient"] = np.asarray(rng.uniform(0.5, 0.65))

    scene["c2w"] = _arc(rng, recipe)
    scene["fxfycxcy"] = np.tile([recipe.focal, recipe.focal, 0.5, 0.5], (recipe.views, 1))
    scene["fxfycxcy"] *= recipe.size
    return {name: value.astype(np.float32) for name, value in scene.items()}


def _spots(rng: np.random.Generator, radius: np.ndarray, spread: float) -> list[np.ndarray]:
    """Centres [2] of circles in a disc that do not overlap; fewer than radii if it is full."""
    spots = []
    for own in radius:
        distance, angle = spread * np.sqrt(rng.uniform(size=64)), rng.uniform(0, 2 * np.pi, 64)
        tries = np.stack([distance * np.cos(angle), distance * np.sin(angle)], -1)
        free = np.ones(64, bool)
        for other, spot in zip(radius, spots, strict=False):
            free &= np.linalg.norm(tries - spot, axis=-1) > own + other
        if not free.any():
            break
        spots.append(tries[np.argmax(free)])
    return spots


def _arc(rng: np.random.Generator, recipe: SceneRecipe) -> np.ndarray:
    """Camera-to-world poses [V, 4, 4], evenly along an arc about the room's centre, in order."""
    sweep = np.deg2rad(rng.uniform(*recipe.arc)) * rng.choice([-1, 1])
    angle = rng.uniform(0, 2 * np.pi) + sweep * np.linspace(0, 1, recipe.views)
    radius, height = rng.uniform(*recipe.camera_radius), rng.uniform(*recipe.camera_height)
    centre = np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), np.full_like(angle, height)], -1
    )
    forward = _unit(np.array([0.0, 0.0, 0.35]) - centre)
    right = _unit(np.cross(forward, [0.0, 0.0, 1.0]))
    c2w = np.tile(np.eye(4), (recipe.views, 1, 1))
    c2w[:, :3] = np.stack([right, np.cross(forward, right), forward, centre], -1)
    return c2w


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _colour(rng: np.random.Generator, hue: float, saturation: tuple, value: tuple) -> tuple:
    return colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value))


def _render_all(
    recipe: SceneRecipe, count: int, seed: int, split: str, progress: bool, depth: bool
) -> dict[str, np.ndarray]:
    """Images, c2w, fxfycxcy and, if asked for, depth of all scenes, see `ProceduralScenes`."""
    size, views = recipe.size, recipe.views
    chunk = max(1, _RAYS_PER_CALL // (views * (size * _SAMPLES) ** 2))
    arrays = {
        "image": np.empty((count, views, size, size, 3), np.uint8),
        "c2w": np.empty((count, views, 4, 4), np.float32),
        "fxfycxcy": np.empty((count, views, 4), np.float32),
    }
    if depth:
        arrays["depth"] = np.empty((count, views, size, size), np.float32)
    starts = range(0, count, chunk)
    what = f"drawing {count} {split} scenes"
    for start in counted(starts, what, len(starts), "chunks", shown=progress):
        stop = min(start + chunk, count)
        # The last chunk is filled up with its own first scene: one shape, one compilation.
        indices = [*range(start, stop), *[start] * (chunk - (stop - start))]
        scenes = [scene_parameters(recipe, seed=seed, split=split, index=i) for i in indices]
        batch = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
        drawn = {"image": render_scenes(batch, recipe)}
        if depth:
            drawn["depth"] = render_depth(batch, recipe)
        for name, array in arrays.items():
            array[start:stop] = np.asarray(drawn.get(name, batch.get(name)))[: stop - start]
    return arrays


def _render_scene(scene: dict, size: int, room: float) -> jax.Array:
    """One scene's images, uint8 [V, Y, X, 3]."""
    _, colour = _cast(scene, size, room, _SAMPLES)
    pixels = [c.reshape(-1, size, _SAMPLES, size, _SAMPLES).mean((2, 4)) for c in colour]
    return jnp.round(jnp.clip(jnp.stack(pixels, -1), 0, 1) * 255).astype(jnp.uint8)


def _cast(scene: dict, size: int, room: float, samples: int) -> tuple[jax.Array, tuple]:
    """Depth [V, R] and colour of what `samples`² rays of every pixel meet.

    Vectors are tuples (x, y, z) of [V, R] arrays, because XLA's CPU code for stacked components is
    several times slower. A ray's direction is 1 along the viewing direction, so how many of its
    lengths it goes is the depth.
    """
    at = (jnp.arange(size * samples) + 0.5) / samples
    y, x = (grid.reshape(-1) for grid in jnp.meshgrid(at, at, indexing="ij"))
    fx, fy, cx, cy = scene["fxfycxcy"].T[:, :, None]
    pixel = jnp.stack([(x - cx) / fx, (y - cy) / fy, jnp.ones((fx.shape[0], x.size))])
    direction = tuple(jnp.einsum("Vij,jVR->iVR", scene["c2w"][:, :3, :3], pixel))
    origin = tuple(scene["c2w"][:, :3, 3].T[:, :, None])  # three [V, 1]

    names = ("centre", "turn", "half", "box", "colours", "pattern", "cell", "offset", "axis")
    rows = [{name: scene[name][row] for name in names} for row in (-2, -1)]
    objects = {name: scene[name][:-2] for name in names}
    drawn = _draw_room(scene, *rows, objects, origin, direction, room)
    # A scan, not a loop: unrolled, XLA computes the same hits again for every use of them.
    drawn, _ = jax.lax.scan(
        lambda drawn, row: (_draw_object(scene, row, origin, direction, drawn), None),
        drawn,
        objects,
    )
    return drawn


def _draw_room(scene, floor, walls, objects, origin, direction, room):
    """Distance [V, R] (in lengths of the ray's direction) and colour without the objects."""
    to_floor = jnp.where(direction[2] < 0, -origin[2] / direction[2], jnp.inf)
    sides = [jnp.where(d < 0, -1.0, 1.0) for d in direction[:2]]
    to_walls = [
        (room - side * o) / jnp.abs(d) for side, o, d in zip(sides, origin, direction, strict=False)
    ]
    wall_is_x = to_walls[0] < to_walls[1]
    to_wall = jnp.minimum(*to_walls)
    is_floor = to_floor < to_wall
    distance = jnp.minimum(to_floor, to_wall)
    point = _along(origin, distance, direction)

    noise = sum(jnp.cos(_dot(wave[:3], point) + wave[3]) for wave in scene["waves"])
    noise = jnp.clip(0.5 + 0.8 / len(scene["waves"]) * noise, 0, 1)
    cells = [jnp.floor(p / floor["cell"] + floor["offset"][0]) for p in _turn(point, floor)[:2]]
    mix = jnp.where(
        is_floor,
        jnp.where(floor["pattern"] == CHECKER, (cells[0] + cells[1]) % 2, noise),
        jnp.where(walls["pattern"] == NOISE, noise, 0.0),
    )
    # A soft dark spot on the floor under each object.
    spots = 1.0
    for centre, half in zip(objects["centre"], objects["half"], strict=True):
        away = (point[0] - centre[0]) ** 2 + (point[1] - centre[1]) ** 2
        width = 1.25 * jnp.maximum(jnp.maximum(half[0], half[1]), 1e-3)
        spots *= 1 - 0.55 * (half[2] > 0) * jnp.exp(-away / width**2)

    light = scene["light"]
    lambert = -jnp.where(wall_is_x, sides[0] * light[0], sides[1] * light[1])
    bright = jnp.where(is_floor, _light(scene, light[2]) * spots, _light(scene, lambert))
    colour = tuple(
        bright * jnp.where(is_floor, f0 + (f1 - f0) * mix, w0 + (w1 - w0) * mix)
        for f0, f1, w0, w1 in zip(*floor["colours"], *walls["colours"], strict=True)
    )
    return distance, colour


def _draw_object(scene, row, origin, direction, drawn):
    """Draws one sphere or box over (distance, colour) where it is nearer."""
    distance, colour = drawn
    here = _turn([o - c for o, c in zip(origin, row["centre"], strict=True)], row)
    along = _turn(direction, row)
    half, is_box, radius = row["half"], row["box"] > 0, row["half"][2]

    square, half_b = _dot(along, along), _dot(here, along)
    root = half_b**2 - square * (_dot(here, here) - radius**2)
    sphere = jnp.where(root > 0, (-half_b - jnp.sqrt(jnp.maximum(root, 0))) / square, jnp.inf)
    inverse = [1 / a for a in along]
    middle = [-o * i for o, i in zip(here, inverse, strict=True)]
    reach = [h * jnp.abs(i) for h, i in zip(half, inverse, strict=True)]
    enter = functools.reduce(jnp.maximum, [m - r for m, r in zip(middle, reach, strict=True)])
    leave = functools.reduce(jnp.minimum, [m + r for m, r in zip(middle, reach, strict=True)])
    hit = jnp.where(is_box, jnp.where(enter < leave, enter, jnp.inf), sphere)
    closer = (hit > 0) & (hit < distance) & (radius > 0)
    hit = jnp.where(closer, hit, 0.0)

    local = _along(here, hit, along)
    # The normal: the face of the box the point is nearest to, or the direction from the centre.
    scaled = [p / jnp.maximum(h, 1e-3) for p, h in zip(local, half, strict=True)]
    furthest = functools.reduce(jnp.maximum, [jnp.abs(s) for s in scaled])
    normal = [jnp.where(is_box, jnp.sign(s) * (jnp.abs(s) >= furthest), s) for s in scaled]
    bright = _light(scene, _dot(_turn(scene["light"], row), normal))

    cells = [jnp.floor(p / row["cell"] + o) for p, o in zip(local, row["offset"], strict=True)]
    band = jnp.floor(1.6 * _dot(row["axis"], local) / row["cell"] + row["offset"][0])
    mix = jnp.where(row["pattern"] == CHECKER, sum(cells), band) % 2
    mix = jnp.where(row["pattern"] == SOLID, 0.0, mix)
    colour = tuple(
        jnp.where(closer, bright * (c0 + (c1 - c0) * mix), behind)
        for c0, c1, behind in zip(*row["colours"], colour, strict=True)
    )
    return jnp.where(closer, hit, distance), colour


def _along(origin, distance, direction):
    return tuple(o + distance * d for o, d in zip(origin, direction, strict=True))


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _turn(vector, row):
    """A world vector in the axes of the surface, which are turned about z."""
    (cosine, sine), (x, y, z) = row["turn"], vector
    return cosine * x + sine * y, cosine * y - sine * x, z


def _light(scene, lambert):
    return scene["ambient"] + (1 - scene["ambient"]) * jnp.maximum(lambert, 0)


def render_scenes(scenes: dict, recipe: SceneRecipe) -> jax.Array:
    """Images uint8 [B, V, Y, X, 3], on the device, of scenes as `scene_parameters` draws them.

    Args:
      scenes: arrays of `scene_parameters` with a leading axis B.
      recipe: they were drawn by.
    """
    return _render(scenes, recipe.size, recipe.room)


def render_depth(scenes: dict, recipe: SceneRecipe) -> jax.Array:
    """Depth float32 [B, V, Y, X] along the viewing direction at pixel centres, metres; as above."""
    return _depth(scenes, recipe.size, recipe.room)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _depth(scenes: dict, size: int, room: float) -> jax.Array:
    depth = jax.vmap(lambda scene: _cast(scene, size, room, 1)[0])(scenes)
    return depth.reshape(*depth.shape[:2], size, size)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _render(scenes: dict, size: int, room: float) -> jax.Array:
    return jax.vmap(lambda scene: _render_scene(scene, size, room))(scenes)
