"""How good is the greedy search over expert patterns, and what it costs.

Takes a SMAT that `mini_meta_dataset.py` trained, and on its test sets

- compares the greedy search (R = 2) with all 2^M patterns: how often it finds
  the optimum of its loss, and how far it falls short where it does not;
- compares the accuracy of the search with that of plain inference, on the
  same episodes, pair by pair, for both support losses;
- times a candidate, in forward passes of the support.

    python benchmarks/expert_search.py --data DIR --weights vit_mini \
        --run DIR --out DIR

`--run` is the folder that `mini_meta_dataset.py --out` filled. `--smoke` needs
none of the three: generated images, an untrained learner, a minute. A set that
is finished is kept; the same command again goes on with the next.
"""

import argparse
import json
import pathlib
import time

import keras
import mini_meta_dataset as mini
import numpy as np

import keras_smat
from keras_smat import data

LOSSES = ("leave_one_out", "resubstitution")
# Losses of one pattern differ by rounding where it is reached in two ways.
TOLERANCE = 1e-6


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="folder of packs")
    add("--weights", help="backbone: a preset or an .npz file")
    add("--run", type=pathlib.Path, help="folder of the trained SMAT")
    add("--out", type=pathlib.Path, required=True, help="folder of results")
    add("--episodes", type=int, default=200, help="per set, for accuracy")
    add("--exhaustive-episodes", type=int, default=10, help="per set")
    add("--rounds", type=int, default=2)
    add("--smoke", action="store_true")
    arguments = parser.parse_args()
    needed = ("data", "weights", "run")
    if not arguments.smoke and None in [getattr(arguments, n) for n in needed]:
        parser.error("expected --data, --weights and --run, or --smoke")
    return arguments


def trained(arguments):
    """The trained SMAT, its test sets, and the names of those in domain."""
    learners, tests, in_domain = mini.load_run(arguments, [mini.SMAT])
    return learners[mini.SMAT], tests, in_domain


def smoke(arguments):
    """An untrained learner with random experts on generated images."""
    arguments.episodes, arguments.exhaustive_episodes = 4, 2
    backbone = keras_smat.feature_backbone("vit_mini", image_size=16)
    learner = keras_smat.SMAT(backbone, num_experts=4, max_way=5, seed=0)
    delta = learner.experts.delta
    noise = np.random.default_rng(0).standard_normal(delta.shape)
    delta.assign(0.05 * noise)
    sampler = data.FixedEpisodes(n_way=5, n_shot=2, n_query=2)
    sources = list(data.demo_domains("test", 16, 0).items())[:2]
    tests = {
        name: data.EpisodeDataset(source, sampler, arguments.episodes, seed=0)
        for name, source in sources
    }
    return learner, tests, []


def measure(learner, episodes, arguments):
    """Everything about one set, as JSON values."""
    result = {"accuracy": {}, "search": {}}
    plain = accuracies(learner, episodes, None, arguments)
    result["accuracy"]["none"] = summary(plain)
    for loss in LOSSES:
        search = keras_smat.ExpertSearch(rounds=arguments.rounds, loss=loss)
        found = accuracies(learner, episodes, search, arguments)
        result["accuracy"][loss] = summary(found)
        result["accuracy"][f"{loss} - none"] = summary(found - plain)
        result["search"][loss] = against_all(
            learner, episodes, search, arguments
        )
    result["cost"] = cost(learner, episodes[0][0], arguments)
    return result


def accuracies(learner, episodes, adapter, arguments):
    report = keras_smat.evaluate_few_shot(
        learner,
        episodes,
        num_episodes=arguments.episodes,
        adapter=adapter,
        verbose=0,
    )
    return report.results["episodes"].per_episode


def summary(values):
    result = keras_smat.FewShotResult(values)
    return {"mean": result.accuracy, "ci95": result.ci95, "n": len(values)}


def against_all(learner, episodes, search, arguments):
    """The greedy search against all patterns, episode by episode."""
    everything = search.replace(exhaustive=True)
    found, gaps, starts, visited = [], [], [], []
    for i in range(arguments.exhaustive_episodes):
        x = episodes[i][0]
        greedy = search.search(learner, x)
        optimum = everything.search(learner, x).loss
        gap = greedy.loss - optimum
        found.append(gap <= TOLERANCE)
        gaps.append(max(gap, 0.0))
        starts.append(next(iter(greedy.visited.values())) - optimum)
        visited.append(len(greedy.visited))
    return {
        "episodes": len(found),
        "share_of_optima": float(np.mean(found)),
        "mean_gap": float(np.mean(gaps)),
        "largest_gap": float(np.max(gaps)),
        "mean_gap_of_the_start": float(np.mean(starts)),
        "mean_candidates": float(np.mean(visited)),
    }


def cost(learner, x, arguments, repeats=5):
    """Seconds of a candidate and of a forward pass of the support."""
    weights = learner.task_weights(x)
    images = x["support_images"]
    one = keras_smat.ExpertSearch(rounds=0)
    search = keras_smat.ExpertSearch(rounds=arguments.rounds)

    def forward():
        features = learner.compiled_call(
            "embed", learner.embed, weights, images
        )
        return keras.ops.convert_to_numpy(features)

    def seconds(function):
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result

    times = []
    for _ in range(repeats + 1):
        forwards = seconds(forward)[0]
        first = seconds(lambda: one.search(learner, x))[0]
        total, found = seconds(lambda: search.search(learner, x))
        candidate = (total - first) / max(1, len(found.visited) - 1)
        times.append((forwards, candidate, first - candidate))
    # The first round compiles.
    forwards, candidate, setup = np.min(times[1:], axis=0)
    return {
        "seconds_per_forward": float(forwards),
        "seconds_per_candidate": float(candidate),
        # Scores, which take a forward pass of their own, and the masks.
        "seconds_of_setup": float(setup),
        "forwards_per_candidate": float(candidate / forwards),
    }


def table(results, in_domain):
    lines = [
        ["set", "role", "plain", *LOSSES, "optima", "gap", "forwards"],
        ["---"] * (5 + len(LOSSES) + 1),
    ]
    for name, result in results.items():
        accuracy = result["accuracy"]
        searches = [result["search"][loss] for loss in LOSSES]
        lines.append(
            [
                name,
                "ID" if name in in_domain else "OOD",
                percent(accuracy["none"]),
                *(percent(accuracy[f"{s} - none"], "+") for s in LOSSES),
                " / ".join(f"{s['share_of_optima']:.0%}" for s in searches),
                " / ".join(f"{s['mean_gap']:.2g}" for s in searches),
                f"{result['cost']['forwards_per_candidate']:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(entry, sign=""):
    return f"{100 * entry['mean']:{sign}z.2f} ± {100 * entry['ci95']:.2f}"


def average(results, key):
    """Mean over the sets of an accuracy or a difference, with interval."""
    entries = [r["accuracy"][key] for r in results.values()]
    half = np.sqrt(np.sum([e["ci95"] ** 2 for e in entries])) / len(entries)
    mean = float(np.mean([e["mean"] for e in entries]))
    return {"mean": mean, "ci95": float(half), "sets": len(entries)}


def main():
    arguments = parse_arguments()
    make = smoke if arguments.smoke else trained
    learner, tests, in_domain = make(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    header = {
        "backbone": learner.backbone.name,
        "num_experts": learner.experts.num_experts,
        "rounds": arguments.rounds,
        "episodes": arguments.episodes,
        "exhaustive_episodes": arguments.exhaustive_episodes,
        "backend": keras.backend.backend(),
        "precision": keras.config.dtype_policy().name,
        "smoke": arguments.smoke,
    }
    path = arguments.out / "expert_search.json"
    results = {}
    if path.exists():
        before = mini.read_json(path)
        if before["header"] != header:
            mini.fail(f"{path} holds results with other settings")
        results = before["results"]
    for name, episodes in tests.items():
        if name not in results:
            results[name] = measure(learner, episodes, arguments)
        averages = {
            key: average(results, key)
            for key in next(iter(results.values()))["accuracy"]
        }
        content = {"header": header, "averages": averages, "results": results}
        mini.write_json(path, content)
        text = table(results, in_domain)
        stamp = json.dumps({**header, "averages": averages}, indent=1)
        mini.write_text(
            arguments.out / "expert_search.md",
            "# Search over expert patterns\n\nAccuracy in %, ± 95 % "
            "confidence interval; for the two support losses the paired "
            "difference to plain inference. Optima: how often the greedy "
            "search found the best of all patterns; gap: mean loss above it; "
            "forwards: cost of a candidate in forward passes of the support."
            f"\n\n{text}\n\n```json\n{stamp}\n```\n",
        )
        print(f"{name}: done", flush=True)
    print(text)


if __name__ == "__main__":
    main()
