"""Fingerprints, which a resume compares, of unusual annotations."""

from detectron2.structures import BoxMode

from d2ext.checkpoint.fingerprint import fingerprint
from d2ext.config.load import load_config
from d2ext.data.loading.loader import build_train_loader


def _digest(repo, attributes):
    annotation = {"bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "a.jpg", "height": 2, "width": 2, "image_id": 1}
    record["annotations"] = [{**annotation, "attributes": attributes}]
    loader = build_train_loader(
        [record],
        dict,
        total_batch_size=1,
        num_workers=0,
        seed=0,
        reference_batch_size=1,
        reference_world_size=1,
    )
    cfg = load_config(repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py")
    return fingerprint(cfg, loader)["data"]["sha256"]


def test_annotations_may_have_keys_of_any_type(repo):
    """Keys of different types cannot be sorted for JSON."""
    mixed = _digest(repo, {1: "x", "by": "y"})
    assert mixed == _digest(repo, {1: "x", "by": "y"})
    assert len({mixed, _digest(repo, {1: "x", "by": "z"}), _digest(repo, {"by": "y"})}) == 3
