"""Do probabilities mean something: calibration error on the packs.

Takes the learners that `mini_meta_dataset.py` trained. For every test set it
pools the queries of some episodes and reports the expected calibration error
of the classifiers that `build_classifier` makes, with `temperature=1` and with
`temperature="auto"`, which knows the support alone.

    python benchmarks/calibration.py --data DIR --weights vit_mini \\
        --run DIR --out DIR
"""

import argparse
import json
import pathlib

import keras
import mini_meta_dataset as mini
import numpy as np

import keras_smat


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
    add("--learners", default="frozen,smat")
    add("--episodes", type=int, default=20, help="per set")
    arguments = parser.parse_args()
    arguments.learners = arguments.learners.split(",")
    return arguments


def measure(learner, episodes, count):
    """Calibration errors and the median temperature of one set."""
    labels, plain, tempered, temperatures = [], [], [], []
    for i in range(count):
        x, y, _ = episodes[i]
        support_labels = x["support_labels"]
        way = support_labels.max() + 1
        # What `build_classifier` does, without a model for every task.
        weights = learner.task_weights(x)
        features = learner.compiled_call(
            "embed", learner.embed, weights, x["support_images"]
        )
        temperature = learner._fit_temperature(features, support_labels, way)
        logits = learner.compiled_call(
            "query_logits", learner.query_logits, weights, x
        )
        logits = keras.ops.convert_to_numpy(logits)[:, :way]
        plain.append(softmax(logits))
        tempered.append(softmax(logits / temperature))
        labels.append(y)
        temperatures.append(temperature)
    labels = np.concatenate(labels)
    errors = [
        keras_smat.calibration_error(np.concatenate(p), labels)
        for p in (plain, tempered)
    ]
    return {
        "plain": round(errors[0], 4),
        "auto": round(errors[1], 4),
        "temperature": round(float(np.median(temperatures)), 3),
    }


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def main():
    arguments = parse_arguments()
    learners, tests, in_domain = mini.load_run(arguments, arguments.learners)
    rows = []
    for name, learner in learners.items():
        for dataset, episodes in tests.items():
            role = "ID" if dataset in in_domain else "OOD"
            row = {"learner": name, "dataset": dataset, "role": role}
            row.update(measure(learner, episodes, arguments.episodes))
            rows.append(row)
            print(row, flush=True)
    lines = ["| learner | set | role | T = 1 | auto | median T |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        lines.append(
            f"| {mini.TITLES[row['learner']]} | {row['dataset']} | "
            f"{row['role']} | {100 * row['plain']:.1f} | "
            f"{100 * row['auto']:.1f} | {row['temperature']:.2f} |"
        )
    for name in arguments.learners:
        for role in ("ID", "OOD"):
            chosen = [
                r for r in rows if (r["learner"], r["role"]) == (name, role)
            ]
            plain, auto = (
                100 * np.mean([r[k] for r in chosen]) for k in ("plain", "auto")
            )
            lines.append(
                f"| {mini.TITLES[name]} | **average** | {role} | "
                f"{plain:.1f} | {auto:.1f} | |"
            )
    header = {
        "what": "expected calibration error in %, 10 bins, queries of "
        f"{arguments.episodes} episodes pooled per set",
        "settings": mini.read_json(arguments.run / "settings.json"),
        "backend": keras.backend.backend(),
    }
    path = arguments.out / "calibration"
    mini.write_json(path.with_suffix(".json"), {"header": header, "rows": rows})
    table = "\n".join(lines)
    stamp = json.dumps(header, indent=1)
    mini.write_text(
        path.with_suffix(".md"),
        f"# Calibration\n\n{table}\n\n{mini.NOTE}\n\n```json\n{stamp}\n```\n",
    )


if __name__ == "__main__":
    main()
