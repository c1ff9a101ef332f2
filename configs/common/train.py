"""The training loop's settings: the keys of detectron2's lazyconfig_train_net.py, plus `amp.dtype` and `seed`.

A config that takes `train` from here takes `schedule` and `lr_multiplier` from schedule.py too.
"""

train = {
    "output_dir": "./output",
    # Weights to start from: a detector's checkpoint, or a file with nothing but a backbone (ImageNet weights). Of a
    # detector that names its classes, those of the training data take the weights of the classes of their names.
    "init_checkpoint": "",
    # Take whatever fits of these weights; else less than 90 % of the model's (or of the backbone's) is an error.
    "allow_partial": False,
    "max_iter": "${schedule.iterations}",
    # Parts in which a process computes the gradients of its batch, for less memory: dataloader.train.total_batch_size
    # stays what the optimizer sees, and losses and gradients are those of the whole batch.
    "accumulation_steps": 1,
    # How optimizer.lr follows the batch size: "linear", "sqrt", or None for not at all. The reference is the batch that
    # optimizer.lr was chosen for.
    "lr_scaling": {"rule": None, "reference_batch_size": 16},
    # bf16 or fp16 with fp32 islands. (detectron2's own script knows fp16 only and ignores the rest.) In fp16, a step
    # whose gradients overflow is skipped, counted as skipped_steps; more than max_skips_in_a_row are an error.
    "amp": {"enabled": False, "dtype": "bf16", "max_skips_in_a_row": 20},
    # Layers of these parts through torch.compile, for inputs of varying sizes.
    "compile": {"enabled": False, "parts": ["encoder", "decoder"], "backend": "inductor", "dynamic": True},
    # Of which parts, among backbone, encoder and decoder, activations are computed again in the backward pass instead
    # of being kept: less memory, more time, the same gradients.
    "activation_checkpointing": [],
    # The same run twice gives the same weights (also --deterministic); without a seed it takes 0.
    "deterministic": False,
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    # Exponential moving average of the weights, which is what is evaluated. decay: DINO's code; detrex has 0.999,
    # Co-DETR's ViT-L 0.9999. warmup: steps, 0 for none; see dinox/engine/averaging.py.
    "ema": {"enabled": False, "decay": 0.9997, "warmup": 2000},
    # Of files that hold both, evaluate or start from the averaged weights, not those of the last step.
    "use_ema_weights": True,
    # After an evaluation that is better than all before: model_best.pth, the weights that were evaluated.
    "best_checkpoint": {"enabled": True, "metric": "bbox/AP", "mode": "max"},
    # End when so many evaluations in a row have not been better by more than min_delta.
    "early_stopping": {"enabled": False, "metric": "bbox/AP", "mode": "max", "patience": 5, "min_delta": 0.0},
    # "fsdp" shares out weights, gradients and the optimizer's state among the processes, for models that are too large
    # to be trained on one GPU; "ddp" keeps a copy on each. An evaluation with "fsdp" builds a whole copy of the weights
    # on every GPU, which has to fit there.
    "parallel": "ddp",
    "timeout": 600,  # seconds that processes wait for each other before all of them end
    "checkpointer": {"period": "${schedule.iterations_per_epoch}", "max_to_keep": 5},
    "eval_period": "${schedule.iterations_per_epoch}",
    # DN-DETR's, DINO's and Stable-DINO's measures of matching on evenly spread test images (all of them for None), for
    # `dinox analyze curves --metric matching/instability matching/anchor_target_l1 matching/atd_100
    # matching/unstable_0`, which is of the first decoder layer.
    "matching_metrics": {"enabled": False, "period": "${train.eval_period}", "num_images": 100, "top_k": 100},
    # Steps with a loss or a gradient that is NaN or infinite: left out, up to so many in the whole run; then an error.
    "non_finite": {"most_skipped": 0},
    "log_period": 20,
    "device": "cuda",  # without a GPU, dinox's training script says so and takes the CPU
    "seed": -1,  # -1: another one each time
}
