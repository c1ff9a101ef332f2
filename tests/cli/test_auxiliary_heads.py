"""Co-DETR from the command line: trained with its heads, evaluated without them, or by one of them (table 11)."""

import json
from pathlib import Path

import pytest
import torch

MASK_BRANCH = (
    "model.auxiliary_heads.roi.mask_branch={_target_: dinox.modeling.MaskBranch, embed_dim: 32, num_classes: 6}"
)
CONFIG = str(Path(__file__).parents[1] / "engine" / "tiny_co_config.py")


def test_heads_train_and_one_of_them_is_evaluated_on_request(dinox, output_dir, tmp_path):
    run = ("--config-file", CONFIG, f"train.output_dir={output_dir}")
    code, _, err = dinox("train", *run, "train.max_iter=1", "--json", tmp_path / "train.json")
    assert code == 0, err
    assert {"loss_atss_giou", "loss_roi_class", "loss_giou_positive_roi"} < set(
        json.loads((output_dir / "metrics.json").read_text().splitlines()[0])
    )
    weights = output_dir / "model_final.pth"
    found = {}
    for head in ("null", "roi"):
        override = f"model.auxiliary_heads.detect_with={head}"
        arguments = (f"train.init_checkpoint={weights}", override, f"train.output_dir={tmp_path / head}")
        code, _, err = dinox("eval", "--config-file", CONFIG, *arguments, "--json", tmp_path / f"{head}.json")
        assert code == 0, err
        found[head] = json.loads((tmp_path / f"{head}.json").read_text())["results"]
    assert found["null"] == json.loads((tmp_path / "train.json").read_text())["results"]
    assert found["roi"].keys() == found["null"].keys()

    stripped = torch.load(weights, weights_only=False)
    names = [name for name in stripped["model"] if name.startswith(("auxiliary_heads", "query_groups.positive"))]
    for name in names:
        del stripped["model"][name]
    assert names
    torch.save(stripped, tmp_path / "stripped.pth")
    arguments = (f"train.init_checkpoint={tmp_path / 'stripped.pth'}", f"train.output_dir={tmp_path / 'stripped'}")
    code, _, err = dinox("eval", "--config-file", CONFIG, *arguments, "--json", tmp_path / "stripped.json")
    assert code == 0, err
    assert json.loads((tmp_path / "stripped.json").read_text())["results"] == found["null"]


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("model.auxiliary_heads.detect_with=atts", ["there is no head 'atts'", "Did you mean 'atss'"]),
        ("model.auxiliary_heads.roi=null", ["need the auxiliary head 'roi'", "query_groups.<group>=null"]),
        ("model.auxiliary_heads.atss.num_levels=3", ["num_levels is 3", "5 levels"]),
        (
            MASK_BRANCH,
            ["model.auxiliary_heads.roi learns from masks", "dataloader.train.mapper.masks=bitmask"],
        ),
    ],
)
def test_a_mistake_is_one_line_before_the_first_step(dinox, output_dir, override, messages):
    code, _, err = dinox("train", "--config-file", CONFIG, override, f"train.output_dir={output_dir}")
    assert code != 0
    assert err.count("\n") == 1 and all(message in err for message in messages), err
    assert not output_dir.exists()
