"""A detector that is ready to run, with what it needs to know about images and classes."""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dinox.checkpoint import CheckpointDescription, load_weights, read_description
from dinox.checkpoint.building import build_model, explained
from dinox.config import ConfigError, apply_overrides, load_config
from dinox.data import DataError
from dinox.data.checks import check_dataset, dataset_names
from dinox.data.large_scale_jitter import content_size
from dinox.engine.setup import resolve_device
from dinox.modeling import drop_training_parts

logger = logging.getLogger(__name__)

_MAPPER = "dataloader.test.mapper"
_AUGMENTATIONS = f"{_MAPPER}.augmentations"


@dataclass(frozen=True)
class Detector:
    """model: detectron2's contract in eval mode. resize: what it takes to the size of its inputs. input_format: "RGB"
    or "BGR". class_names: by class index. category_ids: the dataset's, by class index, where they are known. exif,
    max_pixels: how image files are read (see ``dinox.data.images``); None: as the reader likes.
    """

    model: Callable[[list[dict]], list[dict[str, Instances]]]
    resize: T.AugmentationList
    input_format: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] | None = None
    exif: str = "apply"
    max_pixels: int | None = None

    def prepare(self, image: np.ndarray, *, name: str) -> dict:
        """The model's input for an RGB array (H, W, 3) of uint8; detections come out in its frame. Raises DataError."""
        pixels = image if self.input_format == "RGB" else image[:, :, ::-1]
        resized = T.AugInput(np.ascontiguousarray(pixels))
        try:
            transforms = self.resize(resized)
        except ValueError as error:
            height, width = image.shape[:2]
            raise DataError(
                f"{name}: an image of {width} x {height} pixels cannot be resized for the model ({error}): cut it into "
                "pieces of another shape"
            ) from error
        tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        content = content_size(transforms, image.shape[:2], resized.image.shape[:2])
        return {
            "image": tensor,
            "height": image.shape[0],
            "width": image.shape[1],
            "file_name": name,
            **({} if content == resized.image.shape[:2] else {"content_size": content}),
        }


def load_detector(
    weights: str | os.PathLike | None,
    *,
    config: DictConfig | str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    allow_targets: Sequence[str] = (),
    ema: bool = True,
) -> Detector:
    """From a checkpoint; arguments as for ``Predictor``. Raises ConfigError and CheckpointError.

    With None as ``weights``, the model of ``config`` as initialised.
    """
    weights = None if weights is None else os.fspath(weights)
    torch_device = resolve_device("cuda" if torch.cuda.is_available() else "cpu", requested=device, setting="device")
    description = CheckpointDescription()
    if weights is not None:
        description = read_description(weights, allow_targets=allow_targets)
    cfg, origin = config_of_checkpoint(description, config, weights, allow_targets)
    apply_overrides(cfg, overrides, file=origin)
    resize = _resize_of(cfg, origin)
    model = build_model(cfg, origin=origin)
    if weights is not None:
        load_weights(model, weights, purpose="evaluate", ema=ema)
    drop_training_parts(model)
    names = _class_names(cfg, description)
    if getattr(model, "class_names", names) is None:  # what is known of an image can be said by name
        model.class_names = names
    return Detector(
        model=_moved(model, torch_device).eval(),
        resize=resize,
        input_format=_input_format(cfg),
        class_names=names,
        category_ids=_category_ids(cfg, names),
        exif=OmegaConf.select(cfg, f"{_MAPPER}.exif") or "apply",
        max_pixels=OmegaConf.select(cfg, f"{_MAPPER}.max_pixels"),
    )


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "meta":
        raise ValueError("device: expected 'cpu' or 'cuda', got 'meta', which computes nothing")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: the model cannot be moved to {str(device)!r} ({reason}): give 'cpu', or 'cuda' if there is memory"
        ) from error


# -------------------------------------------------------------------------------------------------------------- configs


def config_of_checkpoint(
    description: CheckpointDescription,
    config: DictConfig | str | os.PathLike | None,
    weights: str | None,
    allow_targets: Sequence[str],
) -> tuple[DictConfig, str]:
    """The config, and what messages call it."""
    if isinstance(config, DictConfig):
        return copy.deepcopy(config), "config"
    if config is not None:
        return load_config(config, allow_targets=allow_targets), os.fspath(config)
    cfg = description.config
    if cfg is None:
        raise ConfigError(
            f"checkpoint {weights} does not say of which model it is, as those that dinox trains do: give its config, "
            "a file or a name in the model zoo (config=..., --config-file ...), such as dino/dino_r50_4scale_12ep"
        )
    return cfg, f"{weights} (its config)"


def _resize_of(cfg: DictConfig, origin: str) -> T.AugmentationList:
    with explained(origin, _AUGMENTATIONS):
        augmentations = OmegaConf.select(cfg, _AUGMENTATIONS)
    if "model" not in cfg or augmentations is None:
        missing = "model" if "model" not in cfg else _AUGMENTATIONS
        raise ConfigError(
            f"{origin} has no '{missing}': expected a LazyConfig with a model, and with the test images' size in "
            f"'{_AUGMENTATIONS}'. Give such a config (config=..., --config-file ...)"
        )
    with explained(origin, _AUGMENTATIONS):
        resize = T.AugmentationList(list(instantiate(augmentations)))
    return resize


def _input_format(cfg: DictConfig) -> str:
    default = "BGR"  # detectron2's
    return OmegaConf.select(cfg, "model.input_format") or OmegaConf.select(cfg, f"{_MAPPER}.image_format") or default


# -------------------------------------------------------------------------------------------------------------- classes


def _class_names(cfg: DictConfig, description: CheckpointDescription) -> tuple[str, ...]:
    """The checkpoint's, else those of the config's dataset if their number is the model's, else numbers."""
    num_classes = OmegaConf.select(cfg, "model.num_classes")
    names = description.class_names
    if names is None:
        names = next((found for found in map(_names_in_dataset, _datasets(cfg)) if found is not None), None)
    if names is not None and num_classes in (None, len(names)):
        return names
    if names is not None:
        logger.warning(
            "The model has %d classes, but %d names are known for them: they are numbered", num_classes, len(names)
        )
    else:
        logger.warning("The names of the classes are not known: they are numbered")
    return tuple(f"class {index}" for index in range(num_classes or 0))


def _datasets(cfg: DictConfig) -> list[str]:
    splits = (OmegaConf.select(cfg, f"dataloader.{split}") for split in ("test", "train"))
    return [name for split in splits for name in dataset_names(split) if name in DatasetCatalog.list()]


def _names_in_dataset(name: str) -> tuple[str, ...] | None:
    """Of a registered dataset; its json is read if it is there and was not read yet."""
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if metadata.get("thing_classes") is None and json_file and os.path.isfile(json_file):
        try:
            check_dataset(name, annotated=False)
        except DataError as error:
            logger.warning("%s", error)
    names = metadata.get("thing_classes")
    return None if names is None else tuple(names)


def _category_ids(cfg: DictConfig, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Of the config's dataset, if it is registered here and has these classes."""
    for name in _datasets(cfg):
        metadata = MetadataCatalog.get(name)
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and tuple(metadata.get("thing_classes", ())) == class_names:
            return tuple(category_id for category_id, _ in sorted(ids.items(), key=lambda item: item[1]))
    return None
