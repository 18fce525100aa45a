"""Pretrains `vit_mini`, the backbone inside the package.

    python benchmarks/pretrain_vit_mini.py --data DIR --weights FILE --out DIR

A ViT of 3.6 M parameters at 64 px learns from Tiny ImageNet's 130 meta-training
classes (`pretrain_tiny_imagenet.npz` in DIR), as photographs and as line
drawings made of them, and from drawn characters, random strokes that belong to
no alphabet. `--recipe supervised` tells the classes apart. `--recipe contrast`
knows no classes: it tells two views of a picture from all others in its batch.
`--recipe distill` tells the classes apart and adds two things to look like. Two
thirds of the features shall point where those of a teacher do, the first 11
blocks of a pretrained ViT-S/14 (FILE), which sees every picture once. One third
shall point where the picture's histogram of oriented gradients does. Both
targets are whitened within classes first. Most epochs drop half of the tokens,
which halves their cost; the last ones see all.

After every epoch it measures nearest-prototype accuracy on validation classes.
An interrupted run continues where it was. `--export` writes the weights as
float16 in the form that the package ships.

Reference: oriented gradients, Dalal and Triggs, CVPR 2005; as a target for
transformers, Wei et al., "Masked Feature Prediction", CVPR 2022; two views,
Chen et al., SimCLR, ICML 2020.
"""

import argparse
import functools
import os
import pathlib

import keras
import numpy as np
from frozen_features import pack_sets
from frozen_features import prototype_accuracies
from frozen_features import unit
from keras import ops
from packs import PackSource
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFilter

import keras_smat
from keras_smat.vit_mini import CONFIG
from keras_smat.vit_mini import STATISTICS
from keras_smat.vit_mini import build

SIZE = CONFIG["image_shape"][0]
CLASSES = 130
WIDTH = CONFIG["hidden_dim"]
CHARACTERS = 1500
RENDERINGS = 20
# Photographs, drawings of photographs, characters.
SHARES = (0.45, 0.25, 0.3)
TEACHER_WIDTH = 128
# Chosen on validation classes, with the targets themselves as features.
SHAPE_WEIGHT = 0.7
CELL, BINS = 8, 8
MEAN, STD = STATISTICS


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


def network(backbone, keep, recipe):
    """Images to class logits, features or a projection of them to compare."""
    embed, encode = backbone.layers[1:]
    images = keras.Input((SIZE, SIZE, 3), name="images")
    tokens = encode(TokenDropout(keep)(embed(images)))
    features = keras.layers.Identity(name="features", dtype="float32")
    features = features(tokens[:, 0])
    heads = {
        "logits": [keras.layers.Dense(CLASSES, dtype="float32", name="logits")],
        "features": [],
        "views": [
            keras.layers.Dense(WIDTH, "relu", dtype="float32"),
            keras.layers.Dense(TEACHER_WIDTH, dtype="float32", name="views"),
        ],
    }
    outputs = dict.fromkeys(RECIPES[recipe], features)
    for name in outputs:
        for layer in heads[name]:
            outputs[name] = layer(outputs[name])
    return keras.Model(images, outputs)


def feature_loss(target, features):
    """1 - cosine."""
    return 1.0 - ops.sum(
        ops.normalize(target, axis=-1) * ops.normalize(features, axis=-1), -1
    )


def contrastive_loss(pictures, features):
    """Cross-entropy of finding the other view of a picture in the batch."""
    features = ops.normalize(features, axis=-1)
    own = ops.eye(len(features), dtype="bool")
    logits = ops.where(own, -1e9, features @ ops.transpose(features) / 0.2)
    other = (pictures == ops.transpose(pictures)) & ~own
    return -ops.sum(ops.where(other, ops.log_softmax(logits), 0.0), axis=-1)


LOSSES = {
    "logits": keras.losses.CategoricalCrossentropy(from_logits=True),
    "features": feature_loss,
    "views": contrastive_loss,
}
# Outputs, and what their losses weigh.
RECIPES = {
    "supervised": {"logits": 1.0},
    "contrast": {"views": 1.0},
    "distill": {"logits": 0.1, "features": 1.0},
}


class Batches(keras.utils.PyDataset):
    """Augmented batches; batch i of an epoch is a function of the seed.

    Args:
        recipe: `"supervised"`, `"contrast"` (half as many pictures in a
            batch, each of them twice) or `"distill"`.
        pictures: Three uint8 arrays (N, 64, 64[, 3]), as in `SHARES`. The
            second shows the images of the first.
        labels: int array, the classes of the first and second.
        target: Function from kinds, indices and augmented grey images to the
            features to learn, for the recipe `"distill"`.
        batch: int.
        seed: int.
    """

    def __init__(self, recipe, pictures, labels, target, batch, seed):
        super().__init__()
        self.recipe = recipe
        self.pictures, self.labels, self.target = pictures, labels, target
        self.batch, self.seed = batch, seed
        self.epoch = 0

    def __len__(self):
        return len(self.labels) // self.batch

    @functools.lru_cache(maxsize=1)
    def order(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(len(self.labels))

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, self.epoch, i])
        kinds = rng.choice(3, self.batch, p=SHARES)
        written = kinds == 2
        index = self.order(self.epoch)[i * self.batch : (i + 1) * self.batch]
        labels = np.full((self.batch, CLASSES), 0.1 / CLASSES, "float32")
        labels[np.arange(self.batch), self.labels[index]] += 0.9
        index = np.where(
            written, rng.integers(len(self.pictures[2]), size=self.batch), index
        )
        if self.recipe == "contrast":
            half = np.arange(self.batch) % (self.batch // 2)
            kinds, index = kinds[half], index[half]
        images = np.empty((self.batch, SIZE, SIZE, 3), "uint8")
        images[kinds == 0] = self.pictures[0][index[kinds == 0]]
        for kind in (1, 2):
            chosen = self.pictures[kind][index[kinds == kind]]
            images[kinds == kind] = chosen[..., None]
        images = augment(images, kinds > 0, rng)
        if self.recipe == "contrast":
            return images, {"views": half[:, None].astype("int32")}
        targets = {"logits": labels}
        weights = {"logits": (~written).astype("float32")}
        if self.recipe == "distill":
            grey = images.mean(-1) * STD + MEAN
            targets["features"] = self.target(kinds, index, grey)
            weights["features"] = np.ones(self.batch, "float32")
        return images, targets, weights


def augment(images, drawn, rng):
    """uint8 (N, H, W, 3) to float32, normalised: crop, flip, colours."""
    count = len(images)
    out = np.empty((count, SIZE, SIZE, 3), "float32")
    for k in range(count):
        area = SIZE * SIZE * rng.uniform(0.6 if drawn[k] else 0.4, 1.0)
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

    out *= factor(0.3)
    mean = out.mean((1, 2, 3), keepdims=True)
    out = mean + (out - mean) * factor(0.3)
    grey = out.mean(-1, keepdims=True)
    out = grey + (out - grey) * factor(0.3)
    negative = rng.random(count) < np.where(drawn, 0.2, 0.05)
    out[negative] = 1.0 - out[negative]
    return (np.clip(out, 0.0, 1.0) - MEAN) / STD


def line_drawing(image, rng):
    """Dark strokes on white along the edges of a uint8 image (H, W, 3)."""
    blur = ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2))
    grey = Image.fromarray(image).convert("L").filter(blur)
    edges = np.hypot(*np.gradient(np.asarray(grey, "float32")))
    cut = np.quantile(edges, rng.uniform(0.82, 0.94)) + 1e-6
    strokes = np.clip((edges / cut - 0.8) * 3, 0, 1) * 255
    drawing = Image.fromarray((255 - strokes).astype("uint8"))
    if rng.random() < 0.4:
        drawing = drawing.filter(ImageFilter.MinFilter(3))
    return np.asarray(drawing)


def draw_characters():
    """Renderings (CHARACTERS * RENDERINGS, H, W), dark strokes on white."""
    return np.stack(
        [
            rendering
            for i in range(CHARACTERS)
            for rendering in character(np.random.default_rng([1, i]))
        ]
    )


def character(rng):
    """Renderings of one character: one to four curves, drawn by hand."""
    curves = [
        rng.uniform(0.1, 0.9, (rng.integers(2, 5), 2))
        for _ in range(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]))
    ]
    for _ in range(RENDERINGS):
        angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.12)
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn = np.array(turn) @ [[1, shear], [0, 1]] * rng.uniform(0.6, 1.05)
        shift = 0.5 + rng.normal(0, 0.04, 2)
        image = Image.new("L", (2 * SIZE, 2 * SIZE), 255)
        pen = ImageDraw.Draw(image)
        width = int(rng.integers(3, 11))
        for points in curves:
            points = points + rng.normal(0, 0.025, points.shape)
            points = 2 * SIZE * ((points - 0.5) @ turn.T + shift)
            pen.line([tuple(p) for p in bezier(points)], 0, width, "curve")
        yield np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def bezier(points):
    """24 points of the Bezier curve of some control points (K, 2)."""
    t = np.linspace(0, 1, 24)[:, None, None]
    points = np.broadcast_to(points, (24, *points.shape))
    while points.shape[1] > 1:
        points = (1 - t) * points[:, :-1] + t * points[:, 1:]
    return points[:, 0]


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


def cached(path, make):
    """The array at `path` as a memory map, made once."""
    if not path.exists():
        temporary = path.with_name("incomplete.npy")
        np.save(temporary, make())
        os.replace(temporary, path)
    return np.load(path, mmap_mode="r")


def draw_all(images):
    return np.stack(
        [
            line_drawing(image, np.random.default_rng([0, i]))
            for i, image in enumerate(images)
        ]
    )


def teacher_features(weights, images):
    """Class tokens (N, 384) after 11 blocks, float16."""
    teacher = keras_smat.feature_backbone(
        str(weights), image_size=70, num_blocks=11
    )
    side = (70, 70)
    chunks = []
    for start in range(0, len(images), 256):
        batch = [
            Image.fromarray(image).convert("RGB").resize(side, Image.BICUBIC)
            for image in images[start : start + 256]
        ]
        chunk = teacher.predict_on_batch(np.stack(batch))
        chunks.append(np.asarray(chunk, "float16"))
    return np.concatenate(chunks)


def oriented_gradients(grey):
    """Histograms of the directions of edges, one per cell.

    Args:
        grey: float array (N, H, W) in [0, 1].

    Returns:
        float array (N, H / CELL * W / CELL * BINS). A direction and its
        opposite are one, so a negative has the histograms of its original.
        Cells are normalised by the edges of the 3 x 3 cells around them.
    """
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    strength = np.hypot(down, right)
    angle = np.arctan2(down, right) % np.pi / np.pi * BINS
    count, rows, columns = len(grey), *(side // CELL for side in grey.shape[1:])
    cells = np.empty((count, rows, columns, BINS), "float32")
    for b in range(BINS):
        distance = np.abs(angle - b)
        near = np.maximum(0, 1 - np.minimum(distance, BINS - distance))
        edges = (strength * near).reshape(count, rows, CELL, columns, CELL)
        cells[..., b] = edges.sum((2, 4))
    energy = (cells**2).sum(-1)
    padded = np.pad(energy, ((0, 0), (1, 1), (1, 1)), mode="edge")
    around = sum(
        padded[:, i : i + rows, j : j + columns]
        for i in range(3)
        for j in range(3)
    )
    floor = 0.05 * around.mean((1, 2), keepdims=True) + 1e-3
    return (cells / np.sqrt(around + floor)[..., None]).reshape(count, -1)


def whitening(kinds, labels, width, ridge=0.3):
    """A projection that makes classes compact: linear discriminant analysis.

    Args:
        kinds: Three float arrays (N, D), features of every kind of picture.
        labels: Three int arrays, their classes.
        width: int, dimensions to keep.
        ridge: float, added to the variances, relative to their mean.

    Returns:
        Function from features (N, D) and kinds (N,) to unit vectors (N,
        width). Each kind has its own center: what all drawings share would be
        half of each target, and says nothing of classes.
    """
    centers = np.stack([x.mean(0) for x in kinds])
    within, total = 0.0, 0.0
    # Drawings of photographs count half: their classes are hard to see.
    for share, x, y in zip((1.0, 0.5, 1.0), kinds, labels, strict=True):
        total += share * np.cov(x.T, bias=True)
        x = x.copy()
        for c in np.unique(y):
            x[y == c] -= x[y == c].mean(0)
        within += share * x.T @ x / len(x)
    values, vectors = np.linalg.eigh(within)
    white = vectors / np.sqrt(values + ridge * values.mean())
    axes = np.linalg.eigh(white.T @ total @ white)[1][:, ::-1][:, :width]
    projection = (white @ axes).astype("float32")
    return lambda x, kind: unit((x - centers[kind]) @ projection)


def feature_targets(teacher, pictures, labels):
    """The function that `Batches` asks for features.

    Args:
        teacher: Three arrays (N, 384), the teacher's features.
        pictures: Three uint8 arrays (N, 64, 64[, 3]).
        labels: int array, the classes of photographs.
    """
    kinds = labels, labels, np.repeat(np.arange(CHARACTERS), RENDERINGS)
    teacher = [x.astype("float32") for x in teacher]
    look = whitening(teacher, kinds, TEACHER_WIDTH)
    teacher = [look(x, kind) for kind, x in enumerate(teacher)]

    def some(array):  # Whole classes of characters, a quarter of each kind.
        return array[: len(array) // 4]

    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = np.sort(some(order))
    shapes = [
        oriented_gradients(grey / np.float32(255))
        for grey in (
            pictures[0][shuffled].mean(-1),
            pictures[1][shuffled],
            some(pictures[2]),
        )
    ]
    classes = labels[shuffled], labels[shuffled], some(kinds[2])
    shape = whitening(shapes, classes, WIDTH - TEACHER_WIDTH)

    def target(kinds, index, grey):
        look = np.stack(
            [teacher[k][i] for k, i in zip(kinds, index, strict=True)]
        )
        lines = shape(oriented_gradients(grey), kinds)
        return np.concatenate([look, SHAPE_WEIGHT * lines], axis=1)

    return target


def make_batches(arguments):
    out = arguments.out
    source = PackSource(arguments.data / "pretrain_tiny_imagenet.npz", SIZE)
    photographs = cached(out / "photographs.npy", lambda: source.images)
    pictures = {
        "photographs": photographs,
        "drawings": cached(out / "drawings.npy", lambda: draw_all(photographs)),
        "characters": cached(out / "characters.npy", draw_characters),
    }
    target = None
    if arguments.recipe == "distill":
        teacher = [
            cached(
                out / f"teacher_{name}.npy",
                functools.partial(teacher_features, arguments.weights, images),
            )
            for name, images in pictures.items()
        ]
        target = feature_targets(
            teacher, list(pictures.values()), source.labels
        )
    return Batches(
        arguments.recipe,
        list(pictures.values()),
        source.labels,
        target,
        arguments.batch_size,
        arguments.seed,
    )


def train(arguments):
    dataset = make_batches(arguments)
    keras.utils.set_random_seed(arguments.seed)
    backbone = build(pretrained=False)
    model = network(backbone, arguments.keep, arguments.recipe)
    if arguments.start is not None and arguments.start.suffix == ".npz":
        with np.load(arguments.start) as arrays:
            backbone.set_weights([arrays[n] for n in sorted(arrays.files)])
    elif arguments.start is not None:
        model.load_weights(arguments.start, skip_mismatch=True)
    total = arguments.epochs * len(dataset)
    warmup = round(0.05 * total)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        total - warmup,
        warmup_target=arguments.learning_rate,
        warmup_steps=warmup,
        alpha=0.01,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=0.05, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    shares = RECIPES[arguments.recipe]
    model.compile(
        optimizer,
        {name: LOSSES[name] for name in shares},
        loss_weights=shares,
        weighted_metrics={"logits": ["accuracy"]} if "logits" in shares else {},
    )
    dropout = next(x for x in model.layers if isinstance(x, TokenDropout))

    def all_tokens_at_last(epoch, logs):
        late = epoch >= arguments.epochs - arguments.full_epochs
        dropout.keep = 1.0 if late else arguments.keep
        model.make_train_function(force=True)

    log = arguments.out / f"{arguments.recipe}.csv"
    model.fit(
        dataset,
        epochs=arguments.epochs,
        shuffle=False,
        verbose=2,
        callbacks=[
            Validation(backbone, arguments.data, dataset),
            keras.callbacks.LambdaCallback(on_epoch_begin=all_tokens_at_last),
            keras_smat.callbacks.BackupAndRestore(
                arguments.out / f"{arguments.recipe}_backup"
            ),
            keras.callbacks.CSVLogger(str(log), append=log.exists()),
        ],
    )
    if arguments.export:
        arrays = {
            f"{i:03d}": np.asarray(value, "float16")
            for i, value in enumerate(backbone.get_weights())
        }
        np.savez_compressed(arguments.export, **arrays)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of packs")
    add("--weights", type=pathlib.Path, help="the teacher's, .npz")
    add("--out", type=pathlib.Path, required=True, help="folder of the run")
    add("--recipe", choices=RECIPES, default="distill")
    add("--start", type=pathlib.Path, help="of another run: .npz or .h5")
    add("--epochs", type=int, default=12)
    add("--full-epochs", type=int, default=1, help="last ones, all tokens")
    add("--keep", type=float, default=0.5, help="share of tokens kept")
    add("--batch-size", type=int, default=128)
    add("--learning-rate", type=float, default=1.5e-3)
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
