"""Pretrains `vit_mini`, the backbone inside the package.

    python benchmarks/pretrain_vit_mini.py --data DIR --weights FILE --out DIR

A ViT of 3.6 M parameters at 64 px learns from Tiny ImageNet's 130 meta-training
classes (`pretrain_tiny_imagenet.npz` in DIR), as photographs and as line
drawings made of them, and tells drawn characters apart, random strokes that
belong to no alphabet. `--recipe supervised` tells the classes apart.
`--recipe distill` adds a teacher, the first 11 blocks of a pretrained ViT-S/14
(FILE): the student's features shall point where the teacher's do, after these
were whitened within classes and cut to the student's width. The teacher sees
every picture once. Most epochs drop half of the tokens, which halves their
cost; the last ones see all.

After every epoch it measures nearest-prototype accuracy on validation classes.
An interrupted run continues where it was. `--export` writes the weights as
float16 in the form that the package ships.
"""

import argparse
import functools
import os
import pathlib

import keras
import numpy as np
from frozen_features import pack_sets
from frozen_features import prototype_accuracies
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


def classifier(backbone, keep):
    """Images to class logits, twice, and features."""
    embed, encode = backbone.layers[1:]
    images = keras.Input((SIZE, SIZE, 3), name="images")
    tokens = encode(TokenDropout(keep)(embed(images)))
    same = functools.partial(keras.layers.Identity, dtype="float32")
    features = same(name="features")(tokens[:, 0])
    logits = keras.layers.Dense(CLASSES, name="logits", dtype="float32")
    logits = logits(features)
    characters = keras.layers.Dense(
        CHARACTERS, name="characters", dtype="float32"
    )
    return keras.Model(
        images,
        {
            "logits": logits,
            "characters": characters(features),
            "soft": same(name="soft")(logits),
            "features": features,
        },
    )


def soft_loss(teacher, logits):
    """KL divergence to the teacher's class probabilities, up to a constant."""
    return -ops.sum(teacher * ops.log_softmax(logits), axis=-1)


def feature_loss(teacher, features):
    """1 - cosine."""
    return 1.0 - ops.sum(
        ops.normalize(teacher, axis=-1) * ops.normalize(features, axis=-1), -1
    )


class Batches(keras.utils.PyDataset):
    """Augmented batches; batch i of an epoch is a function of the seed."""

    def __init__(
        self, photographs, drawings, characters, labels, teacher, batch, seed
    ):
        super().__init__()
        self.photographs, self.drawings = photographs, drawings
        self.characters = characters
        self.labels, self.teacher = labels, teacher
        self.batch, self.seed = batch, seed
        self.epoch = 0

    def __len__(self):
        return len(self.labels) // self.batch

    @functools.lru_cache(maxsize=1)
    def order(self, epoch):
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(len(self.labels))

    def __getitem__(self, i):
        chosen = self.order(self.epoch)[i * self.batch : (i + 1) * self.batch]
        rng = np.random.default_rng([self.seed, self.epoch, i])
        # Photographs, drawings of photographs, and characters.
        kinds = rng.choice(3, self.batch, p=[0.5, 0.2, 0.3])
        images = self.photographs[chosen]
        drawn, written = kinds == 1, kinds == 2
        images[drawn] = self.drawings[chosen[drawn]][..., None]
        character = rng.integers(len(self.characters), size=self.batch)
        images[written] = self.characters[character[written]][..., None]
        labels = np.full((self.batch, CLASSES), 0.1 / CLASSES, "float32")
        labels[np.arange(self.batch), self.labels[chosen]] += 0.9
        targets = {"logits": labels, "characters": character // RENDERINGS}
        if self.teacher is not None:
            kind = drawn.astype(int)
            targets["soft"] = self.teacher["soft"][kind, chosen]
            targets["features"] = self.teacher["features"][kind, chosen]
        weights = {name: (~written).astype("float32") for name in targets}
        weights["characters"] = written.astype("float32")
        return augment(images, kinds > 0, rng), targets, weights


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


def targets_of(photographs, drawings, labels):
    """Targets of both kinds of picture, from the teacher's features.

    Args:
        photographs: array (N, 384).
        drawings: array (N, 384), of the same images.
        labels: int array (N,).

    Returns:
        Dict of `features` (2, N, WIDTH), whitened within the classes of the
        photographs and projected on their first principal axes, and `soft`
        (2, N, C), class probabilities by linear discriminant analysis.
    """
    photographs = photographs.astype("float32")
    mean = photographs.mean(0)
    within = photographs.copy()
    for c in range(CLASSES):
        within[labels == c] -= photographs[labels == c].mean(0)
    values, vectors = np.linalg.eigh(within.T @ within / len(within))
    whitening = vectors / np.sqrt(values + 0.3 * values.mean())
    white = (photographs - mean) @ whitening
    axes = np.linalg.eigh(white.T @ white)[1][:, ::-1][:, :WIDTH]
    projection = whitening @ axes
    kinds = [(x.astype("float32") - mean) @ projection
             for x in (photographs, drawings)]  # fmt: skip
    return {
        "features": np.stack(kinds),
        "soft": np.stack([soft_labels(kind, labels) for kind in kinds]),
    }


def soft_labels(features, labels):
    """Class probabilities, out of fold: no image teaches itself."""
    logits = np.empty((len(features), CLASSES), "float32")
    fold = np.random.default_rng(0).integers(0, 5, len(features))
    for k in range(5):
        means = [
            features[(labels == c) & (fold != k)].mean(0)
            for c in range(CLASSES)
        ]
        means = np.stack(means)
        logits[fold == k] = features[fold == k] @ means.T - 0.5 * (
            means**2
        ).sum(1)
    accuracy = (logits.argmax(1) == labels).mean()
    print(f"teacher: out-of-fold accuracy {accuracy:.3f}", flush=True)
    logits -= logits.max(1, keepdims=True)

    def loss(scale):
        normalizer = np.log(np.exp(scale * logits).sum(1))
        own = logits[np.arange(len(labels)), labels]
        return (normalizer - scale * own).mean()

    soft = np.exp(min(np.geomspace(0.02, 2, 20), key=loss) * logits)
    return soft / soft.sum(1, keepdims=True)


def make_batches(arguments):
    out = arguments.out
    source = PackSource(arguments.data / "pretrain_tiny_imagenet.npz", SIZE)
    photographs = cached(out / "photographs.npy", lambda: source.images)
    drawings = cached(out / "drawings.npy", lambda: draw_all(photographs))
    characters = cached(out / "characters.npy", draw_characters)
    teacher = None
    if arguments.recipe == "distill":
        features = [
            cached(
                out / f"teacher_{name}.npy",
                lambda: teacher_features(arguments.weights, images),
            )
            for name, images in (
                ("photographs", photographs),
                ("drawings", drawings),
            )
        ]
        teacher = targets_of(*features, source.labels)
    return Batches(
        photographs,
        drawings,
        characters,
        source.labels,
        teacher,
        arguments.batch_size,
        arguments.seed,
    )


def train(arguments):
    dataset = make_batches(arguments)
    keras.utils.set_random_seed(arguments.seed)
    backbone = build(pretrained=False)
    model = classifier(backbone, arguments.keep)
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
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    same = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"logits": cross_entropy, "characters": same}
    shares = {"logits": 1.0, "characters": 1.0}
    if dataset.teacher is not None:
        losses.update(soft=soft_loss, features=feature_loss)
        shares = {
            "logits": 0.1, "soft": 0.1, "features": 1.0, "characters": 0.3,
        }  # fmt: skip
    model.compile(
        optimizer,
        losses,
        loss_weights=shares,
        weighted_metrics={"logits": ["accuracy"], "characters": ["accuracy"]},
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
    add("--recipe", choices=("supervised", "distill"), default="distill")
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
