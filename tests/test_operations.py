"""The benchmarks count operations of both passes, and sort those of a profile by kind."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.operations import FLOOR, counter, kind_of


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("of_image", [True, False])
def test_a_backward_pass_counts_once_for_each_gradient(groups, of_image):
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    image = torch.rand(2, 8, 5, 7, requires_grad=of_image)
    with counter() as counted:
        output = layer(image)
    forward = 2 * 3 * 3 * (8 // groups) * output.numel()
    assert counted.get_total_flops() == forward
    with counter() as counted:
        layer(image).sum().backward()
    assert counted.get_total_flops() == (3 if of_image else 2) * forward


def test_operations_of_a_profile_are_sorted_by_kind():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        layers(torch.rand(1, 3, 3, 3)).sum().backward()
    kinds = {event.key: kind_of(event.key) for event in profiled.key_averages()}
    products = {name for name, kind in kinds.items() if kind == FLOOR}
    assert {"aten::convolution_backward", "aten::addmm", "aten::mm"} <= products
    assert not any("sum" in name or "AccumulateGrad" in name for name in products)
    assert kind_of("torchvision::roi_align") == "RoIAlign"
    assert kind_of("aten::topk") == kind_of("torchvision::nms") == "NMS, sorting"
    assert kind_of("aten::index_select") == "copies, indexing"
    assert kind_of("aten::relu_") == "activations, optimizer, other"
