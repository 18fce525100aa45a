"""Shared fixtures. PyTorch is imported before TensorFlow: the other order can
crash the interpreter."""

try:
    import torch  # noqa: F401
except ImportError:
    pass

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(1234)


@pytest.fixture(autouse=True)
def fresh_names():
    """Layer names, hence variable paths, do not depend on earlier tests."""
    keras.backend.clear_session(free_memory=False)
    np.random.seed(0)


@pytest.fixture
def float64(monkeypatch):
    from keras.src.backend.common import dtypes

    # Else Keras rounds most results to float32, save on TensorFlow.
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")
