"""The pretrained backbone that comes with the package."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_smat import feature_backbone
from keras_smat import vit_mini

FEATURES = """
import sys
import numpy as np
import keras_smat
backbone = keras_smat.feature_backbone("vit_mini")
images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), "uint8")
np.save(sys.argv[1], backbone.predict(images, verbose=0))
"""


def test_it_is_small_and_whole():
    assert vit_mini.WEIGHTS.stat().st_size < 10e6
    card = vit_mini.WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")
    assert "Licence" in card and "Limits" in card
    backbone = feature_backbone("vit_mini")
    assert backbone.input_shape == (None, 64, 64, 3)
    assert backbone.output_shape == (None, 192)
    assert 2e6 < backbone.count_params() < 4e6
    with np.load(vit_mini.WEIGHTS) as arrays:
        stored = [arrays[name] for name in sorted(arrays.files)]
    assert {a.dtype for a in stored} == {np.dtype("float16")}
    source = vit_mini.build()
    for array, weight in zip(stored, source.get_weights(), strict=True):
        np.testing.assert_array_equal(array, weight)
        assert np.isfinite(array).all()


def test_it_takes_other_sizes_and_fewer_blocks():
    backbone = feature_backbone("vit_mini", image_size=32, num_blocks=2)
    images = np.zeros((2, 32, 32, 3), "uint8")
    assert backbone(images).shape == (2, 192)


def test_it_tells_domains_apart():
    """Pretrained: noise would leave all pictures alike."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 64, 64, 3), "uint8")
    plain = np.repeat(rng.integers(0, 256, (8, 1, 1, 3), "uint8"), 64, 1)
    plain = np.repeat(plain, 64, 2)
    features = feature_backbone("vit_mini").predict(
        np.concatenate([noise, plain]), verbose=0
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    within = (features[:8] @ features[:8].T).mean()
    assert within > 0.5 + (features[:8] @ features[8:].T).mean()


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="runs once, in the tests of the PyTorch backend",
)
def test_backends_agree(tmp_path):
    features = {}
    for backend in ("torch", "jax", "tensorflow"):
        if importlib.util.find_spec(backend) is None:
            continue
        path = tmp_path / f"{backend}.npy"
        subprocess.run(
            [sys.executable, "-c", FEATURES, str(path)],
            env={**os.environ, "KERAS_BACKEND": backend},
            check=True,
        )
        features[backend] = np.load(path)
    expected = features.pop("torch")
    for actual in features.values():
        error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
        assert error < 1e-4
