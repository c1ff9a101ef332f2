"""Scores that the first rank computes for longer than ranks wait for each other."""

import time
from datetime import timedelta

import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from dinox.evaluation import evaluate_model
from tests.modeling.test_distributed import free_port

TIMEOUT = timedelta(seconds=2)


class SlowScores(DatasetEvaluator):
    def evaluate(self):
        if comm.is_main_process():
            time.sleep(1.5 * TIMEOUT.total_seconds())
        return {"bbox": {"AP": 50.0}}


class DetectsNothing(nn.Module):
    def forward(self, inputs):
        return []


def evaluate_on_a_rank(rank, port):
    address = f"tcp://localhost:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=TIMEOUT)
    results = evaluate_model(DetectsNothing(), [[]], SlowScores())
    assert results.get("bbox/AP") == (50.0 if rank == 0 else None), results
    dist.destroy_process_group()


def test_ranks_wait_for_scores_longer_than_for_each_other_else():
    mp.start_processes(evaluate_on_a_rank, (free_port(),), nprocs=2, start_method="fork")
