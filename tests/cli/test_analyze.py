"""`d2ext analyze` on a recipe with data."""


def test_the_cost_of_a_recipe_on_its_own_data(d2ext_command, tiny, repo):
    recipe = repo / "configs/balloon/mask_rcnn_lite0_fpn_balloon.py"
    done = d2ext_command("analyze", recipe, *tiny, "train.freeze=[backbone]")
    assert done.status == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines.keys() >= {"device", "image", "parameters", "inference", "training", "FLOPs"}
    assert "/balloon/val/" in lines["image"]
    assert lines["backbone:"].endswith("0.00 million of which train")
    assert "one image of 96 x 128" in lines["inference"] and "G multiply-adds" in lines["FLOPs"]
