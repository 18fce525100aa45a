"""Data tests build no layers, so they skip the slow reset of Keras's names."""

import pytest


@pytest.fixture(autouse=True)
def fresh_names():
    pass
