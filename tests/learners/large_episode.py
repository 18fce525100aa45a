"""Prints by how many GB a step on 500 + 500 images raises the peak memory."""

import resource

import keras_hub
import numpy as np

import keras_smat


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main():
    vit = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=128,
        mlp_dim=512,
    )
    learner = keras_smat.SMAT(
        keras_smat.feature_backbone(vit),
        num_experts=2,
        max_images_per_chunk=64,
    )
    learner.compile("sgd")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (500, 32, 32, 3), "uint8")
    labels = np.repeat(np.arange(50), 10).astype("int32")
    x = {
        "support_images": images,
        "support_labels": labels,
        "query_images": images,
    }
    before = peak_gb()
    learner.train_on_batch(x, labels)
    print(peak_gb() - before)


if __name__ == "__main__":
    main()
