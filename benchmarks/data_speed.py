"""Images per second of every source, by the number of workers.

The same generated photographs (JPEG, 500 x 375) in every format, read as
episodes of 5 classes with 20 images each. HDF5 holds them as PMF stores them,
decoded at 224 x 224. The files are in the cache of the system, so it is
decoding and handling that is measured, not a disk. No file is needed.

    python benchmarks/data_speed.py --out benchmarks/results/data_speed.json
"""

import argparse
import io
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

import h5py
import numpy as np
from PIL import Image

from keras_smat import data

CLASSES, PER_CLASS = 10, 40
WIDTH, HEIGHT = 500, 375


def draw(rng):
    """The JPEG of a picture with coarse and fine structure."""
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for cells, strength in ((4, 70), (16, 30), (90, 12)):
        noise = rng.normal(128, strength, (cells, cells, 3)).clip(0, 255)
        layer = Image.fromarray(noise.astype("uint8"))
        layer = layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer) / 3.0
    file = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(file, "jpeg", quality=90)
    return file.getvalue()


def write_folder(root, files):
    for c, images in enumerate(files):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i, image in enumerate(images):
            (folder / f"{i}.jpg").write_bytes(image)


def write_records(root, files):
    import tensorflow as tf

    root.mkdir()
    for c, images in enumerate(files):
        with tf.io.TFRecordWriter(str(root / f"{c}.tfrecords")) as writer:
            for image in images:
                example = tf.train.Example()
                feature = example.features.feature
                feature["image"].bytes_list.value.append(image)
                feature["label"].int64_list.value.append(c)
                writer.write(example.SerializeToString())


def write_h5(root, files):
    root.mkdir()
    for c, images in enumerate(files):
        with h5py.File(root / f"{c}.h5", "w") as file:
            for i, image in enumerate(images):
                pixels = Image.open(io.BytesIO(image)).resize((224, 224))
                file[f"{i}/image"] = np.asarray(pixels)
                file[f"{i}/label"] = np.array([c])


def make_sources(root, image_size):
    """Returns `{name: (source, how it is stored)}`."""
    rng = np.random.default_rng(0)
    files = [[draw(rng) for _ in range(PER_CLASS)] for _ in range(CLASSES)]
    write_folder(root / "folder", files)
    write_records(root / "records", files)
    write_h5(root / "h5", files)
    folder = data.FolderSource(root / "folder", image_size)
    fast = data.convert(folder, root / "fast", verbose=0)
    size = {"image_size": image_size}
    return {
        "FolderSource": (folder, "JPEG 500x375"),
        "RecordSource": (
            data.RecordSource(root / "records", **size),
            "JPEG 500x375",
        ),
        "H5Source": (data.H5Source(root / "h5", **size), "pixels 224x224"),
        "MemmapSource": (fast, f"pixels {image_size}x{image_size}"),
        "ArraySource": (
            data.ArraySource(np.array(fast.images), fast.labels),
            f"pixels {image_size}x{image_size}, in memory",
        ),
    }


def measure(source, workers, processes, seconds):
    """Returns images per second, from the second episode on, and the
    milliseconds of processor time per image, which other processes on the
    machine change little; worker processes are not in it."""
    sampler = data.FixedEpisodes(n_way=5, n_shot=5, n_query=15)
    episodes = data.EpisodeDataset(
        source,
        sampler,
        num_episodes=10**6,
        workers=workers,
        use_multiprocessing=processes,
    )
    episodes[0]  # starts the workers
    done, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        done += 1
        episodes[done]
    images = 100 * done
    passed = time.perf_counter() - start
    return images / passed, 1000 * (time.process_time() - used) / images


def numbers(text):
    return [int(number) for number in text.split(",") if number]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--image-size", type=int, default=112)
    add("--threads", type=numbers, default=[0, 1, 2, 4])
    add("--processes", type=numbers, default=[2])
    add("--seconds", type=float, default=3.0, help="per measurement")
    add("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    workers = [("threads", n) for n in arguments.threads]
    workers += [("processes", n) for n in arguments.processes]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = make_sources(pathlib.Path(folder), arguments.image_size)
        for name, (source, stored) in sources.items():
            for kind, number in workers:
                apart = kind == "processes"
                rate, cost = measure(source, number, apart, arguments.seconds)
                row = {
                    "source": name,
                    "stored": stored,
                    "workers": number,
                    "kind": kind,
                    "images_per_second": round(rate),
                    "cpu_ms_per_image": None if apart else round(cost, 3),
                }
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
    if arguments.out is not None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        header = {
            "command": " ".join(["python", *sys.argv]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "load_of_the_last_minute": load,
            "image_size": arguments.image_size,
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "note": "episodes of 100 images; files in the system's cache; "
            "on a machine with other work, see its load",
        }
        text = json.dumps({"header": header, "rows": rows}, indent=1) + "\n"
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
