"""Values of an earlier run are applied once, and only to a config that lacks them."""

import msgspec
import pytest

import d2ext
from d2ext.config import by_hand as keys
from d2ext.config.choices import Choice, with_choices
from d2ext.config.load import load_config
from d2ext.config.yaml_io import saved_text
from d2ext.data.fitting.fit import AUTO, Fitted
from d2ext.data.fitting.rules import Hardware
from d2ext.errors import UserError
from d2ext.preflight.chosen import as_trained, choose_values

RECIPE = "custom/mask_rcnn_lite0_fpn.py"
CPU = Hardware("cpu")
CROP = {"_target_": "d2ext.data.loading.augment.object_crop.ObjectCrop", "size": [9, 9]}
CHOICES = [Choice(keys.CROP, CROP, "crops"), Choice(keys.EPOCHS, 50, "50 epochs")]


@pytest.fixture
def run(tmp_path):
    """Return a folder with the files of a run that chose values, as far as they matter."""
    (tmp_path / AUTO).write_bytes(msgspec.json.encode(Fitted(choices=CHOICES)))
    text, _ = saved_text(with_choices(d2ext.get_config(RECIPE), CHOICES))
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("override", ["data.auto=True", "train.budget=10 min"])
def test_the_config_of_a_run_is_final(run, override):
    """Even after an edit, and with another length."""
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("max_epochs: 50", "max_epochs: 60"))
    cfg = load_config(file, [override, "train.warmup_iters=7"])
    chosen, is_new = choose_values(cfg, CPU, run, trained=True)
    assert not is_new and chosen.applied == [] and chosen.choices == CHOICES
    assert chosen.lines() == ["the values of the run's config.yaml stay"]
    made = with_choices(cfg, chosen.applied)
    assert made.train.max_epochs == 60 and made.train.budget is None and not made.data.auto
    assert len(made.dataloader.train.mapper.augmentations) == 3


def test_the_original_config_gets_the_values_of_its_run(run):
    cfg = d2ext.get_config(RECIPE, ["optimizer.lr=1e-3"])
    chosen, is_new = choose_values(cfg, CPU, run, trained=True)
    assert not is_new and chosen.applied == CHOICES
    cfg = d2ext.get_config(RECIPE, ["train.max_epochs=9"])
    chosen, _ = choose_values(cfg, CPU, run, trained=True)
    assert chosen.applied == CHOICES[:1]


def test_weights_without_the_choices_of_their_run(tmp_path, caplog):
    cfg = d2ext.get_config(RECIPE)
    words = f"{tmp_path} has no auto.json, so the recipe's values are used"
    chosen, is_new = choose_values(cfg, CPU, tmp_path, trained=True)
    assert not is_new and chosen.applied == [] and words in chosen.lines()[-1]
    assert as_trained(cfg, tmp_path) is cfg and words in caplog.text
    caplog.clear()
    as_trained(d2ext.get_config(RECIPE, ["data.auto=False"]), tmp_path)
    assert not caplog.text


def test_a_budget_is_checked_on_resume_as_well(run):
    cfg = d2ext.get_config(RECIPE, ["train.budget=soon"])
    with pytest.raises(UserError, match="train.budget='soon': give hours"):
        choose_values(cfg, CPU, run, trained=True)


def test_a_changed_copy_of_a_recipe_and_a_budget_are_contradictory():
    cfg = d2ext.get_config(RECIPE, ["train.budget=10 min"])
    cfg.data.auto = False
    choose_values(cfg, CPU, None)
    cfg.train.max_epochs = 3
    with pytest.raises(UserError, match="both set the length of the run; give one of them"):
        choose_values(cfg, CPU, None)
