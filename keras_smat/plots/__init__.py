"""Figures: arrays in, matplotlib Axes out.

Every function draws on the `ax` it is given or on a figure of its own
(`ax.figure`), which belongs to no window and no pyplot state. Colours are
those of Okabe and Ito, told apart by colour-blind readers; series differ in
marker or dash too.

```python
from keras_smat import plots

ax = plots.accuracy_bars([[0.61, 0.48]], [[0.01, 0.02]], ["ID", "OOD"], ["A"])
ax.figure.savefig("bars.svg")
```
"""

from keras_smat.plots.accuracies import accuracy_bars
from keras_smat.plots.accuracies import differences
from keras_smat.plots.accuracies import id_against_ood
from keras_smat.plots.episodes import episode_picture
from keras_smat.plots.style import COLORS
from keras_smat.plots.style import INK
from keras_smat.plots.training import learning_curves
from keras_smat.plots.training import merging_weights
from keras_smat.plots.training import sparsity_over_time

__all__ = [
    "COLORS",
    "INK",
    "accuracy_bars",
    "differences",
    "episode_picture",
    "id_against_ood",
    "learning_curves",
    "merging_weights",
    "sparsity_over_time",
]
