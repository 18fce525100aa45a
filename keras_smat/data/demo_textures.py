"""Colours, backgrounds, textures and wallpapers of the demo domains."""

import numpy as np
from PIL import Image


def color(rng, light, strength=(0.2, 0.9)):
    """Random colour (3,) in [0, 1] whose mean is about `light`."""
    light = np.clip(light, 0.0, 1.0)
    hue = rng.random() + np.arange(3) / 3
    chroma = np.cos(2 * np.pi * hue) * rng.uniform(*strength)
    return np.clip(light + chroma * min(light, 1 - light), 0, 1)


def color_pair(rng, inverted=0.2):
    """Two colours, paper and ink: light and dark, at times inverted."""
    paper = color(rng, rng.uniform(0.68, 0.95), (0.1, 0.8))
    ink = color(rng, rng.uniform(0.08, 0.48), (0.4, 1.0))
    return (ink, paper) if rng.random() < inverted else (paper, ink)


def smooth_noise(rng, size, cells):
    """Field (size, size) in about [-1, 1], `cells` bumps across."""
    field = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype("f4"))
    return np.asarray(field.resize((size, size), Image.Resampling.BICUBIC))


def background(rng, size, paper):
    """Image (size, size, 3) around a colour: flat, graded or blotchy."""
    image = np.broadcast_to(paper, (size, size, 3)).astype("f4")
    field = np.zeros((size, size), "f4")
    kind = rng.integers(3)
    if kind == 1:
        field, _ = plane(rng, size)
    elif kind == 2:
        field = smooth_noise(rng, size, int(rng.integers(3, 9)))
    return image + rng.uniform(-0.18, 0.18) * field[..., None]


def finish(rng, image, noise=0.05):
    """Adds grain and returns uint8 (size, size, 3)."""
    grain = rng.standard_normal(image.shape[:2], "f4")[..., None]
    image = image + rng.uniform(0.2, 1.0) * noise * grain
    return (255 * np.clip(image, 0, 1)).astype("uint8")


def plane(rng, size, zoom=1.0, turn=np.pi, shift=0.5):
    """Turned, shifted coordinates (size, size) each; image width `zoom`."""
    angle = rng.uniform(-turn, turn)
    y, x = np.mgrid[:size, :size].astype("f4") * (zoom / size) - zoom / 2
    cos, sin = np.cos(angle), np.sin(angle)
    shift_u, shift_v = rng.uniform(-shift, shift, 2)
    return cos * x + sin * y + shift_u, cos * y - sin * x + shift_v


def _tint(rng, field):
    """Colours a field in [0, 1] with two colours, smooth or three-toned."""
    first, second = color_pair(rng, inverted=0.5)
    field = np.clip(field, 0, 1)[..., None]
    image = first + field * (second - first)
    if rng.random() < 0.5:
        third = color(rng, (first.mean() + second.mean()) / 2)
        image = image + 2 * field * (1 - field) * (third - image)
    shade = smooth_noise(rng, len(field), 3)[..., None]
    return image + rng.uniform(0, 0.12) * shade


def _wave(phase):
    return 0.5 + 0.5 * np.cos(2 * np.pi * phase)


def _gratings(rng, u, v, f, kind):
    if kind == 0:
        return _wave(f * u)
    return ((f * u) % 1 < (0.5, 0.18)[kind - 1]).astype("f4")


def _plaid(rng, u, v, f, kind):
    angles = np.radians(((0, 90), (0, 60, 120), (0, 90, 45))[kind])
    waves = [_wave(f * (np.cos(a) * u + np.sin(a) * v)) ** 3 for a in angles]
    return np.maximum.reduce(waves)


def _dots(rng, u, v, f, kind):
    row = np.floor(f * v)
    du = (f * u + 0.5 * (row % 2)) % 1 - 0.5
    distance = np.hypot(du, f * v - row - 0.5)
    if kind == 2:
        return np.clip(6 * (0.12 - abs(distance - 0.3)) + 0.5, 0, 1)
    return np.clip(8 * ((0.22, 0.4)[kind] - distance) + 0.5, 0, 1)


def _bricks(rng, u, v, f, kind):
    row = np.floor(f * v)
    u = f * u / (1, 2, 4)[kind] + 0.5 * (row % 2)
    shade = np.sin(78.2 * np.floor(u) + 37.7 * row) * 0.3 + 0.4
    joint = ((f * v) % 1 < 0.14) | (u % 1 < 0.14 / (1, 2, 4)[kind])
    return np.where(joint, 1.0, shade)


def _cells(rng, u, v, f, kind):
    count = (8, 18, 36)[(4, 6, 9).index(f)]
    centers = rng.uniform(-1, 1, (count, 2)) * 0.6
    u, v = u - u.mean(), v - v.mean()
    distance = np.stack([(u - a) ** 2 + (v - b) ** 2 for a, b in centers])
    if kind == 2:
        return rng.random(count)[distance.argmin(0)]
    first = np.sqrt(distance.min(0))
    if kind == 0:
        return np.clip(2.2 * first * count**0.5, 0, 1)
    distance.partition(1, axis=0)
    return np.clip(5 * (np.sqrt(distance[1]) - first) * count**0.5, 0, 1)


def _grain(rng, u, v, f, kind):
    size = len(u)
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    a = rng.uniform(0, np.pi)
    along = fx * np.cos(a) + fy * np.sin(a)
    across = fy * np.cos(a) - fx * np.sin(a)
    radius = np.hypot(along, (1, 4, 1)[kind] * across) * size
    band = np.exp(-(((radius - f) / (0.35 * f)) ** 2))
    real, imaginary = rng.standard_normal((2, *band.shape))
    field = np.fft.irfft2((real + 1j * imaginary) * band, (size, size))
    field = field / field.std()
    return 0.5 + 0.25 * field if kind < 2 else (field > 0.6).astype("f4")


def _marble(rng, u, v, f, kind):
    noise = smooth_noise(rng, len(u), 5) + 0.5 * smooth_noise(rng, len(u), 9)
    return _wave(0.7 * f * u + (0.35, 0.8, 1.6)[kind] * noise)


def _rosettes(rng, u, v, f, kind):
    u, v = u - u.mean(), v - v.mean()
    u, v = u - rng.uniform(-0.3, 0.3), v - rng.uniform(-0.3, 0.3)
    turns, radius = np.arctan2(v, u) / (2 * np.pi), np.hypot(u, v)
    if kind == 0:
        return _wave(f * radius)
    return _wave((0, 2 * f, f // 2)[kind] * turns + (kind - 1) * f * radius)


def _chevrons(rng, u, v, f, kind):
    zigzag = abs((f * u) % 1 - 0.5) * (0.8, 1.8, 0)[kind]
    zigzag = zigzag + (kind == 2) * 0.35 * np.sin(4 * f * u)
    return ((f * v + zigzag) % 1 < 0.5).astype("f4")


FAMILIES = {
    "gratings": _gratings,
    "plaid": _plaid,
    "dots": _dots,
    "bricks": _bricks,
    "cells": _cells,
    "grain": _grain,
    "marble": _marble,
    "rosettes": _rosettes,
    "chevrons": _chevrons,
}


def textures(rng):
    """81 classes: family of patterns x spatial frequency x kind."""

    def painter(family, f, kind):
        def paint(rng, size):
            u, v = plane(rng, size, zoom=rng.uniform(0.8, 1.2))
            field = FAMILIES[family](rng, u, v, f, kind)
            return finish(rng, _tint(rng, field))

        return paint

    return [
        (f"{family} {f} {kind}", painter(family, f, kind))
        for family in FAMILIES
        for f in (4, 6, 9)
        for kind in range(3)
    ]


def wallpapers(rng):
    """24 classes: twelve symmetry groups, each with two random motifs."""

    def painter(tile):
        def paint(rng, size):
            u, v = plane(rng, size, zoom=rng.uniform(2.2, 3.2))
            v = v * rng.uniform(0.85, 1.15)
            cells = len(tile)
            rows, columns = (
                np.floor(w % 1 * cells).astype(int) for w in (v, u)
            )
            field = tile[rows % cells, columns % cells]
            return finish(rng, _tint(rng, field), noise=0.08)

        return paint

    groups = _symmetries()
    return [
        (f"{group} {k}", painter(_symmetric_tile(rng, groups[group])))
        for group in groups
        for k in range(2)
    ]


def _symmetric_tile(rng, operations, cells=48):
    """A random motif under all operations of a group, values in [0, 1]."""
    y, x = np.mgrid[:cells, :cells] / cells - 0.5
    motif = np.zeros((cells, cells))
    for _ in range(3):
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.1, 0.3)
        # Distances on the torus, so that the tile has no seam.
        dx, dy = ((w - rng.random()) % 1 - 0.5 for w in (x, y))
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = np.cos(angle) * dy - np.sin(angle) * dx
        outside = np.hypot(across, np.maximum(abs(along) - length / 2, 0))
        blob = np.clip(20 * (rng.uniform(0.04, 0.09) - outside) + 0.5, 0, 1)
        motif = np.maximum(motif, rng.uniform(0.4, 1.0) * blob)
    return np.maximum.reduce([operation(motif) for operation in operations])


def _symmetries():
    """Operations on a square tile by the name of the wallpaper group."""

    def shifted(operation, *axes):
        return lambda t: np.roll(operation(t), [len(t) // 2] * len(axes), axes)

    def same(t):
        return t

    def half(t):
        return t[::-1, ::-1]

    mirrors = [np.fliplr, np.flipud]
    p4 = [same, np.rot90, half, lambda t: np.rot90(t, 3)]
    diagonals = [np.transpose, lambda t: np.rot90(t, 2).T]
    centered = [shifted(f, 0, 1) for f in (same, np.fliplr, half, np.flipud)]
    return {
        "p1": [same],
        "p2": [same, half],
        "pm": [same, np.fliplr],
        "pg": [same, shifted(np.fliplr, 0)],
        "cm": [same, np.fliplr, *centered[:2]],
        "pmm": [same, half, *mirrors],
        "pmg": [same, half, shifted(np.fliplr, 0), shifted(np.flipud, 0)],
        "pgg": [same, half, *(shifted(f, 0, 1) for f in mirrors)],
        "cmm": [same, half, *mirrors, *centered],
        "p4": p4,
        "p4m": [*p4, *mirrors, *diagonals],
        "p4g": [*p4, *(shifted(f, 0, 1) for f in (*mirrors, *diagonals))],
    }
