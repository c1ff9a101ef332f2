"""The keys of ``train``, and values that make no sense together."""

import pytest
from omegaconf import OmegaConf

from dinox.engine.compilation import CompileOptions
from dinox.engine.options import check_options
from dinox.engine.process_group import timeout_of
from dinox.engine.setup import check_settings


def settings(**train):
    """A config of detectron2's own keys, and more."""
    own = {
        "output_dir": "./output",
        "init_checkpoint": "",
        "max_iter": 100,
        "amp": {"enabled": False},
        "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
        "checkpointer": {"period": 5000, "max_to_keep": 100},
        "eval_period": 50,
        "log_period": 20,
        "device": "cuda",
    }
    return OmegaConf.create({"train": own | train, "dataloader": {"evaluator": {}}})


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"wandb": {"enabled": False}, "clip_grad": {"enabled": True}, "fast_dev_run": {"enabled": False}},
        {"model_ema": {"enabled": False, "decay": 0.999}, "log_interval": 5, "max_epoch": 12, "eval_only": True},
        {"ddp": {"gradient_as_bucket_view": True, "bucket_cap_mb": 50}},
        {"checkpointer": {"period": 10, "max_to_keep": None}, "init_checkpoint": None, "deterministic": None},
        {"amp": {"enabled": True, "opt_level": "O1"}},
    ],
)
def test_configs_may_lack_keys_and_have_their_own(own):
    check_settings(settings(**own))


@pytest.mark.parametrize(
    ("amp", "message"),
    [
        ("fp16", r"train\.amp: expected a section with enabled, dtype, max_skips_in_a_row, got 'fp16'"),
        ({"enable": True}, r"train\.amp\.enable: there is no such key\. Did you mean 'enabled'"),
        ({"enabled": "yes"}, r"train\.amp\.enabled: expected true or false, got 'yes'"),
        ({"dtype": "fp17"}, r"train\.amp\.dtype: expected one of fp32, bf16, fp16, got 'fp17'"),
        *(
            ({"max_skips_in_a_row": value}, r"train\.amp\.max_skips_in_a_row: expected a whole number of at least 1")
            for value in (0, None, True, 2.5)
        ),
    ],
)
def test_mistakes_in_amp_name_the_key(amp, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings(amp=amp))


@pytest.mark.parametrize("period", [0, 100, 101])
def test_a_run_that_is_never_evaluated_cannot_be_stopped_early(period):
    with pytest.raises(ValueError, match=rf"with train.eval_period={period} there is no evaluation before the end"):
        check_options(settings(eval_period=period, early_stopping={"enabled": True}))
    check_options(settings(eval_period=99, early_stopping={"enabled": True}))


def test_compiling_nothing_is_refused():
    with pytest.raises(ValueError, match=r"train.compile.parts: expected at least one of encoder, decoder, got \[\]"):
        CompileOptions(parts=[])


def test_backends_that_break_on_purpose_are_not_offered():
    with pytest.raises(ValueError, match="Did you mean 'inductor'") as error:
        CompileOptions(backend="inductr")
    assert "TESTING_ONLY" not in str(error.value)


def test_a_number_that_cannot_be_computed_names_its_key():
    cfg = settings(max_iter="${dinox.iterations:0,8,4}")
    with pytest.raises(ValueError, match=r"^train.max_iter: expected schedule.epochs to be a number above 0, got 0$"):
        check_settings(cfg)


@pytest.mark.parametrize("seconds", [10**300, 1e300, float("nan"), 0, "600"])
def test_processes_wait_for_a_year_at_most(seconds):
    with pytest.raises(
        ValueError, match=r"train.timeout: expected seconds, .* at most 31536000 \(a year\), got"
    ) as error:
        timeout_of(settings(timeout=seconds))
    assert len(str(error.value)) < 160
