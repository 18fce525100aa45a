"""How far from the pretrained weights is best, in domain and out.

Takes the learners that `mini_meta_dataset.py` trained, and puts the weights of
every task between the pretrained ones (share 0, the frozen backbone) and those
that the learner gives (share 1). If a share between them is better out of
domain, the learner has gone too far for these domains; if accuracy there falls
from the start, it has learned what they cannot use.

For SMAT it also says how differently its hypernetwork mixes experts: the spread
of merging weights between sets, and between episodes of a set.

    python benchmarks/interpolation.py --data DIR --weights vit_mini \\
        --run DIR --out DIR

Reference: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

import argparse
import json
import pathlib

import keras
import mini_meta_dataset as mini
import numpy as np

import keras_smat

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@keras.saving.register_keras_serializable("benchmarks")
class Interpolation(keras_smat.Adapter):
    """`pretrained + share * (weights - pretrained)`."""

    pretrained = None  # List of tensors, the same for all.

    def __init__(self, share):
        super().__init__()
        self.share = share

    def get_config(self):
        return {"share": self.share}

    def __call__(self, learner, x, weights):
        return [
            p + self.share * (w - p) for w, p in zip(weights, self.pretrained)
        ]


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of packs")
    add("--weights", required=True, help="backbone: a preset or an .npz file")
    add("--run", type=pathlib.Path, required=True, help="of the training")
    add("--out", type=pathlib.Path, required=True, help="folder of results")
    add("--learners", default="pmf,soft_merge,smat")
    add("--episodes", type=int, default=40, help="per set")
    arguments = parser.parse_args()
    arguments.learners = arguments.learners.split(",")
    return arguments


def mixing(smat, tests, count=10):
    """Merging weights: means per set, and two spreads.

    Returns:
        A dict of `"means"`, from the set's name to a list of M floats, and of
        the standard deviations between sets and within a set, both averaged
        over the experts.
    """
    weights = {
        name: np.stack(
            [
                keras.ops.convert_to_numpy(smat.encode_task(episodes[i][0]))
                for i in range(min(count, len(episodes)))
            ]
        )
        for name, episodes in tests.items()
    }
    means = {name: w.mean(axis=0) for name, w in weights.items()}
    within = np.sqrt(np.mean([w.var(axis=0) for w in weights.values()]))
    between = np.std(list(means.values()), axis=0).mean()
    return {
        "means": {
            n: m.astype(float).round(4).tolist() for n, m in means.items()
        },
        "between_sets": round(float(between), 4),
        "within_a_set": round(float(within), 4),
    }


def main():
    arguments = parse_arguments()
    names = [mini.FROZEN, *arguments.learners]
    learners, tests, in_domain = mini.load_run(arguments, names)
    frozen = learners.pop(mini.FROZEN)
    Interpolation.pretrained = [w.value for w in frozen.backbone.weights]
    rows = {}
    for name, learner in learners.items():
        for share in SHARES:
            report = keras_smat.evaluate_few_shot(
                learner,
                tests,
                in_domain,
                num_episodes=arguments.episodes,
                adapter=Interpolation(share),
                verbose=0,
            )
            rows[f"{mini.TITLES[name]}, {share:g}"] = {
                "averages": {
                    k: [round(a.accuracy, 5), round(a.ci95, 5)]
                    for k, a in report.averages.items()
                },
                "sets": {
                    k: round(r.accuracy, 5) for k, r in report.results.items()
                },
            }
            print(f"{name}, {share:g}\n{report}", flush=True)
    content = {
        "what": f"{arguments.episodes} episodes a set, the same for all",
        "settings": mini.read_json(arguments.run / "settings.json"),
        "rows": rows,
    }
    if mini.SMAT in learners:
        content["mixing"] = mixing(learners[mini.SMAT], tests)
    arguments.out.mkdir(parents=True, exist_ok=True)
    mini.write_json(arguments.out / "interpolation.json", content)
    lines = [
        "| learner | share | ID, % | OOD, % |",
        "| --- | --- | --- | --- |",
    ]
    for title, row in rows.items():
        cells = [
            f"{100 * row['averages'][k][0]:.1f} ± "
            f"{100 * row['averages'][k][1]:.1f}"
            for k in ("in_domain", "out_of_domain")
        ]
        lines.append(f"| {' | '.join([*title.split(', '), *cells])} |")
    table = "\n".join(lines)
    content.pop("rows")
    stamp = json.dumps(content, indent=1)
    mini.write_text(
        arguments.out / "interpolation.md",
        f"# Between pretrained and tuned weights\n\n{table}\n\n{mini.NOTE}\n\n"
        f"```json\n{stamp}\n```\n",
    )


if __name__ == "__main__":
    main()
