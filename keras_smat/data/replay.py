"""Episodes that a manifest lists."""

from keras_smat.data.arguments import some
from keras_smat.data.augmentation import augmented_shape
from keras_smat.data.augmentation import describe_augmentation
from keras_smat.data.base import Episodes
from keras_smat.data.dataset import align
from keras_smat.data.dataset import load_images
from keras_smat.data.manifest import describe
from keras_smat.data.manifest import read_manifest
from keras_smat.data.sources import ImageSource


class ReplayedEpisodes(Episodes):
    """What `EpisodeDataset.from_manifest` returns; see there.

    Attributes:
        manifest: String, the hash of the manifest.
    """

    def __init__(
        self, path, sources, query_sources=None, augment=None, **kwargs
    ):
        content = read_manifest(path)
        super().__init__(len(content["episodes"]), content["seed"], **kwargs)
        self.manifest = content["hash"]
        self.augment = augment
        self.max_way = content["max_way"]
        self.support_buckets = tuple(content["support_buckets"])
        self.query_buckets = tuple(content["query_buckets"])
        self._content = content
        self._sources = _check_sources(
            content["sources"], sources, query_sources
        )
        first, _ = next(iter(self._sources.values()))
        self.image_shape = augmented_shape(first, augment)

    @property
    def role(self):
        source, _ = self._sources.get("", (None, None))
        return source and source.role

    def sources(self):
        return self._sources

    def indices(self, index):
        return dict(self._content["episodes"][self._check_index(index)])

    def episode(self, epoch, index):
        key = self._content["epoch"] + epoch, index, 1
        return self.load_episode(self.indices(index), self._rng(*key))

    def load_episode(self, indices, rng=None):
        pair = self._sources[indices.get("domain", "")]
        images = load_images(indices, *pair, self.augment, rng)
        return self.assemble(indices, images)

    def protocol(self):
        return {
            **self._content["protocol"],
            "augment": describe_augmentation(self.augment),
            "epoch": self._content["epoch"],
            "image_shape": self.image_shape,
            "manifest": self.manifest,
        }


def _check_sources(expected, sources, query_sources):
    """Returns a dict from the domain to its source and query source."""
    sources = _by_domain("sources", sources, expected)
    query_sources = _by_domain("query_sources", query_sources, expected)
    pairs = {}
    for domain, wanted in expected.items():
        of_domain = f" of domain {domain!r}" if domain else ""
        source, queries = sources.get(domain), query_sources.get(domain)
        if source is None:
            raise ValueError(
                f"Expected a source for the episodes{of_domain}. "
                f"Received: sources={sources or None!r}."
            )
        if queries is not None:
            queries = align(queries, source)
        found = describe(source, queries)
        if found != wanted:
            raise ValueError(
                "Expected the images that the manifest was made with"
                f"{of_domain}: {wanted}. Received: {found}."
            )
        pairs[domain] = source, queries
    return pairs


def _by_domain(name, given, domains):
    """Returns what is given as a dict from the domain to a source."""
    single = list(domains) == [""]
    given = {} if given is None else {"": given} if single else given
    listed = isinstance(given, dict)
    if listed and all(isinstance(s, ImageSource) for s in given.values()):
        return given
    wanted = "an `ImageSource`"
    if not single:
        wanted = f"a dict of one `ImageSource` for each of {some([*domains])}"
    raise ValueError(
        f"Expected `{name}` as {wanted}. "
        f"Received: {name}={given.get('', given) if listed else given!r}."
    )
