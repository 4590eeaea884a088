"""What happens to the codebook after a step, on two ranks."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

STEPS_OF_TWO_RANKS = """
import sys
from dataclasses import replace
from types import SimpleNamespace

import torch
from accelerate import Accelerator

from pipelines.training.ema import EMA
from pipelines.training.tokenizer_step import _revive_codes, _update_quantizer
from tokenizer.quantizers import HierarchicalQuantizerConfig, VectorQuantizerConfig, make_quantizer

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
torch.manual_seed(0)
means = VectorQuantizerConfig(codebook_size=64, code_dim=4, l2_normalize=False, codebook_update="ema",
                              codebook_decay=0.9, revive_below=0.3, revive_decay=0.5)
quantizers = {"means": means, "kmeans": replace(means, codebook_init="kmeans", l2_normalize=True),
              "hierarchical": HierarchicalQuantizerConfig(channels=4, norm_groups=2, inner=means)}
for name, config in quantizers.items():
    module = torch.nn.ModuleDict({"quantize": make_quantizer(config)})
    module.quantize = module["quantize"]
    optimizer = SimpleNamespace(state={})
    learners = SimpleNamespace(model=SimpleNamespace(module=module, optimizer=optimizer), ema=EMA(module, 0.9))
    last = module.quantize.levels[1] if name == "hierarchical" else module.quantize
    size = 6 if name == "hierarchical" else 5
    start, moved, batches = last.embedding.weight.clone(), [], []
    for step in range(50):
        generator = torch.Generator().manual_seed(2 * step + rank)  # another batch on each rank
        features = torch.randn(2, 4, size, size, generator=generator) * (1 + rank)
        codes = module.quantize(features).codes
        _update_quantizer(module.quantize, codes, features, accelerator)
        updated = last.embedding.weight.clone()
        _revive_codes(learners, codes, features, step, 0, accelerator)
        moved.append(int((updated != last.embedding.weight).any(1).sum()))
        batches.append((features, codes))
    torch.save({"start": start, "moved": moved, "batches": batches, **module.quantize.state_dict()},
               f"{sys.argv[1]}/{name}-{rank}.pt")
"""


def test_two_ranks_keep_one_codebook_of_means_through_updates_and_revivals(tmp_path):
    (tmp_path / "script.py").write_text(STEPS_OF_TWO_RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, tmp_path / "script.py", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for kind, prefix in {"means": "", "kmeans": "", "hierarchical": "levels.1."}.items():
        first, second = (torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert not torch.equal(first["batches"][0][0], second["batches"][0][0])
        state = [name for name in first if name not in ("start", "moved", "batches")]
        for name in ("embedding.weight", "cluster_size", "cluster_sum", "usage"):
            assert f"{prefix}{name}" in state
        for name in state:
            assert torch.equal(first[name], second[name]), name
        assert first["moved"][0] == 64  # the first revival places them all
        assert sum(first["moved"][1:]) > 0
        assert not torch.equal(first[f"{prefix}embedding.weight"], first["start"])
        # The running sizes count both ranks' features: 100 a step, where the sum goes but for what revival sets.
        assert first[f"{prefix}cluster_size"].sum() > 75
