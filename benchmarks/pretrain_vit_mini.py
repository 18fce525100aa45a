"""Pretrains `vit_mini`, the backbone inside the package.

    python benchmarks/pretrain_vit_mini.py --data DIR --weights FILE --out DIR

A ViT of 3.6 M parameters at 64 px learns the 130 meta-training classes of
Tiny ImageNet (`pretrain_tiny_imagenet.npz` in DIR), supervised and, with
`--recipe distill`, from a teacher: a linear classifier on the features of a
pretrained ViT-S/14 (FILE), and these features themselves. The teacher sees
each image once, so its part costs minutes. Most epochs drop half of the
tokens, which halves their cost; the last see all of them.

After every epoch it measures nearest-prototype accuracy on validation classes.
An interrupted run continues where it was. `--export` writes the weights as
float16 in the form that the package ships.
"""

import argparse
import csv
import functools
import os
import pathlib

import keras
import keras_hub
import numpy as np
from frozen_features import pack_sets
from frozen_features import prototype_accuracies
from keras import ops
from mini_meta_dataset import PackSource
from PIL import Image

import keras_smat

SIZE = 64
CLASSES = 130
WIDTH = 192
# Statistics of the images in [0, 1]; they go into the package.
MEAN, STD = 0.5, 0.25


def vit():
    return keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=8,
        num_layers=8,
        num_heads=3,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
        name="vit_mini",
    )


class TokenDropout(keras.layers.Layer):
    """Keeps the class token and a random share of the others in training.

    The same positions for the whole batch: that costs one gather.
    """

    def __init__(self, keep, **kwargs):
        super().__init__(**kwargs)
        self.keep = keep
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, tokens, training=False):
        if not training or self.keep >= 1.0:
            return tokens
        count = tokens.shape[1] - 1
        order = ops.argsort(
            keras.random.uniform((count,), seed=self.seed_generator)
        )
        kept = 1 + order[: round(self.keep * count)]
        return ops.concatenate(
            [tokens[:, :1], ops.take(tokens, kept, axis=1)], axis=1
        )


def classifier(backbone, teacher_width, keep):
    """Images to class logits and, for a teacher, predicted features."""
    embed, encode = backbone.layers[1:]
    images = keras.Input((SIZE, SIZE, 3), name="images")
    tokens = encode(TokenDropout(keep)(embed(images)))
    features = tokens[:, 0]
    dense = functools.partial(keras.layers.Dense, dtype="float32")
    outputs = {"logits": dense(CLASSES, name="head")(features)}
    if teacher_width:
        outputs["features"] = dense(teacher_width, name="predictor")(features)
        outputs["soft"] = keras.layers.Identity(name="soft")(outputs["logits"])
    return keras.Model(images, outputs)


def soft_loss(teacher, logits):
    """KL divergence to the teacher's class probabilities, up to a constant."""
    return -ops.sum(teacher * ops.log_softmax(logits), axis=-1)


def feature_loss(teacher, features):
    return 1.0 - ops.sum(
        ops.normalize(teacher, axis=-1) * ops.normalize(features, axis=-1), -1
    )


class Batches(keras.utils.PyDataset):
    """Augmented batches; batch i of an epoch is a function of the seed."""

    def __init__(self, images, labels, teacher, batch_size, seed):
        super().__init__(workers=1)
        self.images, self.labels, self.teacher = images, labels, teacher
        self.batch_size, self.seed = batch_size, seed
        self.epoch = 0

    def __len__(self):
        return len(self.images) // self.batch_size

    def __getitem__(self, i):
        order = np.random.default_rng([self.seed, self.epoch])
        order = order.permutation(len(self.images))
        chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, self.epoch, i])
        images = augment(self.images[chosen], rng)
        smooth = np.full((len(chosen), CLASSES), 0.1 / CLASSES, "float32")
        smooth[np.arange(len(chosen)), self.labels[chosen]] += 0.9
        targets = {"logits": smooth}
        if self.teacher is not None:
            targets["soft"] = self.teacher["soft"][chosen]
            targets["features"] = self.teacher["features"][chosen]
        return images, targets


def augment(images, rng):
    """uint8 (N, H, W, 3) to float32 in the backbone's own range.

    Crops and colours as usual; some images become grey, negative or a line
    drawing, since the features must serve domains other than photographs.
    """
    count = len(images)
    out = np.empty((count, SIZE, SIZE, 3), "float32")
    for k in range(count):
        area = SIZE * SIZE * rng.uniform(0.25, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width = min(SIZE, np.sqrt(area * ratio))
        height = min(SIZE, np.sqrt(area / ratio))
        x = rng.uniform(0, SIZE - width)
        y = rng.uniform(0, SIZE - height)
        out[k] = Image.fromarray(images[k]).resize(
            (SIZE, SIZE),
            Image.Resampling.BILINEAR,
            box=(x, y, x + width, y + height),
        )
    flip = rng.random(count) < 0.5
    out[flip] = out[flip, :, ::-1]
    out /= 255.0

    def factor(strength):
        return 1 + strength * rng.uniform(-1, 1, (count, 1, 1, 1)).astype("f")

    out *= factor(0.4)
    out = (out - out.mean((1, 2, 3), keepdims=True)) * factor(0.4) + out.mean(
        (1, 2, 3), keepdims=True
    )
    grey = out.mean(-1, keepdims=True)
    saturation = factor(0.4)
    saturation[rng.random(count) < 0.2] = 0.0
    out = grey + (out - grey) * saturation
    for k in np.flatnonzero(rng.random(count) < 0.12):
        out[k] = line_drawing(out[k], rng)
    negative = rng.random(count) < 0.08
    out[negative] = 1.0 - out[negative]
    return (np.clip(out, 0.0, 1.0) - MEAN) / STD


def line_drawing(image, rng):
    """Dark edges on white."""
    grey = image.mean(-1)
    dy, dx = np.gradient(grey)
    edges = np.hypot(dx, dy)
    edges = edges / (np.quantile(edges, rng.uniform(0.85, 0.98)) + 1e-6)
    return np.repeat(1.0 - np.clip(edges, 0, 1)[..., None], 3, axis=-1)


class Validation(keras.callbacks.Callback):
    """Few-shot accuracy on validation classes, into the logs of the epoch."""

    def __init__(self, backbone, data_dir, dataset):
        super().__init__()
        self.backbone, self.dataset = backbone, dataset
        self.sets = pack_sets(data_dir, "val", 200, roles=("id",))

    def on_epoch_begin(self, epoch, logs=None):
        self.dataset.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        accuracies = {}
        for name, (images, episodes) in self.sets.items():
            x = (images.astype("float32") / 255.0 - MEAN) / STD
            features = self.backbone.predict(x, batch_size=256, verbose=0)
            accuracies[name] = float(
                prototype_accuracies(features[:, 0], episodes).mean()
            )
        logs.update({f"val_{k}": v for k, v in accuracies.items()})
        logs["val_average"] = float(np.mean(list(accuracies.values())))


def load_images(arguments):
    """The decoded pack as a memory map, and its labels."""
    path = arguments.out / "images.npy"
    source = PackSource(arguments.data / "pretrain_tiny_imagenet.npz", SIZE)
    if not path.exists():
        temporary = path.with_name("incomplete.npy")
        np.save(temporary, source.images)
        os.replace(temporary, path)
    return np.load(path, mmap_mode="r"), source.labels


def load_teacher(arguments, images, labels):
    """Soft labels (N, C) and whitened features (N, D) of the teacher."""
    path = arguments.out / "teacher.npy"
    if not path.exists():
        teacher = keras_smat.feature_backbone(
            str(arguments.weights),
            image_size=70,
            num_blocks=11,
            pooling="cls+mean",
        )
        chunks = []
        for start in range(0, len(images), 256):
            batch = [
                Image.fromarray(image).resize((70, 70), Image.BICUBIC)
                for image in images[start : start + 256]
            ]
            chunk = teacher.predict_on_batch(np.stack(batch))
            chunks.append(np.asarray(chunk, "float16"))
            if start % 5120 == 0:
                print(f"teacher: {start} images", flush=True)
        temporary = path.with_name("incomplete_teacher.npy")
        np.save(temporary, np.concatenate(chunks))
        os.replace(temporary, path)
    features = np.load(path).astype("float32")
    return soft_labels(features, labels)


def soft_labels(features, labels):
    features -= features.mean(0)
    # Whitening within classes: the metric in which classes are round.
    centred = features.copy()
    for c in range(CLASSES):
        centred[labels == c] -= features[labels == c].mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values = values + 0.1 * values.mean()
    features = features @ (vectors / np.sqrt(values))
    # Linear discriminant analysis, out of fold: no image teaches itself.
    logits = np.empty((len(features), CLASSES), "float32")
    fold = np.random.default_rng(0).integers(0, 5, len(features))
    for k in range(5):
        means = np.stack(
            [
                features[(labels == c) & (fold != k)].mean(0)
                for c in range(CLASSES)
            ]
        )
        scores = features[fold == k] @ means.T - 0.5 * (means**2).sum(1)
        logits[fold == k] = scores
    accuracy = (logits.argmax(1) == labels).mean()
    scale = calibrate(logits, labels)
    print(f"teacher: out-of-fold accuracy {accuracy:.3f}, scale {scale:.3f}")
    soft = np.exp(scale * (logits - logits.max(1, keepdims=True)))
    soft /= soft.sum(1, keepdims=True)
    # The class means span what tells classes apart.
    basis = np.linalg.svd(means - means.mean(0), full_matrices=False)[2]
    return {"soft": soft, "features": features @ basis.T}


def calibrate(logits, labels):
    """The scale with the best log-likelihood of the labels."""
    best = None
    for scale in np.geomspace(0.02, 2, 30):
        z = scale * (logits - logits.max(1, keepdims=True))
        z -= np.log(np.exp(z).sum(1, keepdims=True))
        loss = -z[np.arange(len(labels)), labels].mean()
        if best is None or loss < best[0]:
            best = (loss, scale)
    return best[1]


def train(arguments):
    images, labels = load_images(arguments)
    teacher = None
    if arguments.recipe == "distill":
        teacher = load_teacher(arguments, images, labels)
    keras.utils.set_random_seed(arguments.seed)
    backbone = vit()
    dataset = Batches(
        images, labels, teacher, arguments.batch_size, arguments.seed
    )
    width = 0 if teacher is None else teacher["features"].shape[1]
    total = arguments.epochs * len(dataset)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        round(0.93 * total),
        warmup_target=arguments.learning_rate,
        warmup_steps=round(0.07 * total),
        alpha=0.01,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=0.05, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    losses, shares = {"logits": cross_entropy}, {"logits": 1.0}
    if teacher is not None:
        losses.update(soft=soft_loss, features=feature_loss)
        shares = {"logits": 0.5, "soft": 0.5, "features": 2.0}
    model = classifier(backbone, width, arguments.keep)
    model.compile(
        optimizer, losses, loss_weights=shares, metrics={"logits": ["accuracy"]}
    )
    dropout = next(x for x in model.layers if isinstance(x, TokenDropout))

    def all_tokens_at_last(epoch, logs):
        late = epoch >= arguments.epochs - arguments.full_epochs
        dropout.keep = 1.0 if late else arguments.keep

    log = arguments.out / "curve.csv"
    model.fit(
        dataset,
        epochs=arguments.epochs,
        shuffle=False,
        verbose=2,
        callbacks=[
            Validation(backbone, arguments.data, dataset),
            keras.callbacks.LambdaCallback(on_epoch_begin=all_tokens_at_last),
            keras_smat.callbacks.BackupAndRestore(arguments.out / "backup"),
            keras.callbacks.CSVLogger(str(log), append=log.exists()),
        ],
    )
    with open(log, newline="") as file:
        print(list(csv.DictReader(file))[-1])
    backbone.save_weights(arguments.out / "vit_mini.weights.h5")
    if arguments.export:
        arrays = {
            f"{i:03d}": np.asarray(value, "float16")
            for i, value in enumerate(backbone.get_weights())
        }
        np.savez_compressed(arguments.export, **arrays)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of packs")
    add("--weights", type=pathlib.Path, help="the teacher's, .npz")
    add("--out", type=pathlib.Path, required=True)
    add("--recipe", choices=("supervised", "distill"), default="distill")
    add("--epochs", type=int, default=12)
    add("--full-epochs", type=int, default=2, help="last ones, all tokens")
    add("--keep", type=float, default=0.5, help="share of tokens kept")
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=1e-3)
    add("--precision", default="mixed_bfloat16", help="dtype policy")
    add("--seed", type=int, default=0)
    add("--export", type=pathlib.Path, help=".npz for the package")
    arguments = parser.parse_args()
    if arguments.recipe == "distill" and arguments.weights is None:
        parser.error("--recipe distill needs --weights")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    arguments = parse_arguments()
    keras.config.set_dtype_policy(arguments.precision)
    train(arguments)
