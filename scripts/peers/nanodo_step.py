# SPDX-License-Identifier: Apache-2.0
"""nanodo's Trainer from a checkout (argument 1), without its data path; see scripts/bench_peers.py."""

import json
import sys
import time
import types

sys.path.insert(0, sys.argv[1])
for name in (
    "tensorflow_datasets",
    "sentencepiece",
    "clu",
    "clu.metric_writers",
    "clu.periodic_actions",
):
    module = types.ModuleType(name)  # imported by nanodo, not needed for a step
    module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
    sys.modules.setdefault(name, module)
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from nanodo import model_factory, train
from nanodo.configs import default

c = default.get_config()
shape = {"D": 384, "H": 6, "L": 256, "N": 6, "F": 1536}
c.model.update({**shape, "dtype": "float32", "fsdp_enabled": True, "remat": False})
c.batch_size, c.log_internal_metrics = 16, False
c.opt.update({"num_train_steps": 1000, "warmup_steps": 10, "peak_learning_rate": 1e-3})
c.opt.clip_by_global_norm = 1.0
mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
model, loss_fn = model_factory.get_model_and_loss(c, 8192)
shardings, state = train._init_train_state(c, model, rng=jax.random.PRNGKey(0), mesh=mesh)
trainer = train.Trainer(c=c, state=state, mesh=mesh, shardings=shardings, get_loss_fn=loss_fn)
tokens = jnp.asarray(np.random.RandomState(0).randint(1, 8192, (16, 256)), jnp.int32)
ends = []
for i in range(12):
    jax.device_get(trainer.do_step(i, tokens))
    ends.append(time.time())
print(json.dumps(ends))
