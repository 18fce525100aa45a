"""The small pretrained transformer that comes with the package.

`weights/vit_mini.md` says how it was made, from what, and how good it is.
"""

import pathlib

import numpy as np

from keras_smat.vision_transformers import zero_start

WEIGHTS = pathlib.Path(__file__).parent / "weights" / "vit_mini.npz"
CONFIG = {
    "image_shape": (64, 64, 3),
    "patch_size": 8,
    "num_layers": 8,
    "num_heads": 3,
    "hidden_dim": 192,
    "mlp_dim": 768,
}
# Mean and standard deviation of images in [0, 1], as in pretraining.
STATISTICS = (0.5, 0.25)


def build(pretrained=True):
    """The keras-hub `ViTBackbone`, without the preprocessing of images.

    Args:
        pretrained: bool, else the weights are random. Defaults to `True`.
    """
    import keras_hub

    if not pretrained:
        return keras_hub.models.ViTBackbone(**CONFIG, name="vit_mini")
    with zero_start():
        backbone = keras_hub.models.ViTBackbone(**CONFIG, name="vit_mini")
    with np.load(WEIGHTS) as arrays:
        # Half precision on disk: NumPy's order of names is that of files.
        backbone.set_weights([arrays[n] for n in sorted(arrays.files)])
    return backbone
