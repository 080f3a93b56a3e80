"""The page with an exported model, as a file; test_page_browser.py opens it."""

import base64
import gzip
import hashlib
import json
import re

import onnx
import pytest

from d2ext.errors import UserError
from d2ext.export.page import write_page
from d2ext.predict.onnx_info import Provenance
from tests.export.pages import write_model

EVIL = "</script><!--<b>"


@pytest.fixture
def page(tmp_path):
    """Return the text of a page, and the model in it."""
    model = write_model(
        tmp_path / "model.onnx",
        classes=["balloon", EVIL],
        precision="float16",
        provenance=Provenance(
            run=f"run {EVIL}",
            weights="model_best.pth",
            averaged=True,
            created="2026-11-30T09:00:00+00:00",
            versions={"d2ext": "0.2"},
        ),
    )
    write_page(model, tmp_path / "pages" / "page.html")
    return (tmp_path / "pages" / "page.html").read_text(), model.read_bytes()


def part(html, name):
    return re.search(rf'<script id="{name}" type="[^"]+">(.*?)</script>', html, re.DOTALL)[1]


def test_everything_is_in_one_file(page, repo):
    html, model = page
    assert not re.search(r'(src|href)="(?!data:)', html) and "http-equiv" in html
    assert gzip.decompress(base64.b64decode(part(html, "onnx"))) == model
    wasm = gzip.decompress(base64.b64decode(part(html, "wasm")))
    assert wasm.startswith(b"\0asm") and len(wasm) > 10_000_000
    assert len(html) < 5_500_000  # without a real model, of which lite0's needs 13 MB
    assert (repo / "d2ext/export/onnxruntime_web/LICENSE").read_text()[:60] in html
    notices = gzip.decompress(base64.b64decode(part(html, "notices"))).decode()
    assert notices.startswith("THIRD PARTY SOFTWARE NOTICES") and "protobuf" in notices


def test_the_policy_allows_only_the_code_of_the_page(page):
    html, _ = page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert "unsafe" not in policy.replace("wasm-unsafe-eval", "")
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules[rule]
    assert not re.search(r"<[^>]+ (style|on\w+)=", html)


def test_names_are_escaped_and_facts_shown(page):
    html, _ = page
    assert EVIL not in html
    about = json.loads(part(html, "about"))
    assert about["classes"] == ["balloon", EVIL] and about["mask_size"] == 28
    assert "run &lt;/script&gt;" in html and "30 November 2026" in html
    assert "model_best.pth (averaged over the training steps)" in html
    assert "half precision" in html


def test_the_threshold_starts_where_predict_shows_objects(tmp_path):
    for lowest, shown in ((0.05, 0.5), (0.29, 0.5), (0.7, 0.7)):
        model = write_model(
            tmp_path / "m.onnx",
            score_threshold=lowest,
            mask_size=0,
            architecture="Faster R-CNN",
        )
        write_page(model, tmp_path / "page.html")
        html = (tmp_path / "page.html").read_text()
        assert f'min="{lowest}" max="1" step="0.01" value="{shown}"' in html
        assert "<title>Faster R-CNN</title>" in html and "half precision" not in html


def test_bad_models_are_named(tmp_path):
    page = tmp_path / "page.html"
    model = write_model(tmp_path / "model.onnx")
    missing = tmp_path / "missing.onnx"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:-5])
    foreign = onnx.load(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for file, words in (
        (missing, "No such file"),
        (damaged, "is damaged"),
        (tmp_path / "foreign.onnx", "was not exported by d2ext"),
    ):
        with pytest.raises(UserError, match=words) as e:
            write_page(file, page)
        assert str(file) in str(e.value) and "export the run again" in str(e.value)
    assert not page.exists()
    with pytest.raises(UserError, match="cannot write"):
        write_page(model, model / "page.html")


def test_onnxruntime_web_is_unchanged(repo):
    """The README next to the files has the hashes of the packages that they come from."""
    folder = repo / "d2ext/export/onnxruntime_web"
    readme = (folder / "README.md").read_text()
    files = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", readme, re.MULTILINE)
    assert len(files) == 5
    for digest, name in files:
        packed = folder / f"{name}.gz"
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else b""
        content = content or (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
    version = re.search(r"Web v([\d.]+)", (folder / "ort.wasm.min.js").read_text())[1]
    assert readme.startswith(f"ONNX Runtime Web {version} ")
