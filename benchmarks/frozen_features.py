"""Few-shot accuracy of frozen features: raw pixels, vit_mini, a ViT-S/14.

    python benchmarks/frozen_features.py --data DIR --weights FILE --out DIR

Every pack is shrunk to 64 px. The same 600 5-way 5-shot episodes, with 10
queries per class, are replayed on the features of each model: for the
in-domain sets on validation and on test classes, for the others on all
classes. Each image is embedded once. `--weights` is a pretrained ViT-S/14,
which sees the shrunk images enlarged to 70 px and is cut after 11 blocks.
"""

import argparse
import json
import os
import pathlib
import platform

import keras
import numpy as np
from packs import PackSource
from PIL import Image

import keras_smat
from keras_smat import data

SIZE = 64


def pack_sets(data_dir, split, count, roles=("id", "ood")):
    """`{name: (images, episodes)}`: one split of the packs at 64 px.

    Args:
        data_dir: Path of the folder of packs.
        split: `"val"` or `"test"`.
        count: Integer, episodes per set.
        roles: Tuple of the roles to include.

    Returns:
        Dict from names to pairs of a uint8 array (N, 64, 64, 3) and a list
        of episodes as index arrays. Sets with less than 5 classes are left
        out.
    """
    splits = json.loads((data_dir / "splits.json").read_text())["datasets"]
    sampler = data.FixedEpisodes(n_way=5, n_shot=5, n_query=10)
    sets = {}
    for name, entry in splits.items():
        classes = entry["classes"][split]
        if entry["role"] not in roles or len(classes) < sampler.n_way:
            continue
        source = PackSource(data_dir / f"{name}.npz", SIZE).subset(classes)
        episodes = data.EpisodeDataset(source, sampler, count, seed=0)
        images = source.load(np.arange(len(source.labels)))
        sets[name] = images, [episodes.indices(i) for i in range(count)]
    return sets


def prototype_accuracies(features, episodes):
    """Accuracy of the nearest class mean by cosine, one per episode."""
    features = np.asarray(features, "float32")
    accuracies = []
    for episode in episodes:
        labels = episode["support_labels"]
        members = np.eye(labels.max() + 1, dtype="float32")[:, labels]
        prototypes = unit(members @ features[episode["support"]])
        predicted = np.argmax(
            unit(features[episode["query"]]) @ prototypes.T, axis=1
        )
        accuracies.append(np.mean(predicted == episode["query_labels"]))
    return np.array(accuracies)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def raw_pixels(images):
    # Centred: the cosine of all-positive vectors says little.
    pixels = images.reshape(len(images), -1) / np.float32(255)
    return pixels - pixels.mean(0)


def embed(backbone, images):
    size = backbone.input_shape[1]
    if size != images.shape[1]:
        images = np.stack(
            [
                Image.fromarray(i).resize(
                    (size, size), Image.Resampling.BICUBIC
                )
                for i in images
            ]
        )
    return backbone.predict(images, batch_size=128, verbose=0)


def models(arguments):
    """Functions from images (N, 64, 64, 3) to features, by title."""
    mini = keras_smat.feature_backbone("vit_mini")
    small = keras_smat.feature_backbone(
        str(arguments.weights), image_size=70, num_blocks=11
    )
    return {
        "raw pixels": raw_pixels,
        "vit_mini": lambda images: embed(mini, images),
        "ViT-S/14, 11 blocks": lambda images: embed(small, images),
    }


def measure(arguments):
    """Flat rows: model, dataset, role, split, accuracy, ci95, episodes."""
    rows = []
    embedders = models(arguments)
    for split, roles in (
        ("val", ("id",)),
        ("test", ("id", "ood", "ood_extra")),
    ):
        sets = pack_sets(arguments.data, split, arguments.episodes, roles)
        splits = json.loads((arguments.data / "splits.json").read_text())
        for name, (images, episodes) in sets.items():
            for model, features_of in embedders.items():
                result = keras_smat.FewShotResult(
                    prototype_accuracies(features_of(images), episodes)
                )
                rows.append(
                    {
                        "model": model,
                        "dataset": name,
                        "role": splits["datasets"][name]["role"],
                        "split": split,
                        "accuracy": round(result.accuracy, 6),
                        "ci95": round(result.ci95, 6),
                        "num_episodes": len(episodes),
                    }
                )
            print(*(f"{r['accuracy']:.3f}" for r in rows[-3:]), split, name)
    return rows


def table(rows):
    """Markdown: sets as rows, models as columns, averages per split."""
    titles = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(r["split"], r["role"], r["dataset"], r["model"]): r for r in rows}
    groups = list(dict.fromkeys(key[:2] for key in cells))
    lines = [["classes", "role", "set", *titles]]
    lines.append(["---"] * len(lines[0]))
    for group in groups:
        names = dict.fromkeys(k[2] for k in cells if k[:2] == group)
        for name in names:
            found = [cells[(*group, name, title)] for title in titles]
            accuracies = [
                f"{100 * r['accuracy']:.1f} ± {100 * r['ci95']:.1f}"
                for r in found
            ]
            lines.append([*group, name, *accuracies])
        means = [
            np.mean([cells[(*group, name, t)]["accuracy"] for name in names])
            for t in titles
        ]
        lines.append(
            [*group, "**average**", *(f"{100 * m:.1f}" for m in means)]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of packs")
    add("--weights", type=pathlib.Path, required=True, help="ViT-S/14, .npz")
    add("--out", type=pathlib.Path, required=True, help="folder of results")
    add("--episodes", type=int, default=600)
    arguments = parser.parse_args()
    rows = measure(arguments)
    header = {
        "what": "5-way 5-shot nearest prototype by cosine, 10 queries per "
        "class, frozen features, images shrunk to 64 px, seed 0",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "backend": keras.backend.backend(),
        "precision": "float32",
        "weights": arguments.weights.name,
    }
    path = arguments.out / "frozen_features"
    path.with_suffix(".json").write_text(
        json.dumps({"header": header, "rows": rows}, indent=1) + "\n"
    )
    text = f"# Frozen features\n\n{table(rows)}\n\n"
    text += "Accuracy in %, ± 95 % confidence interval. The packs are a small "
    text += "stand-in for Meta-Dataset: the figures must not be compared with "
    text += f"published ones.\n\n```json\n{json.dumps(header, indent=1)}\n```\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
