# SPDX-License-Identifier: Apache-2.0
"""nanoGPT's model and optimizer from a checkout (argument 1); see scripts/bench_peers.py."""

import json
import os
import sys
import time

sys.path.insert(0, sys.argv[1])
import torch
from model import GPT, GPTConfig  # nanoGPT's model.py

torch.manual_seed(0)
config = GPTConfig(
    block_size=256, vocab_size=8192, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False
)
model = GPT(config)
adamw = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
forward = torch.compile(model) if os.environ["COMPILE"] == "1" else model
tokens = torch.randint(8192, (16, 257))
inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
ends = []
for _ in range(12):
    _, loss = forward(inputs, targets)
    adamw.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    loss.item()
    ends.append(time.time())
print(json.dumps(ends))
