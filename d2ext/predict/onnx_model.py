"""Run an exported ONNX file with onnxruntime in place of a Detectron2 model."""

import os
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import LazyCall as L
from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from d2ext.data.loading.mapper import Mapper
from d2ext.errors import UserError, format_exception
from d2ext.predict.onnx_info import ModelInfo, from_metadata


class OnnxModel(nn.Module):
    """An exported model with the inputs and outputs of a Detectron2 model in evaluation mode.

    Masks stay relative to their boxes: instances have `roi_masks` in place of `pred_masks`, so that
    Detectron2's evaluators cannot use them. It runs on the CPU, with as many threads as torch.

    Args:
        file: ONNX file written by `d2ext export`.

    Attributes:
        info: Metadata of the file.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing, damaged, or of another
            version.
    """

    def __init__(self, file: str | os.PathLike):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as e:
            raise UserError(
                f"onnxruntime cannot be imported ({e}): pip install 'd2ext[export]'"
            ) from e
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file; export a run with `d2ext export RUN`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # of many types, which onnxruntime does not publish
            raise UserError(
                f"{file} cannot be read: {format_exception(e)}; export the run again"
            ) from e
        entries = self._session.get_modelmeta().custom_metadata_map
        self.info: ModelInfo = from_metadata(entries, str(file))

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Return the detections in images, in pixels of the original ones.

        Args:
            batched_inputs: Detectron2's inputs: `image`, uint8 (3, H, W), and optionally the
                `height` and `width` of the original image.

        Returns:
            For each image, `instances`; with a mask head, they have `roi_masks` (N, 1, M, M),
            probabilities in the boxes.
        """
        return [{"instances": self._detect(sample)} for sample in batched_inputs]

    def _detect(self, sample: dict[str, Any]) -> Instances:
        image = np.ascontiguousarray(sample["image"].cpu().numpy().transpose(1, 2, 0))
        height, width = image.shape[:2]
        boxes, scores, classes, *masks = map(
            torch.from_numpy, self._session.run(None, {"image": image})
        )
        found = Instances((height, width), pred_boxes=Boxes(boxes), scores=scores)
        found.pred_classes = classes
        if masks:
            found.roi_masks = masks[0][:, None]
        return detector_postprocess(found, sample.get("height", height), sample.get("width", width))


def input_config(info: ModelInfo) -> DictConfig:
    """Return a config that describes the classes and the input of an exported model."""
    resize = L(T.ResizeShortestEdge)(short_edge_length=info.short_edge, max_size=info.max_size)
    mapper = L(Mapper)(is_train=False, augmentations=[resize], image_format=info.channels)
    return OmegaConf.create(
        {"model": {}, "datasets": {}, "dataloader": {"val": {"mapper": mapper}}},
        flags={"allow_objects": True},
    )
