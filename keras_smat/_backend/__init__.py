"""The backend seam: the only folder that imports JAX, TensorFlow or PyTorch.

Each backend module offers the same six names:

- `EpisodicTrainer`: `keras.Model` whose `train_step` takes its loss from
  `compute_episode_loss` and then calls `finish_step`.
- `feed(episodes)`: what `fit`, `evaluate` and `predict` of Keras get.
- `vjp(function, weights)`: outputs that stay differentiable, and a pullback
  that gives detached vector-Jacobian products of the same forward pass.
- `map_chunks`: many images in bounded memory.
- `jit(function)`: compiled where the backend compiles.
- `merge_masks`: `functional.merge_masks`, by the fastest means at hand.
"""

import importlib

import keras

_BACKENDS = ("jax", "tensorflow", "torch")

if keras.backend.backend() not in _BACKENDS:
    raise ImportError(
        f"keras_smat runs on the Keras backends {_BACKENDS}. Received: "
        f"{keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND before importing keras."
    )

_module = importlib.import_module(f"{__name__}.{keras.backend.backend()}")

EpisodicTrainer = _module.EpisodicTrainer
feed = _module.feed
jit = _module.jit
map_chunks = _module.map_chunks
merge_masks = _module.merge_masks
vjp = _module.vjp
