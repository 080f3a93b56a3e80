"""The public names of d2ext, and the cost of importing it."""

import subprocess
import sys

import pytest

import d2ext
from tests.conftest import LITE0, REPO, checkout_env


def test_public_names_are_those_of_their_modules():
    from d2ext import Dataset, Predictor, load_config
    from d2ext.config import load
    from d2ext.data.datasets import declare
    from d2ext.predict import predictor

    assert Dataset is declare.Dataset
    assert Predictor is predictor.Predictor
    assert load_config is load.load_config
    assert set(d2ext.__all__) == {"Dataset", "Predictor", "load_config"}
    assert load_config(REPO / LITE0, ["train.max_iter=3"]).train.max_iter == 3
    with pytest.raises(AttributeError, match="module 'd2ext' has no attribute 'Datasets'"):
        d2ext.Datasets  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Datasets'"):
        from d2ext import Datasets  # noqa: F401


def test_the_import_is_fast_and_needs_no_torch():
    code = (
        "import sys, d2ext\n"
        "assert [m for m in sys.modules if m.startswith('d2ext')] == ['d2ext']\n"
        "from d2ext import Dataset, load_config\n"
        "assert not {'torch', 'detectron2', 'cv2'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=checkout_env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
