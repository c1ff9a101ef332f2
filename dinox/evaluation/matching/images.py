"""The images that matching is measured on: those of the test set, with their objects."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader
from omegaconf import DictConfig

from dinox.config.calls import is_call
from dinox.data.errors import DataError


@dataclass(frozen=True)
class GroundTruthImages:
    """records: in detectron2's format. mapper: from a record to a model's input with ``instances``."""

    records: Sequence[dict]
    mapper: Callable[[dict], dict]
    num_workers: int = 0

    @classmethod
    def of_test_set(cls, cfg: DictConfig, *, num_images: int | None = None) -> "GroundTruthImages":
        """The images of ``cfg.dataloader.test`` as evaluation sees them, with the objects that training would see.

        So crowd regions are left out. With ``num_images`` only as many, evenly spread over the set, always the same.

        Raises DataError if the loader is not made of dataset and mapper, or there are no objects.
        """
        test = cfg.dataloader.get("test") or {}
        for key in ("dataset", "mapper"):
            if not is_call(test.get(key)):
                raise DataError(
                    f"dataloader.test.{key}: expected a part with a _target_, as in dinox's configs, got "
                    f"{test.get(key)!r}: matching is measured on a test set whose objects can be read"
                )
        mapper, records = instantiate(test.mapper), instantiate(test.dataset)
        mapper.is_train = True  # the augmentations are those of evaluation; now it gives objects, too
        if num_images is not None and num_images < len(records):
            records = [records[i * len(records) // num_images] for i in range(num_images)]
        if not any(_is_object(annotation) for record in records for annotation in record.get("annotations", ())):
            raise DataError(
                f"dataloader.test: {len(records)} images without any object: matching cannot be measured. Take a "
                "dataset with annotations, or more of its images"
            )
        if "instances" not in mapper(records[0]):
            raise DataError(
                "dataloader.test.mapper: expected one that gives `instances` when it is_train, such as "
                f"dinox.data.DetectionMapper, got a {type(mapper).__name__} that does not: matching is measured with "
                "the objects"
            )
        return cls(list(records), mapper, int(test.get("num_workers", 0)))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        return [str(record.get("file_name", record.get("image_id"))) for record in self.records]

    def batches(self) -> Iterable[list[dict]]:
        """A loader, of one image each. In distributed runs, a rank gets its share; all shares in the order of ranks
        are all images, in order."""
        return build_detection_test_loader(dataset=self.records, mapper=self.mapper, num_workers=self.num_workers)


def _is_object(annotation: dict) -> bool:
    return annotation.get("iscrowd", 0) == 0
