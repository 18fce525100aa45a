"""Doodles and critters of the demo domains."""

import itertools

import numpy as np
from PIL import Image
from PIL import ImageDraw

from keras_smat.data.demo_drawings import ellipse
from keras_smat.data.demo_drawings import random_frame
from keras_smat.data.demo_textures import background
from keras_smat.data.demo_textures import color
from keras_smat.data.demo_textures import color_pair
from keras_smat.data.demo_textures import finish
from keras_smat.data.demo_textures import smooth_noise

BODIES = {"round": (0.5, 0.42), "long": (0.66, 0.27), "tall": (0.36, 0.52)}
EARS = ("bare", "pointed", "round", "long", "horns", "antennae")
TAILS = ("none", "curled", "bushy", "fan")
COATS = ("plain", "spotted", "striped", "belly")
LEGS = (0, 2, 4, 7)


def _bezier(control):
    t = np.linspace(0, 1, 16)[:, None]
    a, b, c, d = control
    return (
        (1 - t) ** 3 * a
        + 3 * t * (1 - t) ** 2 * b
        + 3 * t**2 * (1 - t) * c
        + t**3 * d
    )


def _loop(control):
    rx, ry = 0.12 + 0.5 * abs(control[1])
    return ellipse(*control[0], rx, ry, angle=3 * control[2][0])


def _spiral(control):
    t = np.linspace(0.1, 1, 40)[:, None]
    angle = 2 * np.pi * (2.3 * t + control[1][:1])
    radius = (0.3 + 0.3 * abs(control[2][0])) * t
    return control[0] + radius * np.hstack([np.cos(angle), np.sin(angle)])


def _zigzag(control):
    start, step = control[0], (control[3] - control[0]) / 6
    side = 1.6 * step[::-1] * (1, -1)
    return np.array([start + k * step + (k % 2) * side for k in range(7)])


STROKES = (_bezier, np.asarray, _loop, _spiral, _zigzag, _bezier)


def doodles(rng, count=96):
    """Classes are programs of two to four strokes."""

    def painter(program):
        def paint(rng, size):
            paper, ink = color_pair(rng)
            frame = random_frame(rng, size, turn=0.5, scale=(0.5, 0.82))
            width = frame.width(rng.uniform(0.015, 0.05))

            def strokes(draw):
                for stroke, control in program:
                    control = control + rng.normal(0, 0.07, control.shape)
                    path = frame(stroke(control))
                    draw.line(path, 255, width, joint="curve")
                    for x, y in (path[0], path[-1]):
                        draw.circle((x, y), width / 2, 255)

            image = background(rng, size, paper)
            image = image + frame.cover(strokes) * (ink - image)
            return finish(rng, image, noise=0.08)

        return paint

    def program():
        kinds = rng.integers(len(STROKES), size=rng.integers(2, 5))
        return [(STROKES[k], rng.uniform(-0.95, 0.95, (4, 2))) for k in kinds]

    return [(f"doodle {i}", painter(program())) for i in range(count)]


def critters(rng, count=96):
    """Classes are animals: body x ears x legs x tail x coat."""
    genes = list(itertools.product(BODIES, EARS, LEGS, TAILS, COATS))

    def painter(body, ears, legs, tail, coat):
        def paint(rng, size):
            frame = random_frame(rng, size, 0.3, (0.68, 0.92))
            if rng.random() < 0.5:
                frame.matrix = frame.matrix * [-1, 1]
            paper, fur = color_pair(rng)
            image = _meadow(rng, size, paper)
            canvas = Image.fromarray((255 * image.clip(0, 1)).astype("uint8"))
            canvas = canvas.resize((2 * size, 2 * size))
            pen = _Pen(rng, canvas, frame, fur)
            _animal(pen, BODIES[body], ears, legs, tail, coat)
            return finish(rng, np.asarray(canvas.reduce(2), "f4") / 255, 0.04)

        return paint

    chosen = [genes[i] for i in rng.permutation(len(genes))[:count]]
    return [(" ".join(map(str, gene)), painter(*gene)) for gene in chosen]


def _meadow(rng, size, paper):
    image = background(rng, size, paper)
    ground = color(rng, np.clip(paper.mean() + rng.uniform(-0.2, 0.2), 0, 1))
    line = rng.uniform(0.6, 0.9) + 0.08 * smooth_noise(rng, size, 4)[0]
    below = np.linspace(0, 1, size)[:, None] > line
    return np.where(below[..., None], ground, image)


class _Pen:
    """Draws in a frame with the three colours of one animal."""

    def __init__(self, rng, canvas, frame, fur):
        self.rng = rng
        self.draw = ImageDraw.Draw(canvas)
        self.frame = frame
        light = fur.mean()
        self.fur = self._rgb(fur)
        self.dark = self._rgb(0.6 * fur)
        self.mark = self._rgb(
            color(rng, light + (0.4 if light < 0.5 else -0.4))
        )

    def _rgb(self, values):
        return tuple(int(255 * v) for v in values)

    def fill(self, points, ink):
        self.draw.polygon(self.frame(points), ink)

    def line(self, points, ink, width):
        path = self.frame(np.asarray(points, "f4"))
        width = self.frame.width(width)
        joint = "curve" if len(path) > 2 else None
        self.draw.line(path, ink, width, joint)

    def jitter(self, low, high):
        return self.rng.uniform(low, high)


def _animal(pen, radii, ears, legs, tail, coat):
    rx, ry = np.array(radii) * pen.rng.uniform(0.9, 1.1, 2)
    y = 0.12
    _tail(pen, tail, -0.95 * rx - 0.1, y)
    for k in range(legs):
        x = -0.1 + rx * 0.75 * (2 * k / max(legs - 1, 1) - 1)
        foot = x + pen.jitter(-0.08, 0.08)
        pen.line([(x, y), (foot, 0.85)], pen.dark, 0.05 if legs < 7 else 0.03)
    pen.fill(ellipse(-0.1, y, rx, ry), pen.fur)
    _coat(pen, coat, rx, ry, y)
    x, y = rx * 0.85, y - ry * 0.8 - 0.12
    _ears(pen, ears, x, y)
    pen.fill(ellipse(x, y, 0.28, 0.26), pen.fur)
    pen.fill(ellipse(x + 0.23, y + 0.07, 0.12, 0.09), pen.dark)
    pen.fill(ellipse(x + 0.08, y - 0.06, 0.08, 0.08), (250, 250, 245))
    pen.fill(ellipse(x + 0.1, y - 0.05, 0.045, 0.045), (15, 15, 20))


def _tail(pen, tail, x, y):
    lift = pen.jitter(-0.1, 0.1)
    if tail == "curled":
        arc = ellipse(x, y - 0.25 + lift, 0.17, 0.22, 0, 1.4, 6.5)
        pen.line(arc, pen.dark, 0.04)
    elif tail == "bushy":
        pen.fill(ellipse(x, y - 0.2, 0.16, 0.42, -0.5 + lift), pen.dark)
    elif tail == "fan":
        for angle in (-0.9, -0.45, 0, 0.45):
            tip = (x - 0.35 * np.cos(angle), y - 0.1 + 0.45 * np.sin(angle))
            pen.line([(x + 0.25, y), tip], pen.mark, 0.06)


def _coat(pen, coat, rx, ry, y):
    if coat == "belly":
        pen.fill(ellipse(-0.1, y + 0.4 * ry, 0.7 * rx, 0.5 * ry), pen.mark)
    elif coat == "spotted":
        for angle in np.arange(7) * 2.4 + pen.jitter(0, 6):
            r = 0.72 * np.sqrt((angle % 1.7) / 1.7)
            spot = (-0.1 + rx * r * np.cos(angle), y + ry * r * np.sin(angle))
            pen.fill(ellipse(*spot, 0.075, 0.075), pen.mark)
    elif coat == "striped":
        for x in np.linspace(-0.7, 0.7, 5) + pen.jitter(-0.06, 0.06):
            half = 0.93 * ry * np.sqrt(1 - x * x)
            x = -0.1 + rx * x
            pen.line([(x, y - half), (x, y + half)], pen.mark, 0.04)


def _ears(pen, ears, x, y):
    for side in (-1, 1):
        at, tilt = x + 0.16 * side, pen.jitter(-0.1, 0.1) + 0.25 * side
        if ears == "pointed":
            tip = (at + 0.3 * tilt, y - 0.5)
            pen.fill(
                [(at - 0.13, y - 0.1), tip, (at + 0.13, y - 0.1)], pen.dark
            )
        elif ears == "round":
            pen.fill(ellipse(at + 0.05 * side, y - 0.22, 0.14, 0.14), pen.dark)
        elif ears == "long":
            pen.fill(ellipse(at, y - 0.42, 0.09, 0.36, tilt), pen.dark)
        elif ears == "horns":
            arc = ellipse(0.2, -0.25, 0.2, 0.35, 0, 3.2, 4.6)
            arc = arc * (side, 1) + (at, y)
            pen.line(arc, (245, 240, 220), 0.04)
        elif ears == "antennae":
            tip = (at + 0.5 * tilt, y - 0.55)
            pen.line([(at * 0.5 + x * 0.5, y), tip], pen.dark, 0.025)
            pen.fill(ellipse(*tip, 0.08, 0.08), pen.mark)
