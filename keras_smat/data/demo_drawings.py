"""Shapes, doodles, critters, scenes and sketches of the demo domains."""

import numpy as np
from PIL import Image
from PIL import ImageDraw

from keras_smat.data.demo_textures import background
from keras_smat.data.demo_textures import color
from keras_smat.data.demo_textures import color_pair
from keras_smat.data.demo_textures import finish
from keras_smat.data.demo_textures import smooth_noise

STYLES = ("solid", "outline", "striped", "dotted", "nested", "halved")


class Frame:
    """Places a drawing made in [-1, 1] x [-1, 1] on the image.

    It draws at twice the size; `reduced` and `cover` halve it again.
    """

    def __init__(self, size, angle, scales, center):
        cos, sin = np.cos(angle), np.sin(angle)
        self.size = size
        self.matrix = np.array([[cos, -sin], [sin, cos]]) * scales
        self.center = np.asarray(center)

    def __call__(self, points):
        points = np.asarray(points) @ self.matrix.T + self.center
        return [tuple(point) for point in ((points + 1) * self.size).tolist()]

    def width(self, share):
        return max(2, round(2 * self.size * share))

    def grid(self):
        """Coordinates (size, size) each of the pixels in the drawing."""
        y, x = (np.mgrid[: self.size, : self.size] + 0.5) * (2 / self.size) - 1
        inverse = np.linalg.inv(self.matrix)
        x, y = x - self.center[0], y - self.center[1]
        return (row[0] * x + row[1] * y for row in inverse)

    def cover(self, draw_on):
        """Share (size, size, 1) of every pixel that a drawing covers."""
        canvas = Image.new("L", (2 * self.size, 2 * self.size))
        draw_on(ImageDraw.Draw(canvas))
        return np.asarray(canvas.reduce(2), "f4")[..., None] / 255


def random_frame(rng, size, turn=np.pi, scale=(0.5, 0.85), shift=0.25):
    """A `Frame` of random angle, scale, aspect ratio and position."""
    scales = rng.uniform(*scale) * np.array([1.0, rng.uniform(0.85, 1.15)])
    shift = shift * (1 - scales.min()) / (1 - scale[0])
    angle = rng.uniform(-turn, turn)
    return Frame(size, angle, scales, rng.uniform(-shift, shift, 2))


def ellipse(x, y, rx, ry, angle=0.0, start=0.0, stop=2 * np.pi):
    """Points (24, 2) on an ellipse or an arc of it."""
    t = np.linspace(start, stop, 24)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + cos * a - sin * b, y + sin * a + cos * b], 1)


def _spokes(*radii, count):
    """Outline whose radii repeat `count` times around."""
    angle = np.arange(count * len(radii)) * (2 * np.pi / count / len(radii))
    radius = np.tile(radii, count)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


def outlines():
    """Dict from 16 names of shapes to points (n, 2) around the origin."""
    t = np.linspace(0, 2 * np.pi, 40)
    x = 16 * np.sin(t) ** 3
    y = 5 * np.cos(2 * t) + 2 * np.cos(3 * t) - 13 * np.cos(t)
    heart = np.stack([x, y], 1) / 16
    flower = 0.72 + 0.28 * np.cos(5 * t)
    drop = np.stack([0.6 * np.sin(t) * np.sin(t / 2), -np.cos(t)], 1)
    moon = np.concatenate(
        [
            ellipse(0, 0, 1, 1, 0, 0.9, 5.4),
            ellipse(0.45, 0, 0.75, 0.8, 0, 5.2, 1.1),
        ]
    )
    arm = [(0.3, 1), (0.3, 0.3), (1, 0.3)]
    cross = [(x * a, y * b) for a, b, step in _CORNERS for x, y in arm[::step]]
    arrow = [
        (-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0),
        (0.1, 0.75), (0.1, 0.25), (-1, 0.25),
    ]  # fmt: skip
    return {
        "triangle": _spokes(1.0, count=3),
        "square": _spokes(1.0, count=4),
        "pentagon": _spokes(1.0, count=5),
        "octagon": _spokes(0.95, count=8),
        "star 4": _spokes(1.0, 0.38, count=4),
        "star 5": _spokes(1.0, 0.45, count=5),
        "star 8": _spokes(1.0, 0.55, count=8),
        "gear": _spokes(1.0, 1.0, 0.72, 0.72, count=7),
        "ellipse": ellipse(0, 0, 1, 0.5),
        "half disc": ellipse(0, -0.4, 1, 1, 0, 0, np.pi),
        "flower": np.stack([flower * np.cos(t), flower * np.sin(t)], 1),
        "heart": heart,
        "drop": drop,
        "moon": moon,
        "cross": np.array(cross),
        "arrow": np.array(arrow),
    }


# Signs of the four quadrants, and the direction of the arm's points there.
_CORNERS = ((1, 1, 1), (1, -1, -1), (-1, -1, 1), (-1, 1, -1))


def draw_shape(rng, image, frame, points, style, inks):
    """Paints one shape on an image (size, size, 3) and returns it."""
    first, second = inks
    path = frame(points)

    def outline(draw):
        width = frame.width(rng.uniform(0.035, 0.06))
        draw.line(path + path[:2], 255, width, joint="curve")

    def fill(draw):
        draw.polygon(path, 255)

    def nested(draw):
        draw.polygon(frame(0.68 * points), 255)
        draw.polygon(frame(0.34 * points), 0)

    if style == "outline":
        return image + frame.cover(outline) * (first - image)
    image = image + frame.cover(fill) * (first - image)
    if style == "solid":
        return image
    if style == "nested":
        return image + frame.cover(nested) * (second - image)
    u, v = frame.grid()
    if style == "striped":
        pattern = np.cos(rng.uniform(9, 12) * u + rng.uniform(0, 6)) > 0.1
    elif style == "dotted":
        f = rng.uniform(10, 12)
        pattern = np.cos(f * u) + np.cos(f * v) > 0.7
    else:
        pattern = u > rng.uniform(-0.1, 0.1)
    return image + frame.cover(fill) * pattern[..., None] * (second - image)


def shapes(rng):
    """96 classes: 16 outlines x 6 styles."""

    def painter(points, style):
        def paint(rng, size, plain=False):
            paper, ink = color_pair(rng)
            second = color(rng, (ink.mean() + 0.45) % 1, (0.5, 1.0))
            image = np.broadcast_to(paper, (size, size, 3))
            if not plain:
                image = background(rng, size, paper)
            frame = random_frame(rng, size)
            image = draw_shape(rng, image, frame, points, style, (ink, second))
            return image if plain else finish(rng, image)

        return paint

    classes = [
        (f"{style} {name}", painter(points, style))
        for name, points in outlines().items()
        for style in STYLES
    ]
    return classes


def sketches(classes):
    """Classes of `shapes` as pencil drawings of their edges."""

    def painter(shape):
        def paint(rng, size):
            image = shape(rng, size, plain=True).mean(-1)
            dy, dx = np.gradient(image)
            edges = np.clip(rng.uniform(4, 7) * np.hypot(dx, dy), 0, 1)
            pressure = 0.75 + 0.35 * smooth_noise(rng, size, 8)
            paper = rng.uniform(0.82, 0.97) - np.array([0, 0.02, 0.08])
            lead = rng.uniform(0.1, 0.35)
            edges = np.clip(edges * pressure, 0, 1)[..., None]
            return finish(rng, paper + edges * (lead - paper), noise=0.1)

        return paint

    return [(name, painter(shape)) for name, shape in classes]


def scenes(rng):
    """Classes are arrangements of three or four outlines on a landscape."""
    points = outlines()

    def painter(parts):
        def paint(rng, size):
            sky = color(rng, rng.uniform(0.75, 0.92))
            ground = color(rng, rng.uniform(0.6, 0.85))
            image = background(rng, size, sky)
            horizon = rng.uniform(0.5, 0.8) + 0.05 * smooth_noise(rng, size, 4)
            rows = np.linspace(0, 1, size)[:, None]
            image = np.where((rows > horizon[0])[..., None], ground, image)
            whole = random_frame(rng, size, 0.3, (0.7, 1.0), 0.5)
            for name, style, place, scale in parts:
                center = place + rng.normal(0, 0.1, 2)
                center = whole.matrix @ center + whole.center
                scales = scale * rng.uniform(0.8, 1.2) * np.ones(2)
                frame = Frame(size, rng.normal(0, 0.3), scales, center)
                ink = color(rng, rng.uniform(0.05, 0.4), (0.5, 1.0))
                image = draw_shape(
                    rng, image, frame, points[name], style, (ink, ink)
                )
            return finish(rng, image)

        return paint

    def arrangement():
        count = int(rng.integers(3, 5))
        cells = rng.choice(9, count, replace=False)
        return [
            (
                list(points)[rng.integers(len(points))],
                STYLES[rng.integers(2)],
                np.array([cell % 3 - 1, cell // 3 - 1]) * 0.55,
                rng.uniform(0.22, 0.36),
            )
            for cell in cells
        ]

    return [(f"scene {i}", painter(arrangement())) for i in range(24)]
