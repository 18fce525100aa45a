"""Computing the next episodes in the background."""

import concurrent.futures
import multiprocessing
import threading

from keras_smat.checks import check_integer


class Prefetcher:
    """Keeps the episodes after the requested one under way.

    Keras has an enqueuer of its own, but it hands leftovers of one run to
    the next one, so with two workers `fit` sees old episodes, some of them
    twice. Here a result is looked up by its `(epoch, index)`: it can be
    late, never wrong.

    Args:
        workers: Integer, threads or processes. Defaults to 0: nothing is
            computed ahead.
        use_multiprocessing: Boolean, processes (spawned) rather than threads.
            Defaults to `False`.
        max_queue_size: Integer, episodes kept under way. Defaults to 10.
    """

    def __init__(self, workers=0, use_multiprocessing=False, max_queue_size=10):
        check_integer("workers", workers, 0)
        check_integer("max_queue_size", max_queue_size, 1)
        self.settings = (workers, use_multiprocessing, max_queue_size)
        self._lock = threading.Lock()
        self._pool = None
        self._futures = {}

    def __reduce__(self):
        return Prefetcher, self.settings  # pools and locks do not pickle

    def fetch(self, dataset, index):
        """Returns `dataset.episode(dataset.epoch, index)`."""
        workers, _, ahead = self.settings
        epoch = dataset.epoch
        if not workers:
            return dataset.episode(epoch, index)
        end = min(index + ahead, len(dataset))
        wanted = [(epoch, i) for i in range(index, end)]
        with self._lock:
            if self._pool is None:
                self._pool = self._start(dataset)
            for key in self._futures.keys() - set(wanted):
                self._futures.pop(key).cancel()
            for key in wanted:
                if key not in self._futures:
                    self._futures[key] = self._submit(dataset, key)
            future = self._futures.pop(wanted[0])
        return future.result()

    def _start(self, dataset):
        workers, use_multiprocessing, _ = self.settings
        if not use_multiprocessing:
            return concurrent.futures.ThreadPoolExecutor(workers)
        return concurrent.futures.ProcessPoolExecutor(
            workers,
            # Forking a process that runs an accelerator's threads can hang.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_receive,
            initargs=(dataset,),
        )

    def _submit(self, dataset, key):
        if self.settings[1]:
            return self._pool.submit(_episode, *key)
        return self._pool.submit(dataset.episode, *key)


def _receive(dataset):
    global _dataset
    _dataset = dataset


def _episode(epoch, index):
    return _dataset.episode(epoch, index)
