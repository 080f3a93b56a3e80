"""config.yaml: a config that was saved, which is read without running any code.

Detectron2 reads its YAML with a loader that makes whatever Python object a tag names.
"""

import tempfile
from pathlib import Path
from typing import Any

_SHAPE = "tag:yaml.org,2002:python/object:detectron2.layers.shape_spec.ShapeSpec"
_TUPLE = "tag:yaml.org,2002:python/tuple"


def saved_text(cfg: Any) -> tuple[str, str | None]:
    """A config as YAML, and why it cannot be read again, or None.

    Args:
        cfg: an omegaconf DictConfig; interpolations stay as they are.
    """
    from detectron2.config import LazyConfig

    # Detectron2 writes in place, and logs what goes wrong with the disk.
    with tempfile.TemporaryDirectory() as folder:
        LazyConfig.save(cfg, f"{folder}/config.yaml")
        text = Path(folder, "config.yaml").read_text()
    try:
        parse_saved(text)
    except Exception as e:  # of YAML, or of omegaconf
        problem = getattr(e, "problem", None) or str(e)
        return text, problem.splitlines()[0]
    return text, None


def parse_saved(text: str, name: str = "config.yaml") -> Any:
    """The config that a YAML text holds: plain values, tuples and Detectron2's ShapeSpec.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        yaml.YAMLError: it holds something else, or is no YAML.
    """
    import yaml
    from omegaconf import OmegaConf

    class Loader(yaml.SafeLoader):
        pass

    def shape(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Any:
        from detectron2.layers import ShapeSpec

        return ShapeSpec(**loader.construct_mapping(node))

    def values(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> tuple:
        return tuple(loader.construct_sequence(node, deep=True))

    Loader.add_constructor(_SHAPE, shape)
    Loader.add_constructor(_TUPLE, values)
    loader = Loader(text)
    loader.name = name
    return OmegaConf.create(loader.get_single_data(), flags={"allow_objects": True})
