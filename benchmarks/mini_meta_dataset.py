"""SMAT and its baselines on a small many-domain benchmark.

Meta-trains on the training classes of the in-domain packs, then tests on the
test classes of these and on domains that were never seen. The packs stand in
for Meta-Dataset and are not it: compare the figures with each other only.

    python benchmarks/mini_meta_dataset.py --data DIR --weights vit_mini \
        --image-size 64 --out DIR --search --fine-tuned-episodes 25

`--data` holds one `.npz` per data set (`data`: encoded images one after the
other, `offsets`, `labels`, `class_names`) and `splits.json`. The same command
again goes on where it was killed and skips what is finished. Several processes
may train into one folder, each its own `--learners`, with `--train-only`.
"""

import argparse
import csv
import json
import os
import pathlib
import platform
import sys
import time

import keras
from packs import PackSource

import keras_smat
from keras_smat import data

FROZEN, PMF, SMAT, SOFT_MERGE = "frozen", "pmf", "smat", "soft_merge"
TITLES = {
    FROZEN: "frozen ProtoNet",
    PMF: "PMF",
    SOFT_MERGE: "SoftMerge",
    SMAT: "SMAT",
}
NOTE = (
    "The packs are a small stand-in for Meta-Dataset: the figures must not be "
    "compared with published ones. Weights are those after the last epoch."
)


class Clock(keras.callbacks.Callback):
    """Sums the training time over restarts, and ends it after a budget."""

    def __init__(self, path, minutes=None):
        super().__init__()
        self.path = path
        self.minutes = minutes
        self.seconds = read_json(path)["seconds"] if path.exists() else 0.0

    def on_train_begin(self, logs=None):
        self.last = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now
        write_json(
            self.path, {"epochs": epoch + 1, "seconds": round(self.seconds, 1)}
        )
        if self.minutes is not None and self.seconds > 60 * self.minutes:
            self.model.stop_training = True


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of packs")
    add("--weights", required=True, help="backbone: a preset or an .npz file")
    add("--out", type=pathlib.Path, required=True, help="folder of results")
    add("--learners", default="pmf,soft_merge,smat", help="frozen is added")
    add("--image-size", type=int, default=70, help="a multiple of the patch")
    add("--num-blocks", type=int, help="first ones of the backbone, else all")
    add("--epochs", type=int, default=20)
    add("--episodes-per-epoch", type=int, default=100)
    add("--validation-episodes", type=int, default=20, help="after each epoch")
    add("--eval-episodes", type=int, default=600, help="per test set")
    add("--search", action="store_true", help="SMAT with ExpertSearch too")
    add(
        "--fine-tuned-episodes",
        type=int,
        default=0,
        help="per test set: the first ones, for each learner as it is, with "
        "FullFineTune and with LoRAFineTune",
    )
    add("--processes", type=int, default=1, help="of the evaluation")
    add("--train-only", action="store_true", help="no evaluation")
    add("--way", type=int, default=5)
    add("--shot", type=int, default=5)
    add("--eval-shot", type=int, help="of test episodes, else as in training")
    add("--query", type=int, default=15, help="queries per class")
    add("--num-experts", type=int, default=8)
    add("--recipe", default="recommended", choices=keras_smat.recipes.NAMES)
    add(
        "--learning-rates",
        default="",
        help="such as pmf=1e-4,smat=1e-3, in the place of the recipe's",
    )
    add(
        "--precision",
        default="float32",
        help="dtype policy, such as mixed_bfloat16",
    )
    add("--seed", type=int, default=0)
    add(
        "--time-budget",
        type=float,
        help="minutes of training per learner, after which it ends early",
    )
    arguments = parser.parse_args()
    arguments.learners = arguments.learners.split(",")
    if not set(arguments.learners) <= set(TITLES):
        parser.error(f"--learners: expected some of {','.join(TITLES)}")
    return arguments


def fail(message):
    print(message, file=sys.stderr)
    sys.exit(2)


def read_json(path):
    return json.loads(path.read_text("utf-8"))


def write_text(path, text):
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_splits(arguments):
    """Returns `{name: entry}` of the sets to use, all files being there."""
    needed = [arguments.data / "splits.json"]
    if arguments.weights.endswith(".npz"):
        needed.append(pathlib.Path(arguments.weights))
    missing = [path for path in needed if not path.is_file()]
    splits = {}
    if not missing:
        splits = read_json(arguments.data / "splits.json")["datasets"]
        splits = {
            name: entry
            for name, entry in splits.items()
            if entry["role"] in ("id", "ood")
        }
        splits = dict(sorted(splits.items(), key=lambda s: s[1]["role"]))
        packs = [arguments.data / f"{name}.npz" for name in splits]
        missing = [path for path in packs if not path.is_file()]
    if missing:
        fail("missing: " + ", ".join(str(path) for path in missing))
    return splits


def check_settings(arguments):
    """Refuses to go on with a run that was started with other settings."""
    free = (
        "data out learners time_budget eval_episodes search processes "
        "fine_tuned_episodes train_only"
    ).split()
    settings = {k: v for k, v in vars(arguments).items() if k not in free}
    settings["weights"] = pathlib.Path(arguments.weights).name
    settings["backend"] = keras.backend.backend()
    settings["precision"] = keras.config.dtype_policy().name
    path = arguments.out / "settings.json"
    if path.exists():
        before = read_json(path)
        changed = [k for k in settings if before.get(k) != settings[k]]
        if changed:
            fail(
                f"{arguments.out} holds a run with other settings: "
                + ", ".join(
                    f"{k}={before.get(k)!r}, now {settings[k]!r}"
                    for k in changed
                )
            )
    write_json(path, settings)
    return settings


def make_episodes(arguments, splits):
    """Returns training and validation mixtures and a dict of test sets."""
    way, shot, query = arguments.way, arguments.shot, arguments.query
    sampler = data.FixedEpisodes(way, shot, query)
    test_sampler = data.FixedEpisodes(way, arguments.eval_shot or shot, query)
    sets = {"train": {}, "val": {}, "test": {}}
    for name, entry in splits.items():
        source = PackSource(
            arguments.data / f"{name}.npz", arguments.image_size
        )
        for split in sets if entry["role"] == "id" else ["test"]:
            try:
                sets[split][name] = data.EpisodeDataset(
                    source.subset(entry["classes"][split]),
                    test_sampler if split == "test" else sampler,
                    num_episodes=arguments.eval_episodes,
                    seed=arguments.seed,
                )
            except ValueError as error:
                print(f"skipped the {split} split of {name}: {error}")
    if not all(sets.values()):
        fail("no data set is left for one of " + ", ".join(sets))
    train = data.mix(
        sets["train"],
        num_episodes=arguments.episodes_per_epoch,
        seed=arguments.seed + 1,
    )
    validation = data.mix(
        sets["val"],
        num_episodes=arguments.validation_episodes,
        seed=arguments.seed + 2,
    )
    return train, validation, sets["test"]


def make_learner(name, arguments, backbone):
    """Returns the learner and its arguments."""
    keras.utils.set_random_seed(arguments.seed)
    settings = {"max_way": arguments.way}
    if name == SMAT:
        settings.update(
            keras_smat.recipes.learner_arguments(arguments.recipe),
            num_experts=arguments.num_experts,
            seed=arguments.seed,
        )
        return keras_smat.SMAT(backbone, **settings), settings
    if name == SOFT_MERGE:
        settings.update(num_experts=arguments.num_experts, seed=arguments.seed)
        return keras_smat.SoftMerge(backbone, **settings), settings
    settings["trainable"] = name == PMF
    return keras_smat.ProtoNet(backbone, **settings), settings


def train_learner(name, learner, arguments, train, validation):
    """Trains or loads the learner; returns what there is to say about it."""
    out = arguments.out
    weights = out / f"{name}.weights.h5"
    record = out / f"{name}.training.json"
    total = arguments.epochs * arguments.episodes_per_epoch
    rates = dict(r.split("=") for r in arguments.learning_rates.split(",") if r)
    recipe = keras_smat.recipes.get(
        arguments.recipe,
        learner,
        total,
        float(rates[name]) if name in rates else None,
    )
    learner.compile(**recipe)
    if record.exists():
        learner.load_weights(weights)
        print(f"{name}: trained before")
        return read_json(record)
    clock = Clock(out / f"{name}.clock.json", arguments.time_budget)
    learner.fit(
        train,
        epochs=arguments.epochs,
        validation_data=validation,
        verbose=2,
        callbacks=[
            keras_smat.callbacks.BackupAndRestore(out / f"{name}.backup"),
            keras.callbacks.CSVLogger(str(out / f"{name}.csv"), append=True),
            clock,
        ],
    )
    temporary = out / f"incomplete_{name}.weights.h5"
    learner.save_weights(temporary, overwrite=True)
    os.replace(temporary, weights)
    done = read_json(clock.path)
    result = {
        "steps": done["epochs"] * arguments.episodes_per_epoch,
        "planned_steps": total,
        "seconds": done["seconds"],
        "last_epoch": last_row(out / f"{name}.csv"),
    }
    if name == SMAT:
        zeros = keras.ops.convert_to_numpy(learner.experts.measured_sparsity())
        result["share_of_zeros"] = [round(float(z), 6) for z in zeros]
    write_json(record, result)
    return result


def load_run(arguments, names):
    """What other studies need of a finished run.

    Args:
        arguments: with the attributes `run` (the folder of the run), `data`,
            `weights` and `episodes` (per test set).
        names: List of learners.

    Returns:
        Tuple of a dict of learners, a dict of test sets and the names of the
        sets in domain.
    """
    settings = argparse.Namespace(**read_json(arguments.run / "settings.json"))
    settings.data, settings.weights = arguments.data, arguments.weights
    settings.eval_episodes = arguments.episodes
    keras.config.set_dtype_policy(settings.precision)
    splits = read_splits(settings)
    backbone = keras_smat.feature_backbone(
        settings.weights,
        image_size=settings.image_size,
        num_blocks=settings.num_blocks,
    )
    learners = {}
    for name in names:
        learners[name], _ = make_learner(name, settings, backbone)
        if name != FROZEN:
            learners[name].load_weights(arguments.run / f"{name}.weights.h5")
    tests = make_episodes(settings, splits)[-1]
    return learners, tests, [n for n in tests if splits[n]["role"] == "id"]


def last_row(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))[-1]


def adapted(methods, adapters):
    """All pairs of learners and adapters, and the learners by themselves."""
    pairs = {}
    for name, learner in methods.items():
        pairs[name] = learner
        for title, adapter in adapters.items():
            pairs[f"{name} + {title}"] = learner, adapter
    return pairs


def questions(methods):
    """Pairs that are compared: those that differ by one thing.

    SMAT with every other learner under the same adapter, and every adapter
    with none. The other learners among themselves are no question of ours.
    """
    parts = {name: tuple(name.split(" + ")) for name in methods}
    smat = TITLES[SMAT]
    pairs = []
    for name, (learner, *adapter) in parts.items():
        if adapter:
            pairs.append((name, learner))
        same = " + ".join([smat, *adapter])
        if learner != smat and same in parts:
            pairs.append((same, name))
    return pairs


def write_results(path, header, report):
    """Writes the report as `.json`, `.html` and `.md`, stamped."""
    for suffix in (".json", ".html", ".md"):
        report.save(path.with_suffix(suffix))
    path = path.with_suffix(".md")
    text = path.read_text("utf-8")
    zeros = header["training"].get(SMAT, {}).get("share_of_zeros")
    if zeros:
        shares = ", ".join(f"{100 * z:.2f}" for z in zeros)
        text += f"\nShare of zeros of each SMAT expert, in %: {shares}.\n"
    stamp = json.dumps(header, indent=1, allow_nan=False)
    write_text(path, f"{text}\n{NOTE}\n\n```json\n{stamp}\n```\n")
    print(f"\n{report}\n\nwritten: {path}")


def main():
    arguments = parse_arguments()
    keras.config.set_dtype_policy(arguments.precision)
    splits = read_splits(arguments)
    try:
        backbone = keras_smat.feature_backbone(
            arguments.weights,
            image_size=arguments.image_size,
            num_blocks=arguments.num_blocks,
        )
    except ValueError as error:
        fail(str(error))
    train, validation, tests = make_episodes(arguments, splits)
    in_domain = [n for n in tests if splits[n]["role"] == "id"]
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    settings = check_settings(arguments)
    header = {
        "note": NOTE,
        "settings": settings,
        "training_sets": train.names,
        "backbone_parameters": backbone.count_params(),
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        "device": str(keras.ops.zeros(1).device),
        "learners": {},
        "training": {},
    }
    methods = {}
    for name in [FROZEN, *(n for n in arguments.learners if n != FROZEN)]:
        learner, chosen = make_learner(name, arguments, backbone)
        header["learners"][name] = chosen
        if name != FROZEN:
            header["training"][name] = train_learner(
                name, learner, arguments, train, validation
            )
        methods[TITLES[name]] = learner
    if arguments.train_only:
        return
    compared = dict(methods)
    if arguments.search and TITLES[SMAT] in methods:
        search = keras_smat.ExpertSearch()
        compared |= adapted(
            {TITLES[SMAT]: methods[TITLES[SMAT]]}, {"ExpertSearch": search}
        )
    fine_tuning = {
        "FullFineTune": keras_smat.FullFineTune(),
        "LoRAFineTune": keras_smat.LoRAFineTune(),
    }
    for stem, pairs, count in (
        (
            "fine_tuning",
            adapted(methods, fine_tuning),
            arguments.fine_tuned_episodes,
        ),
        ("mini_meta_dataset", compared, arguments.eval_episodes),
    ):
        if count:
            report = keras_smat.evaluate_benchmark(
                pairs,
                tests,
                in_domain,
                count,
                folder=out / f"{stem}.parts",
                processes=arguments.processes,
                pairs=questions(pairs),
            )
            write_results(out / stem, header, report)


if __name__ == "__main__":
    main()
