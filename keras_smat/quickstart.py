"""The main job, whole and offline: `python -m keras_smat.quickstart`.

It draws the demo domains, pretrains a small vision transformer on their
training classes, meta-tunes it with PMF and with SMAT, and compares both
with the frozen backbone on the same test episodes, in and out of domain.

The backbone is pretrained on the spot, for a minute or two, since the package
ships no weights yet: the accuracies are those of a toy, and say nothing about
the methods. `keras_smat.feature_backbone` takes real pretrained weights.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np

from keras_smat import data
from keras_smat import recipes
from keras_smat.backbones import feature_backbone
from keras_smat.evaluation import evaluate_few_shot
from keras_smat.learners import SMAT
from keras_smat.learners import ProtoNet

NOTE = (
    "The backbone was pretrained on the spot, for a minute or two: a toy. The "
    "table shows how the pieces fit, not how good a method is; differences "
    "within the intervals mean nothing."
)
MEASURE = "5-way 5-shot accuracy in percent ± 95 % confidence interval."
SAMPLER = data.FixedEpisodes(n_way=5, n_shot=5, n_query=10)


def main(argv=None):
    """Runs the quickstart.

    Args:
        argv: List of strings, the command line. Defaults to `None`, that of
            the process.

    Returns:
        A dict from the learner's name to its `FewShotReport`; shorter if the
        run was interrupted.

    Raises:
        SystemExit: on a wrong command line or `--out`, before any work.

    Example:

    ```python
    from keras_smat import quickstart

    reports = quickstart.main(["--out", "quickstart", "--steps", "100"])
    print(reports["SMAT"])
    ```
    """
    arguments = parse(argv)
    keras.utils.set_random_seed(arguments.seed)
    reports = {}
    try:
        run(arguments, reports)
    except KeyboardInterrupt:
        print(f"\nInterrupted: {len(reports)} of 3 learners were measured.")
    if reports:
        table = compare(reports)
        save(arguments.out, reports, table)
        print(f"\n{MEASURE}\n\n{table}\n\n{NOTE}\nSaved in {arguments.out}")
    return reports


def parse(argv):
    """Parses the command line and makes the output directory."""
    parser = argparse.ArgumentParser("python -m keras_smat.quickstart")
    parser.add_argument("--out", required=True, help="folder for the reports")
    parser.add_argument("--steps", type=int, default=150, help="episodes (150)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    out = arguments.out = pathlib.Path(arguments.out)
    for name, low in (("steps", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value < low:
            parser.error(f"Expected --{name} >= {low}. Received: {value}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        parser.error(
            "Expected --out as a directory that can be made and written to. "
            f"Received: {str(out)!r} ({error.strerror})"
        )
    return arguments


def run(arguments, reports):
    """Fills `reports`, one learner after the other."""
    steps, seed, smoke = arguments.steps, arguments.seed, arguments.smoke
    size, count = (16, 2) if smoke else (48, 100)
    print("Drawing the demo domains ...")
    domains = {s: data.demo_domains(s, size, seed) for s in ("train", "test")}
    print("Pretraining a small vision transformer on the spot, for a minute:")
    backbone = small_backbone(size, num_layers=1 if smoke else 3)
    pretrain(backbone, domains["train"], *((1, 100) if smoke else (20, None)))
    train = data.mix(episodes(domains["train"], steps, seed), None, steps, seed)
    test = episodes(domains["test"], count, seed)
    in_domain = [n for n, s in domains["test"].items() if s.role == "ID"]
    learners = {
        "Frozen": ProtoNet(backbone, max_way=5),
        "PMF": ProtoNet(backbone, trainable=True, max_way=5),
        "SMAT": SMAT(backbone, num_experts=4, max_way=5, seed=seed),
    }
    for name, learner in learners.items():
        if learner.trainable_variables:
            print(f"Meta-tuning {name}:")
            recipe = recipes.get("recommended", learner, total_steps=steps)
            learner.compile(**recipe)
            learner.fit(train)
        print(f"Evaluating {name}:")
        reports[name] = evaluate_few_shot(learner, test, in_domain, count)


def small_backbone(size, num_layers):
    """A narrow vision transformer with random weights."""
    import keras_hub

    transformer = keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3),
        patch_size=8,
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=64,
        mlp_dim=128,
    )
    return feature_backbone(
        transformer, pooling="mean", mean=0.5, std=0.25, name="small_vit"
    )


def pretrain(backbone, sources, epochs, limit=None, batch_size=64):
    """Trains the backbone in place to tell all training classes apart."""
    sources = list(sources.values())
    starts = np.cumsum([0, *(len(source.class_names) for source in sources)])
    labels = [s.labels + start for s, start in zip(sources, starts)]
    labels = np.concatenate(labels)[:limit]
    images = np.concatenate([source.images for source in sources])[:limit]
    steps = epochs * -(-len(images) // batch_size)
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=3e-3, warmup_steps=warmup
    )
    head = keras.layers.Dense(int(starts[-1]), activation="softmax")
    classifier = keras.Sequential([backbone, head])
    classifier.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.05),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    classifier.fit(images, labels, batch_size=batch_size, epochs=epochs)


def episodes(sources, count, seed):
    """One set of episodes per domain."""
    return {
        name: data.EpisodeDataset(source, SAMPLER, count, seed)
        for name, source in sources.items()
    }


def compare(reports):
    """A Markdown table: sets as rows, learners as columns."""
    first, *_ = reports.values()
    rows = [["set", "role", *reports]]
    for name in first.results:
        cells = [_percent(r.results[name]) for r in reports.values()]
        rows.append([name, first.role(name), *cells])
    for name in first.averages:
        cells = [_percent(r.averages[name]) for r in reports.values()]
        rows.append(["average", "ID" if name == "in_domain" else "OOD", *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def _percent(result):
    return f"{100 * result.accuracy:.1f} ± {100 * result.ci95:.1f}"


def save(out, reports, table):
    """Writes `report.md` and one `report_<learner>.json` for each."""
    for name, report in reports.items():
        report.save(out / f"report_{name.lower()}.json")
    text = f"# Quickstart\n\n{MEASURE}\n\n{table}\n\n{NOTE}\n"
    (out / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
