"""Encoding the masks of boxes gives the run lengths of the images that Detectron2 would create."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from hypothesis import given
from hypothesis import strategies as st

from d2ext.evaluation.roi_masks import encoded_masks


@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["inside", "all", "edges"]),
    st.sampled_from(["noise", "full", "none"]),
)
def test_encoded_masks_equal_those_of_detectron2(seed, height, width, where, what):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height, width, height])
    corners = torch.rand(5, 2, 2, generator=generator).sort(1).values.reshape(5, 4) * size
    if where == "edges":  # each side is on the image's edge with a probability of 0.5
        on = torch.rand(5, 4, generator=generator) < 0.5
        corners = torch.where(on, size * torch.tensor([0, 0, 1, 1]), corners)
    if where == "all":
        corners = (size * torch.tensor([0.0, 0, 1, 1])).repeat(5, 1)
    boxes = corners[((corners[:, 2:] - corners[:, :2]) > 0).all(1)]
    masks = torch.rand(len(boxes), 1, 28, 28, generator=generator)
    masks = {"noise": masks, "full": torch.ones_like(masks), "none": masks / 2.1}[what]
    images = paste_masks_in_image(masks[:, 0], boxes, (height, width)).numpy().astype(np.uint8)
    expected = [pycocotools.mask.encode(np.asfortranarray(image)) for image in images]
    found = encoded_masks(masks, boxes, height, width)
    assert [rle["counts"].encode() for rle in found] == [rle["counts"] for rle in expected]
    assert all(rle["size"] == [height, width] for rle in found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_half_precision(dtype):
    """They are encoded as the same numbers in single precision are."""
    masks, boxes = torch.rand(3, 1, 28, 28).to(dtype), torch.tensor([[2.0, 3, 20, 30]] * 3)
    expected = encoded_masks(masks.float(), boxes, 40, 40)
    assert encoded_masks(masks, boxes.to(dtype), 40, 40) == expected
