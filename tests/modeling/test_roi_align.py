"""`BagROIAlign` matches torchvision's RoIAlign, forward and backward."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import roi_align

from d2ext.modeling.roi_align import BagROIAlign


@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([(7, 7), (14, 14), (1, 3)]),
    st.sampled_from(["anywhere", "without extent", "none"]),
)
def test_results_match_torchvision(seed, aligned, ratio, size, kind):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 9, 12, generator=generator)
    count = 0 if kind == "none" else 6
    corner = torch.randn(count, 2, generator=generator) * 40  # also outside the image
    extent = torch.randn(count, 2, generator=generator).abs() * 60
    if kind == "without extent":
        extent[torch.rand(count, 2, generator=generator) < 0.5] = 0
    image = torch.randint(0, 2, (count, 1), generator=generator).float()
    rois = torch.cat([image, corner, corner + extent], 1)
    ours, theirs = (features.clone().requires_grad_() for _ in range(2))
    expected = roi_align(theirs, rois, size, 0.25, ratio, aligned)
    found = BagROIAlign(size, 0.25, ratio, aligned)(ours, rois)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weights = torch.randn(expected.shape, generator=generator)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4)


def test_autocast_matches_torchvision():
    """`BagROIAlign` computes in float32, like torchvision, and returns the features' dtype."""
    features = torch.randn(1, 8, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 20, 20]])
    with torch.autocast("cpu", torch.bfloat16):
        found = BagROIAlign((2, 2), 0.25, 0)(features, rois)
        expected = roi_align(features, rois.bfloat16(), (2, 2), 0.25, 0, True)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert features.grad.dtype == torch.bfloat16


def test_memory_of_long_boxes_is_bounded():
    """With wide and tall boxes in one batch, every box would get as many samples as both."""
    features = torch.randn(1, 2, 256, 256)
    long = torch.tensor([[0.0, 0, 0, 1000, 8], [0, 0, 0, 8, 1000]]).repeat(200, 1)
    found = BagROIAlign((7, 7), 0.25, 0)(features, long)
    assert torch.equal(found, roi_align(features, long, (7, 7), 0.25, 0, True))
