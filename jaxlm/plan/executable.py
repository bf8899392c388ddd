# SPDX-License-Identifier: Apache-2.0
"""A compiled step as a file that trains later, on the machine it was compiled for.

The file: one line of JSON that says what the step was compiled from, and the sha256 of what follows;
then the executable.  It is refused when any of that differs; learning rates, lengths and seeds are
inputs and may differ.  Loading unpickles: the sum finds damage, but only load files that you made.
"""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxlm.config import RunConfig
from jaxlm.core.canonical import write_atomic
from jaxlm.core.errors import RunError
from jaxlm.plan.identity import program_config, surroundings
from jaxlm.sharding.mesh import make_mesh
from jaxlm.train.setup import Trainer, abstract_batch, on_mesh

FORMAT = "jaxlm step 2"
PAYLOAD = "sha256"  # in the header, of all that follows it
MOST_NAMED = 4  # differences in one message


def origin(config: RunConfig, devices: list[Any]) -> dict[str, Any]:
    """Everything that an executable depends on."""
    return {
        "format": FORMAT,
        "config": program_config(config),
        "devices": {
            "kind": devices[0].device_kind,
            "count": len(devices),
            "places": [list(getattr(d, "coords", ())) for d in devices],
        },
        **surroundings(lambda name: jax.config.values.get(name, "")),
    }


def pack(config: RunConfig, devices: list[Any], compiled: Any) -> bytes:
    """The bytes of the file."""
    payload, _, _ = serialize_executable.serialize(compiled)
    header = origin(config, devices) | {PAYLOAD: hashlib.sha256(payload).hexdigest()}
    return json.dumps(header, sort_keys=True).encode() + b"\n" + payload


def save(config: RunConfig, devices: list[Any], compiled: Any, path: Path) -> None:
    write_atomic(path, pack(config, devices, compiled))


def open_step(config: RunConfig, path: Path) -> Callable[[Trainer], Trainer]:
    """What puts the executable of `path` in the place of a trainer's step; nothing is loaded yet.

    Raises RunError when the file is none, is damaged, or was made for another program, machine or
    version; the message names what differs.
    """
    header, payload = _split(path)
    here = json.loads(json.dumps(origin(config, make_mesh(config.mesh).devices.flatten().tolist())))
    if differences := list(_differences(header, here)):
        more = len(differences) - MOST_NAMED
        raise RunError(
            f"--executable {path} was compiled for something else: "
            f"{'; '.join(differences[:MOST_NAMED])}{f'; and {more} more' if more > 0 else ''}; "
            "make it anew with jaxlm plan --save, or train without it"
        )

    def load(trainer: Trainer) -> Trainer:
        devices = list(trainer.mesh.devices.flat)
        try:
            step = serialize_executable.deserialize_and_load(
                payload, *_trees(config, trainer), execution_devices=devices
            )
        except (RuntimeError, ValueError, pickle.UnpicklingError) as e:  # such as a lesser CPU
            raise RunError(
                f"--executable {path} cannot be loaded here ({str(e).partition(chr(10))[0][:200]}); "
                "make it anew with jaxlm plan --save, or train without it"
            ) from e
        return dataclasses.replace(trainer, step=step)

    return load


def _trees(config: RunConfig, trainer: Trainer) -> tuple[Any, Any]:
    """Structure of the step's arguments and of its results, from shapes alone."""
    state = trainer.abstract_state
    batch = abstract_batch(config, trainer.mesh, config.data.batch_size)
    with on_mesh(trainer.mesh, trainer.rules):
        out = jax.eval_shape(trainer.step, state, batch)
    return jax.tree.structure(((state, batch), {})), jax.tree.structure(out)


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        header = json.loads(line)
    except (OSError, ValueError, RecursionError) as e:
        raise RunError(
            f"--executable {path} cannot be read ({type(e).__name__}); make it with jaxlm plan --save"
        ) from e
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RunError(f"--executable {path} is no executable of this version; make it anew")
    if header.pop(PAYLOAD, None) != hashlib.sha256(payload).hexdigest():
        raise RunError(
            f"--executable {path} is damaged: its {len(payload):,} bytes of program have another "
            "sha256 than its first line says; copy it again, or make it anew with jaxlm plan --save"
        )
    return header, payload


def _differences(then: Any, now: Any, path: str = "") -> Any:
    """Yields `path: there X, here Y` for every leaf that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            yield from _differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif then != now:
        yield f"{path} there {str(then)[:40]}, here {str(now)[:40]}"
