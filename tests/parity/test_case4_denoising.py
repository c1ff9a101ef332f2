"""Denoising queries against recorded ones, the recorded random draws injected (meta.json of the case explains them)."""

import numpy as np
import pytest
import torch

from dinox.modeling import (
    CenterShiftAndScale,
    ContrastiveBoxNoise,
    DenoisingQueries,
    DynamicGroups,
    FixedGroups,
    LabelEmbedding,
)
from dinox.modeling.queries import DenoisingNoise
from dinox.structures import MATCHING, QueryContext, QueryGroup, Targets, build_attention_mask

from ..small_models import make_memory
from .golden import fill, load_json, load_npz

CASE = "case4_dn"
CONTRASTIVE = [
    "three_images",
    "more_gt_than_dn_number",
    "equal_counts_scale04",
    "single_box",
    "no_label_noise",
    "no_box_noise",
]
ATOL = 1e-6  # a few float32 roundings of numbers in [0, 1]


def recorded_targets(arrays: dict, count: int) -> Targets:
    labels = [torch.from_numpy(arrays[f"gt_labels_{i}"]) for i in range(count)]
    return Targets.from_lists(labels, [torch.from_numpy(arrays[f"gt_boxes_{i}"]) for i in range(count)])


def to_slots(rows: torch.Tensor, counts: tuple[int, ...], copies: int) -> torch.Tensor:
    """Recorded draws, one row per noised box (all boxes of the batch, tiled ``copies`` times) -> (B, C, M, ...)."""
    slots = rows.new_zeros(len(counts), copies, max(counts), *rows.shape[1:])
    per_copy = rows.unflatten(0, (copies, sum(counts)))
    start = 0
    for image, count in enumerate(counts):
        slots[image, :, :count] = per_copy[:, start : start + count]
        start += count
    return slots


def recorded_noise(arrays: dict, facts: dict, counts: tuple[int, ...], copies: int, flip_probability: float):
    """The recorded draws as our DenoisingNoise; draws that the recording left out have no effect."""
    draws = [torch.from_numpy(arrays[f"draw_{i}_{kind}"]) for i, kind in enumerate(facts["draw_order"])]
    rows = copies * sum(counts)
    flip, new_labels = torch.ones(rows), torch.zeros(rows, dtype=torch.int64)
    sign, magnitude = torch.ones(rows, 4), torch.zeros(rows, 4)
    if draws and draws[0].dim() == 1:
        flip, drawn_labels, *draws = draws
        new_labels[flip < flip_probability] = drawn_labels
    if len(draws) == 2:  # contrastive: signs (recorded as -1 or 1, or as 0 or 1), magnitudes
        sign = torch.where(draws[0] > 0, 1.0, -1.0)
        magnitude = draws[1]
    elif draws:  # DN-DETR: 2 u - 1
        signed = 2 * draws[0] - 1
        sign, magnitude = torch.where(signed < 0, -1.0, 1.0), signed.abs()
    return DenoisingNoise(*(to_slots(each, counts, copies) for each in (flip, new_labels, sign, magnitude)))


def run(denoising: DenoisingQueries, targets: Targets, noise: DenoisingNoise | None) -> QueryGroup:
    if noise is not None:
        denoising.sample_noise = lambda shape, copies, context: noise
    return denoising(QueryContext(make_memory(torch.zeros(len(targets.counts), 1, 4)), targets=targets))


def assert_queries(group: QueryGroup, arrays: dict, facts: dict) -> None:
    np.testing.assert_array_equal(group.content.detach().numpy(), arrays["query_label"])
    recorded_anchors = torch.from_numpy(arrays["query_bbox"]).sigmoid()  # recorded as logits
    np.testing.assert_allclose(group.anchors, recorded_anchors, rtol=0, atol=ATOL)
    matching = QueryGroup(MATCHING, group.content[:, :1].expand(-1, facts["num_queries"], -1))
    np.testing.assert_array_equal(build_attention_mask([group, matching]).numpy(), arrays["attn_mask"])


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_contrastive_denoising_queries(name):
    arrays, facts = load_npz(CASE, f"cdn_{name}"), load_json(CASE, "meta")["cdn"][name]
    targets = recorded_targets(arrays, len(facts["targets_per_image"]))
    scale = facts["box_noise_scale"]
    embedding = LabelEmbedding(num_classes=facts["num_classes"], embed_dim=facts["hidden_dim"])
    embedding.table.weight.data = fill("label_enc.weight", (facts["num_classes"], facts["hidden_dim"]))
    denoising = DenoisingQueries(
        num_classes=facts["num_classes"],
        label_embedding=embedding,
        box_noise=ContrastiveBoxNoise(lambda1=scale, lambda2=2 * scale),
        groups=DynamicGroups(num_queries=facts["dn_number"]),
        flip_probability=facts["label_noise_ratio"] / 2,
    )
    noise = recorded_noise(arrays, facts, targets.counts, 2 * facts["groups"], denoising.flip_probability)
    group = run(denoising, targets, noise)
    assert group.size == facts["groups"] * facts["slots_per_group_pos_plus_neg"]
    assert group.subgroup_size == facts["slots_per_group_pos_plus_neg"]
    assert_queries(group, arrays, facts)


@pytest.mark.parametrize("name", ["three_images", "no_indicator", "one_group"])
def test_denoising_queries(name):
    arrays, facts = load_npz(CASE, f"dn_{name}"), load_json(CASE, "meta")["dn"][name]
    targets = recorded_targets(arrays, len(facts["targets_per_image"]))
    indicator = facts["with_indicator"]
    embedding = LabelEmbedding(
        num_classes=facts["num_classes"], embed_dim=facts["hidden_dim"], unknown_class=True, indicator=indicator
    )
    embedding.table.weight.data = fill("label_encoder.weight", tuple(embedding.table.weight.shape))
    denoising = DenoisingQueries(
        num_classes=facts["num_classes"],
        label_embedding=embedding,
        box_noise=CenterShiftAndScale(center_shift=facts["box_noise_scale"], scale=facts["box_noise_scale"]),
        groups=FixedGroups(num_groups=facts["groups"]),
        flip_probability=facts["label_noise_prob"],
    )
    noise = recorded_noise(arrays, facts, targets.counts, facts["groups"], facts["label_noise_prob"])
    group = run(denoising, targets, noise)
    assert group.subgroup_size == facts["slots_per_group"]
    assert_queries(group, arrays, facts)


def test_a_batch_without_objects_has_no_denoising_queries():
    arrays, facts = load_npz(CASE, "cdn_all_empty"), load_json(CASE, "meta")["cdn"]["all_empty"]
    embedding = LabelEmbedding(num_classes=facts["num_classes"], embed_dim=facts["hidden_dim"])
    denoising = DenoisingQueries(
        num_classes=facts["num_classes"],
        label_embedding=embedding,
        box_noise=ContrastiveBoxNoise(),
        groups=DynamicGroups(num_queries=facts["dn_number"]),
    )
    group = run(denoising, recorded_targets(arrays, 2), None)
    assert facts["returns_none"]
    assert group.size == 0
    group.content.sum().backward()
    assert torch.equal(embedding.table.weight.grad, torch.zeros_like(embedding.table.weight))
