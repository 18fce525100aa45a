"""Seconds and peak memory of one meta-tuning step, on every backend.

A 5-way 5-shot step with 75 queries of SMAT (8 dense experts, teacher on, no
inner step) on a ViT-S/14 at 112 px, beside a plain forward and backward pass
of the same 100 images, alternated in one process. The ratio of the two is
what carries over to other machines. Random weights: no file is needed.

    python benchmarks/step_speed.py --out benchmarks/results/step_speed.json
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

BACKENDS = ("torch", "tensorflow", "jax")


def make_backbone(image_size):
    import keras_hub

    import keras_smat

    vit = keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=12,
        hidden_dim=384,
        num_heads=6,
        intermediate_dim=1536,
        image_shape=(image_size, image_size, 3),
    )
    return keras_smat.feature_backbone(vit, image_size=image_size)


def make_episode(image_size):
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    x = {
        "support_images": rng.integers(0, 256, (25, *shape), dtype="uint8"),
        "support_labels": np.repeat(np.arange(5), 5).astype("int32"),
        "query_images": rng.integers(0, 256, (75, *shape), dtype="uint8"),
    }
    return x, np.repeat(np.arange(5), 15).astype("int32")


def peak_gb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plain_pass(learner, x):
    """A function that runs forward and backward of all images, no more."""
    import numpy as np
    from keras import ops

    from keras_smat import _backend

    images = np.concatenate([x["support_images"], x["query_images"]])

    def step(weights, images):
        def features(weights):
            return learner.embed(weights, images)

        output, pullback = _backend.vjp(features, weights)
        return pullback(ops.ones_like(output))

    step = _backend.jit(step)

    def run():
        # Read each time: on JAX, a training step takes the buffers over.
        gradients = step(learner.pretrained_weights, images)
        # The sum waits for what runs in the background.
        return float(ops.convert_to_numpy(gradients[-1]).sum())

    return run


def measure(arguments):
    """One backend, in its own process: prints one JSON line."""
    import keras

    import keras_smat

    keras.config.set_dtype_policy(arguments.precision)
    keras.utils.set_random_seed(0)
    learner = keras_smat.SMAT(
        make_backbone(arguments.image_size), max_way=5, seed=0
    )
    learner.compile(
        **keras_smat.recipes.get("recommended", learner, total_steps=1000)
    )
    x, y = make_episode(arguments.image_size)

    def meta_step():
        learner.train_on_batch(x, y)

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first = seconds(meta_step)
    seconds(meta_step)
    peak = peak_gb()  # before the plain pass takes memory of its own
    plain = plain_pass(learner, x)
    seconds(plain)
    times = {"meta": [], "plain": []}
    for _ in range(arguments.repeats):
        times["meta"].append(seconds(meta_step))
        times["plain"].append(seconds(plain))
    meta, floor = (statistics.median(times[k]) for k in ("meta", "plain"))
    row = {
        "backend": keras.backend.backend(),
        "precision": arguments.precision,
        "model": f"ViT-S/14 at {arguments.image_size} px, 12 blocks",
        "workload": "SMAT step, 5-way 5-shot 75-query, 8 dense experts",
        "seconds": round(meta, 2),
        "plain_seconds": round(floor, 2),
        "ratio_to_floor": round(meta / floor, 2),
        "peak_gb": round(peak, 2),
        "first_step_seconds": round(first, 1),
        "repeats": arguments.repeats,
    }
    print("ROW " + json.dumps(row), flush=True)


def run_backend(backend, arguments):
    command = [sys.executable, __file__, "--measure"]
    for name in ("precision", "image_size", "repeats"):
        command += [f"--{name.replace('_', '-')}", str(vars(arguments)[name])]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True
    )
    rows = [r for r in result.stdout.splitlines() if r.startswith("ROW ")]
    if not rows:
        lines = result.stderr.strip().splitlines() or ["no output"]
        print(f"{backend}: not measured ({lines[-1]})")
        return None
    return json.loads(rows[0][4:])


def versions():
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version

    found = {}
    for name in ("keras", "keras-hub", "torch", "tensorflow", "jax"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument(
        "--measure", action="store_true", help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    rows = []
    for backend in arguments.backends.split(","):
        row = run_backend(backend, arguments)
        if row is not None:
            rows.append(row)
            print(
                "{backend:10s} {seconds:6.2f} s  plain {plain_seconds:6.2f} s"
                "  ratio {ratio_to_floor:4.2f}  peak {peak_gb:5.2f} GB"
                "  first step {first_step_seconds:5.1f} s".format(**row),
                flush=True,
            )
    if arguments.out is not None and rows:
        header = {
            "command": " ".join(["python", *sys.argv]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": versions(),
            "note": "medians; step and plain pass alternate in one process",
        }
        text = json.dumps({"header": header, "rows": rows}, indent=1) + "\n"
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
