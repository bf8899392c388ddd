# SPDX-License-Identifier: Apache-2.0
"""Which parameter is treated how: by the logical names of its axes, and by its path.

| label  | axes, stacking "layers" and "expert" apart | weight decay | driven by Muon |
|--------|--------------------------------------------|--------------|----------------|
| state  | "balance" among them: biases of routers    | no update at all, see model/balance.py |
| embed  | "vocab" among them                         | yes          | no             |
| matrix | two or more, "embed" among them            | yes          | yes            |
| vector | at most one: norm scales, sinks            | no           | no             |
"""

import difflib
import re
from typing import Any, Literal

import jax

from jaxlm.core.errors import ConfigError
from jaxlm.optim.config import GroupConfig

Axes = tuple[str, ...]
Label = Literal["state", "embed", "matrix", "vector"]
STACKING = ("layers", "expert")  # axes along which there is a parameter of its own at every index
NO_GROUP = -1  # not None, which would be no leaf of a tree


def is_axes(node: Any) -> bool:
    """Stops a tree walk at the names of one parameter's axes."""
    return isinstance(node, tuple)


def own_dims(axes: Axes) -> tuple[int, ...]:
    """The dimensions of one layer's parameter, or one expert's: all but the stacking ones."""
    return tuple(dim for dim, name in enumerate(axes) if name not in STACKING)


def label(axes: Axes) -> Label:
    """The row of the table above; raises ValueError where none fits."""
    if "balance" in axes:
        return "state"
    if "vocab" in axes:
        return "embed"
    if len(own_dims(axes)) < 2:
        return "vector"
    if "embed" in axes:
        return "matrix"
    raise ValueError(f"no optimizer label fits a parameter with the axes {axes}")


def dimension_numbers(axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(input, output) dimensions of the matrix that a parameter stands for; none for a vector.

    A matrix that ends in "embed" writes the residual stream, so all before it is input; the
    others read the stream along "embed".  Many axes on one side count as one, flattened.

    Example:
        >>> dimension_numbers(("layers", "embed", "heads", "head_dim"))
        ((1,), (2, 3))
        >>> dimension_numbers(("layers", "heads", "head_dim", "embed"))
        ((1, 2), (3,))
    """
    if label(axes) == "vector":
        return (), ()
    dims = own_dims(axes)
    stream = axes.index("embed")
    others = tuple(dim for dim in dims if dim != stream)
    return (others, (stream,)) if stream == dims[-1] else ((stream,), others)


def group_indices(axes: Any, groups: tuple[GroupConfig, ...]) -> Any:
    """For every parameter the index of the first group whose pattern matches its path, or NO_GROUP.

    Raises ConfigError for a group that gets no parameter, naming the paths most like it.
    """
    with_paths, treedef = jax.tree.flatten_with_path(axes, is_leaf=is_axes)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in with_paths]
    indices = [
        next((i for i, g in enumerate(groups) if re.fullmatch(g.pattern, path)), NO_GROUP)
        for path in paths
    ]
    for i, group in enumerate(groups):
        if i not in indices:
            near = ", ".join(difflib.get_close_matches(group.pattern, paths, n=3, cutoff=0.0))
            raise ConfigError(
                f"GroupConfig.pattern {group.pattern!r} must match the whole path of a parameter "
                f"that no earlier group has, got none; the nearest paths are {near}"
            )
    return jax.tree.unflatten(treedef, indices)
