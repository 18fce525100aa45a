"""The main job, whole and offline: `python -m keras_smat.quickstart`.

It draws the demo domains, meta-tunes `vit_mini` on their training classes with
PMF and with SMAT, compares both with the frozen backbone on the same test
episodes, in and out of domain, and writes a report.
`tutorials/01_quickstart.py` goes the same way step by step.
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile
import time

import keras
import numpy as np

from keras_smat import data
from keras_smat import quickstart_page
from keras_smat import recipes
from keras_smat.backbones import feature_backbone
from keras_smat.evaluation import evaluate_few_shot
from keras_smat.learners import SMAT
from keras_smat.learners import ProtoNet


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides how long a run takes and how exact its figures are.

    Attributes:
        image_size: int, height and width in pixels.
        way: int, classes of an episode.
        shot: int, support images of each class.
        query: int, query images of each class.
        steps: int, training episodes of each learner, a multiple of epochs.
        epochs: int, points of a learning curve.
        validation_episodes: int, after each epoch.
        test_episodes: int, of each test set.
        num_experts: int, of SMAT.
        target_sparsity: float, share of zeros of every expert. Chosen on
            validation classes, as the rates: in so few steps, experts that
            are sparser learn less.
        pmf_rate: float, learning rate.
        smat_rate: float, learning rate of the experts' delta.
        merging_episodes: int, of each test set, for the merging weights.
        pictures: int, test sets of each role whose first episode is shown.
    """

    image_size: int = 64
    way: int = 5
    shot: int = 5
    query: int = 5
    steps: int = 80
    epochs: int = 4
    validation_episodes: int = 8
    test_episodes: int = 16
    num_experts: int = 8
    target_sparsity: float = 0.25
    pmf_rate: float = 4e-4
    smat_rate: float = 6e-4
    merging_episodes: int = 5
    pictures: int = 2

    def __post_init__(self):
        if self.steps < 1 or self.steps % self.epochs:
            raise ValueError(
                "Expected `steps` as a positive multiple of `epochs`. "
                f"Received: steps={self.steps}, epochs={self.epochs}"
            )


SMOKE = Settings(
    image_size=16, epochs=2, validation_episodes=1, test_episodes=2
)
BACKBONE_NOTE = (
    "The backbone is vit_mini, the small transformer inside the package; real "
    "work starts from a larger one."
)


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
    settings = SMOKE if arguments.smoke else Settings()
    if arguments.steps:
        epochs = min(settings.epochs, arguments.steps)
        steps = arguments.steps - arguments.steps % epochs
        settings = dataclasses.replace(settings, steps=steps, epochs=epochs)
    keras.utils.set_random_seed(arguments.seed)
    record = quickstart_page.Record([], BACKBONE_NOTE)
    start = time.perf_counter()
    try:
        run(settings, arguments.seed, record)
    except KeyboardInterrupt:
        record.interrupted = True
    seconds = time.perf_counter() - start
    record.protocol.append(
        f"It took {seconds:.0f} seconds on {os.cpu_count()} CPU cores with "
        f"the {keras.backend.backend()} backend."
    )
    text = quickstart_page.save(arguments.out, record)
    print(f"\n{text}\nOpen {arguments.out / 'report.html'} in a browser.")
    return record.reports


def parse(argv):
    """Parses the command line and makes the output directory."""
    parser = argparse.ArgumentParser("python -m keras_smat.quickstart")
    parser.add_argument("--out", required=True, help="folder for the reports")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"training episodes of each learner ({Settings.steps}), rounded "
        f"down to a multiple of {Settings.epochs}",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of images, episodes and training"
    )
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.out:
        parser.error("Expected --out as a directory. Received: ''")
    out = arguments.out = pathlib.Path(arguments.out)
    for name, low in (("steps", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not low <= value < 2**32:
            parser.error(
                f"Expected --{name} >= {low} and below 2^32. Received: {value}"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        parser.error(
            "Expected --out as a directory that can be made and written to. "
            f"Received: {str(out)!r} ({error.strerror})"
        )
    return arguments


def run(settings, seed, record):
    """Fills the record, one learner after the other."""
    print("Drawing the demo domains ...")
    size, steps = settings.image_size, settings.steps
    domains = {
        split: data.demo_domains(split, size, seed)
        for split in ("train", "validation", "test")
    }
    per_epoch = steps // settings.epochs
    sampler = data.FixedEpisodes(settings.way, settings.shot, settings.query)

    def episodes(split, count):
        return {
            name: data.EpisodeDataset(source, sampler, count, seed)
            for name, source in domains[split].items()
        }

    train = data.mix(episodes("train", per_epoch), None, per_epoch, seed)
    validation = settings.validation_episodes
    validation = data.mix(
        episodes("validation", validation), None, validation, seed
    )
    test = episodes("test", settings.test_episodes)
    in_domain = [n for n, s in domains["test"].items() if s.role == "ID"]
    pretrained = feature_backbone("vit_mini", image_size=size)
    learners = make_learners(pretrained, settings, seed)
    describe(record, settings, learners, train, seed)
    frozen = evaluate_few_shot(
        learners["Frozen"],
        validation,
        num_episodes=len(validation),
        verbose=0,
    ).results["episodes"]
    record.curves["Frozen"] = {
        "steps": [0, steps],
        "training": [],
        "validation": [frozen.accuracy] * 2,
    }
    rates = {"PMF": settings.pmf_rate, "SMAT": settings.smat_rate}
    for name, learner in learners.items():
        monitor = Monitor(name, record)
        if learner.trainable_variables:
            print(f"Meta-tuning {name}:")
            recipe = recipes.get("recommended", learner, steps, rates[name])
            learner.compile(**recipe)
            learner.fit(
                train,
                epochs=settings.epochs,
                validation_data=validation,
                callbacks=[monitor],
            )
        print(f"Evaluating {name}:")
        record.reports[name] = evaluate_few_shot(
            learner, test, in_domain, settings.test_episodes
        )
    look_inside(learners["SMAT"], test, settings, record)


def make_learners(pretrained, settings, seed):
    """The three learners, by name."""
    return {
        "Frozen": ProtoNet(pretrained, max_way=settings.way),
        "PMF": ProtoNet(pretrained, trainable=True, max_way=settings.way),
        "SMAT": SMAT(
            pretrained,
            num_experts=settings.num_experts,
            target_sparsity=settings.target_sparsity,
            max_way=settings.way,
            seed=seed,
        ),
    }


def describe(record, settings, learners, train, seed):
    """Says in the record what is run."""
    parameters = learners["Frozen"].backbone.count_params()
    record.target_sparsity = settings.target_sparsity
    record.protocol += [
        f"Backbone {learners['Frozen'].backbone.name}, {parameters:,} "
        f"parameters, images of {settings.image_size} x "
        f"{settings.image_size} pixels.",
        f"PMF and SMAT ({settings.num_experts} experts, "
        f"{100 * settings.target_sparsity:g} % zeros each) were meta-tuned on "
        f"{settings.steps} episodes of the training classes of "
        f"{', '.join(train.names)} with the recommended recipe, PMF at a "
        f"learning rate of {settings.pmf_rate:g} and SMAT of "
        f"{settings.smat_rate:g}; measured are the weights after the last "
        "step.",
        f"Every episode is {settings.way}-way {settings.shot}-shot with "
        f"{settings.query} queries per class; all learners see the same "
        f"{settings.test_episodes} test episodes of every set, of classes "
        f"that were not trained on; chance is {100 / settings.way:g} %.",
        f"Seed {seed} for images, episodes and training.",
    ]


class Monitor(keras.callbacks.Callback):
    """Writes curves and sparsity into the record after every epoch."""

    def __init__(self, name, record):
        super().__init__()
        self.record = record
        self.curves = {"steps": [], "training": [], "validation": []}
        self.name = name

    def on_train_begin(self, logs=None):
        self._keep_sparsity(0)

    def on_epoch_end(self, epoch, logs=None):
        self.record.curves[self.name] = self.curves
        step = (epoch + 1) * self.params["steps"]
        self.curves["steps"].append(step)
        self.curves["training"].append(float(logs["accuracy"]))
        self.curves["validation"].append(float(logs["val_accuracy"]))
        self._keep_sparsity(step)

    def _keep_sparsity(self, step):
        if hasattr(self.model, "experts"):
            shares = self.model.experts.measured_sparsity()
            shares = keras.ops.convert_to_numpy(shares).tolist()
            self.record.sparsity["steps"].append(step)
            self.record.sparsity["shares"].append(shares)


def look_inside(smat, test, settings, record):
    """Adds merging weights and pictures of episodes to the record."""
    shown = {"ID": 0, "OOD": 0}
    for name, episodes in test.items():
        weights = []
        for i in range(min(settings.merging_episodes, len(episodes))):
            x, y, _ = episodes[i]
            weights.append(keras.ops.convert_to_numpy(smat.encode_task(x)))
        record.merging[name] = np.mean(weights, axis=0).tolist()
        role = episodes.source.role
        shown[role] += 1
        if shown[role] <= settings.pictures:
            x, y, _ = episodes[0]
            names = episodes.source.class_names
            classes = episodes.indices(0)["classes"]
            record.pictures.append(
                quickstart_page.Picture(
                    name,
                    role,
                    [names[c] for c in classes],
                    x,
                    y,
                    smat.predict(x).argmax(axis=-1),
                )
            )


if __name__ == "__main__":
    main()
