"""Numbers that ranks agree on. With real processes: tests/modeling/test_distributed.py."""

import torch
import torch.distributed as dist
from detectron2.utils import comm

from dinox.utils import distributed
from dinox.utils.distributed import max_across_ranks


def test_with_nccl_the_greatest_value_is_exchanged_between_hosts(monkeypatch):
    """A stand-in for two ranks with GPUs, of which the other one has 7."""
    groups = []

    def all_reduce(tensor, op, group):
        assert tensor.device.type == "cpu" and op == dist.ReduceOp.MAX
        groups.append(group)
        tensor.copy_(torch.maximum(tensor, torch.tensor(7)))

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(comm, "_get_global_gloo_group", lambda: "gloo")
    assert [max_across_ranks(5), max_across_ranks(9)] == [7, 9]
    assert groups == ["gloo", "gloo"]
