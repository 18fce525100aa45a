import json
import math

import keras
import numpy as np
import pytest

from keras_smat import data
from keras_smat.adapters import ExpertSearch
from keras_smat.evaluation import FewShotReport
from keras_smat.evaluation import FewShotResult
from keras_smat.evaluation import evaluate_few_shot
from keras_smat.learners import SMAT
from keras_smat.learners import MetaLearner
from keras_smat.learners import ProtoNet

COLORS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]]
)


def make_backbone():
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(8),
        ],
        name="tiny",
    )


def make_source(noise=200, size=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 12)
    images = COLORS[labels][:, None, None] * np.ones((1, size, size, 1))
    images = images + rng.uniform(-noise, noise, images.shape)
    return data.ArraySource(np.clip(images, 0, 255).astype("uint8"), labels)


def make_set(num_episodes=4, way=3, **kwargs):
    sampler = data.FixedEpisodes(n_way=way, n_shot=1, n_query=4)
    source = make_source(**kwargs)
    return data.EpisodeDataset(source, sampler, num_episodes, seed=1)


def varied_set(num_episodes=6):
    """Episodes of two support and two query buckets, padded."""
    return data.EpisodeDataset(
        make_source(),
        data.VariableEpisodes(way=(2, 5), shot=(1, 3), n_query=4),
        num_episodes,
        seed=1,
        support_buckets=[8, 15],
        query_buckets=[11, 20],
    )


@keras.saving.register_keras_serializable("test_evaluation")
class AlwaysFirst(MetaLearner):
    """Says 0 for every query."""

    def adapt(self, x, training=False):
        return self.pretrained_weights

    def query_logits(self, weights, x, training=False):
        zeros = keras.ops.zeros_like(x["query_images"][:, 0, 0, :1], "float32")
        return zeros + keras.ops.one_hot(0, self.max_way)


def test_constant_answer_scores_one_in_way():
    report = evaluate_few_shot(
        AlwaysFirst(make_backbone(), max_way=5),
        {"a": make_set(way=4), "b": make_set(way=2)},
        in_domain=["b"],
        num_episodes=3,
        verbose=0,
    )
    np.testing.assert_array_equal(report.results["a"].per_episode, [1 / 4] * 3)
    assert report.results["a"].ci95 == 0
    assert report.results["b"].accuracy == 1 / 2
    assert report.averages["in_domain"].accuracy == 1 / 2
    assert report.averages["out_of_domain"].accuracy == 1 / 4


def test_figures_by_hand():
    a, b = FewShotResult([0.5, 0.7, 0.9]), FewShotResult([0.2, 0.4])
    assert a.accuracy == pytest.approx(0.7)
    assert a.ci95 == pytest.approx(1.96 * 0.2 / math.sqrt(3))
    assert b.ci95 == pytest.approx(1.96 * math.sqrt(0.02) / math.sqrt(2))
    report = FewShotReport({"a": a, "b": b}, {}, in_domain=["a", "b"])
    average = report.averages["in_domain"]
    assert list(report.averages) == ["in_domain"]
    assert average.accuracy == pytest.approx(0.5)
    assert average.ci95 == pytest.approx(math.hypot(a.ci95, b.ci95) / 2)
    assert FewShotReport({"a": a}, {}).averages == {}


def unchanged(learner, x, weights):
    return weights


@pytest.mark.parametrize(
    "learner_class, adapter",
    [(ProtoNet, None), (ProtoNet, unchanged), (SMAT, unchanged)],
)
def test_padding_never_counts(adapter, learner_class):
    """Accuracy equals that of the valid queries alone, bucket by bucket."""
    arguments = {"num_experts": 2, "seed": 0} if learner_class is SMAT else {}
    learner = learner_class(make_backbone(), max_way=5, **arguments)
    episodes = varied_set()
    report = evaluate_few_shot(
        learner, episodes, num_episodes=4, adapter=adapter, verbose=0
    )
    expected, padded = [], 0
    for x, y, weight in (episodes[i] for i in range(4)):
        logits = learner.predict_on_batch(x)
        hits = [
            logits[q].argmax() == y[q] for q in range(len(y)) if weight[q] > 0
        ]
        expected.append(sum(hits) / len(hits))
        padded += len(y) - len(hits)
    assert padded > 0
    np.testing.assert_array_equal(
        report.results["episodes"].per_episode, expected
    )
    assert 0.3 < report.results["episodes"].accuracy < 1


def test_easy_classes_are_told_apart():
    report = evaluate_few_shot(
        ProtoNet(make_backbone(), max_way=3),
        make_set(noise=1),
        num_episodes=4,
        verbose=0,
    )
    assert report.results["episodes"].accuracy == 1


def test_same_episodes_give_the_same_report(tmp_path):
    learner = ProtoNet(make_backbone(), max_way=5)
    mixture = data.mix({"a": make_set(), "b": varied_set()}, num_episodes=3)
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path in paths:
        evaluate_few_shot(learner, mixture, num_episodes=3, verbose=0).save(
            path
        )
    first, second = (path.read_bytes() for path in paths)
    assert first == second


def test_protocol_tells_episodes_apart():
    learner = ProtoNet(make_backbone(), max_way=3)

    def protocol(**kwargs):
        return evaluate_few_shot(
            learner, make_set(**kwargs), num_episodes=2, verbose=0
        ).protocol

    stamp = protocol()
    assert stamp == protocol()
    assert stamp["learner"] == "ProtoNet" and stamp["backbone"] == "tiny"
    assert stamp["image_size"] == [4, 4]
    assert stamp["precision"] == "float32"
    assert stamp["sets"]["episodes"]["seed"] == 1
    versions = {"keras_smat", "keras", "numpy", "python"}
    assert versions | {keras.backend.backend()} == set(stamp["versions"])
    other = protocol(seed=7)
    assert stamp["episodes_sha256"] != other["episodes_sha256"]


def test_the_report_carries_the_hash_of_a_manifest(tmp_path):
    learner = ProtoNet(make_backbone(), max_way=5)
    digest = make_set().save_manifest(tmp_path / "episodes.json")
    replayed = data.EpisodeDataset.from_manifest(
        tmp_path / "episodes.json", make_source()
    )
    reports = [
        evaluate_few_shot(learner, {"set": s}, num_episodes=4, verbose=0)
        for s in (make_set(), replayed)
    ]
    figures = [report.results["set"].per_episode for report in reports]
    np.testing.assert_array_equal(*figures)
    assert reports[1].protocol["sets"]["set"]["manifest"] == digest


def test_adapter_sees_the_support_alone():
    seen = []

    class Negate:
        def __call__(self, learner, x, weights):
            seen.append(x)
            return [-w for w in weights]

        def get_config(self):
            return {"steps": np.int64(3)}

    learner = ProtoNet(make_backbone(), max_way=3)
    report = evaluate_few_shot(
        learner, make_set(), num_episodes=2, adapter=Negate(), verbose=0
    )
    assert len(seen) == 2
    assert set(seen[0]) == {"support_images", "support_labels"}
    assert report.protocol["adapter"] == {
        "name": "Negate",
        "config": {"steps": 3},
    }
    assert report.rows()[0]["adapter"] == "Negate"


def test_adapted_weights_are_used():
    def blind(learner, x, weights):
        return [keras.ops.zeros_like(w) for w in weights]

    learner = ProtoNet(make_backbone(), max_way=3)
    report = evaluate_few_shot(
        learner, make_set(noise=1), num_episodes=2, adapter=blind, verbose=0
    )
    assert report.results["episodes"].accuracy == pytest.approx(1 / 3)


@pytest.mark.parametrize("verbose", ["auto", 0, 2])
def test_progress_bar(verbose, capsys):
    learner = ProtoNet(make_backbone(), max_way=3)
    evaluate_few_shot(
        learner, {"birds": make_set()}, num_episodes=2, verbose=verbose
    )
    captured = capsys.readouterr()
    assert ("birds" in captured.out) == (verbose != 0)
    assert verbose != 0 or captured.out == ""


def make_report():
    results = {
        "birds": FewShotResult([0.8, 0.6, 1.0]),
        "a longer name": FewShotResult([0.5]),
    }
    return FewShotReport(results, {"learner": "SMAT"}, in_domain=["birds"])


def test_report_prints_an_aligned_table():
    assert str(make_report()).split("\n") == [
        "set            role  accuracy %     episodes",
        "birds          ID    80.00 ± 22.63  3",
        "a longer name  OOD   50.00 ± nan    1",
        "average        ID    80.00 ± 22.63",
        "average        OOD   50.00 ± nan",
    ]


def test_report_without_domains_has_no_roles():
    report = FewShotReport({"a": FewShotResult([1.0, 1.0])}, {})
    assert "ID" not in str(report) and "average" not in str(report)
    assert report.rows()[0]["role"] is None


def test_rows_are_flat_and_strict_json():
    rows = json.loads(json.dumps(make_report().rows(), allow_nan=False))
    assert rows[1] == {
        "learner": "SMAT",
        "adapter": None,
        "dataset": "a longer name",
        "role": "OOD",
        "accuracy": 0.5,
        "ci95": None,
        "num_episodes": 1,
    }


def test_json_round_trip(tmp_path):
    learner = ProtoNet(make_backbone(), max_way=5)
    sets = {"a": make_set(), "b": varied_set()}
    report = evaluate_few_shot(
        learner, sets, in_domain=("a",), num_episodes=3, verbose=0
    )
    path = tmp_path / "report.json"
    report.save(path)
    loaded = FewShotReport.load(path)
    assert loaded == report and str(loaded) == str(report)
    changed = dict(report.results, a=FewShotResult([0.0, 0.0, 0.1]))
    assert loaded != FewShotReport(changed, report.protocol, ["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]

    def refuse(constant):
        raise AssertionError(constant)

    make_report().save(path)
    json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert math.isnan(FewShotReport.load(path).averages["out_of_domain"].ci95)


def test_markdown(tmp_path):
    path = tmp_path / "report.md"
    make_report().save(str(path))
    text = path.read_text("utf-8")
    assert "| birds | ID | 80.00 ± 22.63 | 3 |" in text
    assert "| learner | SMAT |" in text


def test_difference_is_paired():
    def report(learner, values, stamp="1"):
        results = {"a": FewShotResult(values), "b": FewShotResult([0.5, 0.5])}
        protocol = {"learner": learner, "episodes_sha256": stamp}
        return FewShotReport(results, protocol, ["a"])

    first = report("SMAT", [0.9, 0.2, 0.4])
    pairs = first.difference(report("PMF", [0.7, 0.0, 0.2]))
    # Far apart over episodes, but not from each other.
    assert first.results["a"].ci95 > 0.4
    assert pairs.results["a"].accuracy == pytest.approx(0.2)
    assert pairs.results["a"].ci95 == pytest.approx(0.0, abs=1e-12)
    assert pairs.averages["out_of_domain"].accuracy == 0.0
    assert pairs.protocol["learner"] == "SMAT - PMF"
    with pytest.raises(ValueError, match="over the same episodes"):
        first.difference(report("PMF", [0.7, 0.0]))
    with pytest.raises(ValueError, match="over the same episodes"):
        first.difference(report("PMF", [0.7, 0.0, 0.2], stamp="2"))
    with pytest.raises(ValueError, match="over the same sets"):
        first.difference(FewShotReport({"a": first.results["a"]}, {}))


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    make_report().save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        FewShotReport({"x": FewShotResult([0.1])}, {}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_save_and_load_errors(tmp_path):
    with pytest.raises(ValueError, match=r"'.md', '.html'\].*report.txt"):
        make_report().save(tmp_path / "report.txt")
    with pytest.raises(ValueError, match="folder that exists"):
        make_report().save(tmp_path / "nowhere" / "report.json")
    other = tmp_path / "other.json"
    for text in ("[1]", "{}", "no json"):
        other.write_text(text)
        with pytest.raises(ValueError, match="`FewShotReport.save` wrote"):
            FewShotReport.load(other)


class Unopened(data.EpisodeDataset):
    def __getitem__(self, index):
        raise AssertionError("an episode ran before the checks")


def unopened():
    return Unopened(make_source(), data.FixedEpisodes(3, 1, 4), 10)


@pytest.mark.parametrize(
    "second, arguments, message",
    [
        (make_set, {"num_episodes": 5}, "'second' with 4, num_episodes=5"),
        (lambda: make_set(way=5), {}, "`second` have up to 5 classes"),
        (lambda: make_set(size=6), {}, r"`second` must have the size"),
        (lambda: [1, 2], {}, "'second': "),
        (make_set, {"in_domain": ["third"]}, r"'second'.*\['third'\]"),
        (make_set, {"in_domain": "second"}, "`in_domain` as a list"),
        (make_set, {"num_episodes": 0}, "at least 1.*num_episodes=0"),
        (make_set, {"num_episodes": 2.0}, "num_episodes=2.0"),
        (make_set, {"adapter": "search"}, "adapter='search'"),
        (make_set, {"adapter": ExpertSearch}, "adapter=<class"),
        (make_set, {"verbose": "yes"}, "verbose='yes'"),
    ],
)
def test_errors_come_before_any_episode(second, arguments, message):
    learner = ProtoNet(make_backbone(), max_way=4)
    sets = {"first": unopened(), "second": second()}
    with pytest.raises(ValueError, match=message):
        evaluate_few_shot(
            learner, sets, **{"num_episodes": 2, "verbose": 0, **arguments}
        )


def test_wrong_learner_and_empty_dict():
    with pytest.raises(ValueError, match="Received: learner="):
        evaluate_few_shot(make_backbone(), make_set(), num_episodes=1)
    with pytest.raises(ValueError, match="at least one set"):
        evaluate_few_shot(ProtoNet(make_backbone(), max_way=3), {})


def test_compiled_once_per_bucket(monkeypatch):
    """Each pair of bucket sizes is traced once, however many episodes."""
    calls = []

    class Counting(ProtoNet):
        def query_logits(self, weights, x, training=False):
            calls.append((x["support_labels"].shape, x["query_images"].shape))
            return super().query_logits(weights, x, training)

    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch runs eagerly")
    learner = Counting(make_backbone(), max_way=5)
    episodes = varied_set(12)
    evaluate_few_shot(learner, episodes, num_episodes=12, verbose=0)
    assert len(set(calls)) > 1
    assert len(calls) == len(set(calls))
