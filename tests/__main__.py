"""`python -m tests`: the whole suite, on every backend that is installed.

Arguments are passed on to pytest, for example `python -m tests -m "not slow"`.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile

BACKENDS = ("torch", "jax", "tensorflow")


def main():
    failed = []
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            print(f"== {backend}: not installed, skipped", flush=True)
            continue
        print(f"== {backend}", flush=True)
        command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                **os.environ,
                "KERAS_BACKEND": backend,
                # Tests compile the same small programs over and over.
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            if subprocess.run(command, env=environment).returncode:
                failed.append(backend)
    if failed:
        sys.exit("failed on " + ", ".join(failed))


if __name__ == "__main__":
    main()
