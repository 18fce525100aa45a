# %% [markdown]
# # Sparse meta-tuning from beginning to end
#
# Here are five classes that a model has never seen, with five images of each;
# now classify the next image. That is a *few-shot task*. A pretrained backbone
# can solve it as it is, by comparing features. *Meta-tuning* makes it better,
# by practising on many such tasks from a few domains. But a model that is tuned
# as a whole may lose what it knew about all other domains, the more the longer
# it is tuned and the further they are.
#
# SMAT ([Chen et al., ICML 2024](https://arxiv.org/abs/2403.08477)) learns
# *sparse experts* instead. Each of them changes a small share of the weights
# and leaves the rest pretrained, and a small network mixes them anew for every
# task. A new task costs no gradient step.
#
# In this guide you will
#
# - look at image domains, and at an episode made from one,
# - measure the frozen backbone, then PMF, which tunes all weights,
# - meta-tune SMAT with `fit`, and compare the three on the same episodes,
# - look inside SMAT: how sparse its experts are, and how it mixes them,
# - build a plain Keras classifier for new classes.
#
# It all runs in a few minutes without a GPU, on images that are drawn on the
# spot. `python -m keras_smat.quickstart --out DIR` does the same in one
# command, with the same accuracies.

# %% [markdown]
# ## Setup
#
# This cell installs the package where it is missing, in a clone of the
# repository from the folder above. On Colab, set `PROJECT` to `git+` and the
# repository's address. Set `KERAS_BACKEND` to `"jax"` or `"torch"` if you
# prefer one of these.

# %%
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
PROJECT = ".."
if importlib.util.find_spec("keras_smat") is None:
    local = os.path.exists(os.path.join(PROJECT, "pyproject.toml"))
    if not local and not PROJECT.startswith("git+"):
        raise ValueError(f"Set PROJECT to the project's address, not {PROJECT}")
    pip = [sys.executable, "-m", "pip", "install", "-q", PROJECT]
    subprocess.run(pip, check=True)

# %% [markdown]
# `settings` says how large everything is, from the images to the number of
# training steps. More steps make a better model, and more test episodes make
# narrower intervals; both take longer.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_smat
from keras_smat import data
from keras_smat import plots
from keras_smat import quickstart
from keras_smat import recipes

settings = quickstart.Settings()
seed = 0
keras.utils.set_random_seed(seed)
settings

# %% [markdown]
# ## Domains
#
# `demo_domains` draws small image domains. Five of them have classes to train
# on: they are *in domain* (ID). The other five are *out of domain* (OOD), and
# only there for the test. The test classes of all ten are new to the model.
# Each row below shows one image of each of eight classes.

# %%
domains = {
    split: data.demo_domains(split, settings.image_size, seed)
    for split in ("train", "validation", "test")
}
figure, axes = plt.subplots(5, 2, figsize=(6.4, 4), layout="constrained")
for ax, (name, source) in zip(axes.T.flat, domains["test"].items()):
    _, first = np.unique(source.labels, return_index=True)
    ax.imshow(np.hstack(source.load(first[:8])))
    ax.set_title(f"{name} ({source.role})", size=9)
    ax.set_axis_off()

# %% [markdown]
# ## Episodes
#
# An *episode* is one few-shot task: a *support* of a few labelled images per
# class, and *queries* to classify. An `EpisodeDataset` draws them from a
# source, and `mix` takes them from several domains. Both are Keras datasets in
# which one step is one episode.
#
# A test episode depends on the seed and its number, and on nothing else. So
# the learners below are tested on the very same ones.

# %%
sampler = data.FixedEpisodes(settings.way, settings.shot, settings.query)


def make_episodes(split, count):
    return {
        name: data.EpisodeDataset(source, sampler, count, seed)
        for name, source in domains[split].items()
    }


def mix_episodes(split, count):
    episodes = make_episodes(split, count)
    return data.mix(episodes, num_episodes=count, seed=seed)


train = mix_episodes("train", settings.steps // settings.epochs)
validation = mix_episodes("validation", settings.validation_episodes)
test = make_episodes("test", settings.test_episodes)

# %% [markdown]
# Here is one. Labels count from 0 in every episode, whatever the classes are,
# and images are bytes: the backbone brings its own normalisation. The sample
# weights are 0 where an episode is padded; these episodes are all of one size.

# %%
x, y, sample_weight = test["shapes"][0]
{name: array.shape for name, array in x.items()}, y

# %% [markdown]
# ## The frozen backbone
#
# `vit_mini` is a small vision transformer inside the package;
# `feature_backbone` also takes the name of a keras-hub preset, or a Keras model
# of your own. `ProtoNet` averages the support features of each class into a
# *prototype*, and gives every query the class of the nearest one. There is
# nothing to train.

# %%
backbone = keras_smat.feature_backbone(
    "vit_mini", image_size=settings.image_size
)
frozen = keras_smat.ProtoNet(backbone, max_way=settings.way)
predictions = frozen.predict(x).argmax(axis=-1)
plots.episode_picture(
    x["support_images"], x["support_labels"], x["query_images"], y, predictions
).figure

# %% [markdown]
# Each row is a class. A thin green frame means that a query was classified
# rightly; a thick orange one carries the letter of the class that it was taken
# for.
#
# One episode says little. `evaluate_few_shot` takes the mean over many, with
# its 95 % confidence interval.

# %%
reports = {}


def evaluate(learner):
    return keras_smat.evaluate_few_shot(
        learner, test, num_episodes=settings.test_episodes, verbose=0
    )


reports["Frozen"] = evaluate(frozen)
print(reports["Frozen"])

# %% [markdown]
# ## PMF: tune all weights
#
# The same `ProtoNet` with `trainable=True` is PMF
# ([Hu et al., CVPR 2022](https://arxiv.org/abs/2204.07305)). It goes through
# episodes as at test time, and moves the whole backbone to lower the loss of
# the queries. A learner is a Keras model, so this is `compile` and `fit`, and a
# recipe supplies the arguments of `compile`. The learning rate is worth a
# search on validation classes: a run as short as this one needs a high one.

# %%
pmf = keras_smat.ProtoNet(backbone, trainable=True, max_way=settings.way)
recipe = recipes.get("recommended", pmf, settings.steps, settings.pmf_rate)
pmf.compile(**recipe)
pmf.fit(train, epochs=settings.epochs, validation_data=validation, verbose=2)
reports["PMF"] = evaluate(pmf)

# %% [markdown]
# ## SMAT: tune sparse experts
#
# The experts share one update `delta` of the backbone, and each has a sparse
# mask `z` of its own, which is learned too. A hypernetwork looks at the support
# through the frozen backbone, and returns the merging weights `a` of the task.
# The weights of the task are then
#
# `pretrained + delta * (a[0] * z[0] + ... + a[M-1] * z[M-1])`
#
# From here on all is as before: prototypes, and the nearest of them. `fit` is
# that of Keras, so callbacks work; ours writes down the share of zeros in each
# mask.

# %%
smat = keras_smat.SMAT(
    backbone,
    num_experts=settings.num_experts,
    target_sparsity=settings.target_sparsity,
    max_way=settings.way,
    seed=seed,
)
recipe = recipes.get("recommended", smat, settings.steps, settings.smat_rate)
smat.compile(**recipe)

shares = []


def watch(*args):
    share = smat.experts.measured_sparsity()
    shares.append(keras.ops.convert_to_numpy(share))


watch()
smat.fit(
    train,
    epochs=settings.epochs,
    validation_data=validation,
    callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=watch)],
    verbose=2,
)
reports["SMAT"] = evaluate(smat)

# %% [markdown]
# ## The three side by side
#
# First the averages over the domains in domain and out of domain, then every
# domain.

# %%
print(f"{'':8}{'in domain, %':>16}{'out of domain, %':>20}")
for name, report in reports.items():
    inside, outside = (
        f"{100 * average:.1f} ± {100 * average.ci95:.1f}"
        for average in report.averages.values()
    )
    print(f"{name:8}{inside:>16}{outside:>20}")

# %%
results = [report.results.values() for report in reports.values()]
plots.accuracy_bars(
    [[result.accuracy for result in row] for row in results],
    [[result.ci95 for result in row] for row in results],
    sets=list(test),
    learners=list(reports),
    groups=[episodes.role for episodes in test.values()],
).figure

# %% [markdown]
# The episodes are the same, so the learners can be compared pair by pair. That
# takes out how hard an episode is, and the intervals become narrower. Where one
# contains zero, this run does not tell the two apart. Mind that these intervals
# are over episodes: another seed of training moves the figures too.

# %%
print("SMAT minus PMF, in points:")
print(reports["SMAT"].difference(reports["PMF"]))

# %% [markdown]
# The two end close to each other. The run is short, the domains are alike, and
# there is hardly anything to lose: the small backbone never saw such pictures.
# Nor is there time for very sparse experts: the paper has 90 % zeros, this run
# 25 %. On photographs, which the backbone was pretrained on, tuning does cost
# accuracy out of domain. There, after 300 episodes each and with 90 % zeros,
# SMAT is ahead of PMF: `benchmarks/results/vit_mini` has the figures.

# %% [markdown]
# ## Inside SMAT
#
# ### Sparsity
#
# The masks start out with hardly a zero, and the recipe lets the target rise
# from none, so that the tasks have a say in what goes. As long as an expert
# misses its target, a multiplier raises the price of its nonzeros: sparsity is
# a constraint here, and not a weight in the loss that you would have to tune.

# %%
steps = len(train) * np.arange(settings.epochs + 1)
plots.sparsity_over_time(steps, shares, settings.target_sparsity).figure

# %% [markdown]
# ### Merging weights
#
# `encode_task` returns the merging weights of a task. Their means over a few
# episodes show whether domains share experts. A run as short as this one need
# not have told them apart: then all rows look alike, and an expert that none
# of them needs has a column of zeros.

# %%
count = min(settings.merging_episodes, settings.test_episodes)
merging = {}
for name, episodes in test.items():
    weights = [smat.encode_task(episodes[i][0]) for i in range(count)]
    weights = [keras.ops.convert_to_numpy(w) for w in weights]
    merging[name] = np.mean(weights, axis=0)
plots.merging_weights(list(merging.values()), list(merging)).figure

# %% [markdown]
# ## A classifier for new classes
#
# Now use it. `build_classifier` takes a support and returns a plain Keras
# model, from images to class probabilities. No gradient step is taken, and the
# model does without keras_smat from then on, also after
# `model.save("signs.keras")`. With `temperature="auto"` its probabilities are
# calibrated on the support.
#
# Here the support comes from `symbols`, a domain that was not trained on. Your
# own labelled images do as well.

# %%
x, y, _ = test["symbols"][0]
classes = test["symbols"].indices(0)["classes"]
names = [test["symbols"].source.class_names[c] for c in classes]
model = smat.build_classifier(
    x["support_images"],
    x["support_labels"],
    class_names=names,
    temperature="auto",
)
probabilities = model.predict(x["query_images"], verbose=0)
predictions = probabilities.argmax(axis=-1)
for row, truth in zip(probabilities[:: settings.query], y[:: settings.query]):
    print(f"{names[truth]} taken for {names[row.argmax()]}, {row.max():.0%}")

# %%
plots.episode_picture(
    x["support_images"], x["support_labels"], x["query_images"], y, predictions
).figure

# %% [markdown]
# ## Where next
#
# - **Your own images**: `data.FolderSource("birds", image_size=112)` in the
#   place of a demo domain; the README lists the other formats.
# - **A larger backbone**, which real work starts from:
#   `keras_smat.feature_backbone("dinov2_small", image_size=112)`.
# - **Longer training**: more `steps`, and `callbacks.BackupAndRestore` to go
#   on where a run was stopped.
# - **A benchmark**: `data.meta_dataset` for Meta-Dataset, and
#   `evaluate_benchmark` for several methods with ranks and paired tests.
# - **A few gradient steps after all**: adapters such as `FullFineTune()`
#   refine the weights of a task on its support, for every learner.
#
# The README tells more of each of these, and CONTRIBUTING how an episode flows
# through the library.
