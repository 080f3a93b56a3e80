"""Train parts of a model with a fraction of the learning rate."""

from collections.abc import Iterable, Mapping

from d2ext.errors import UserError
from d2ext.text import did_you_mean


class LrFactors:
    """Factors of the learning rate, for `optimizer.params.lr_factor_func`.

    Weights that are trained already, such as those of a backbone, need smaller steps than layers
    that start from random weights (discriminative fine-tuning, Howard and Ruder 2018,
    https://arxiv.org/abs/1801.06146).
    """

    def __init__(self, factors: Mapping[str, float]):
        """Describe the factors.

        Args:
            factors: Factor by the name of a module or parameter, such as `backbone.bottom_up`; the
                longest name that fits counts, and all other parameters have the factor 1.

        Raises:
            ValueError: A factor is negative.
        """
        for name, factor in factors.items():
            if factor < 0:
                raise ValueError(f"factors.{name}={factor}: give 0 or more")
        # The longest name first.
        self._factors = dict(sorted(factors.items(), key=lambda item: -len(item[0])))

    def __call__(self, name: str) -> float:
        """Return the factor of a parameter by its name in the model."""
        for part, factor in self._factors.items():
            if _is_in(name, part):
                return factor
        return 1.0

    def check(self, names: Iterable[str]) -> None:
        """Check that each factor has parameters, frozen ones included.

        Args:
            names: Names of all parameters of the model.

        Raises:
            UserError: No name fits to a factor, so that it would have no effect.
        """
        names = list(names)
        for part in self._factors:
            if not any(_is_in(name, part) for name in names):
                parts = (name.split(".") for name in names)
                known = {".".join(p[:end]) for p in parts for end in range(1, len(p) + 1)}
                hint = did_you_mean(part, sorted(known), "give the name of a module or parameter")
                raise UserError(
                    "optimizer.params.lr_factor_func.factors: the model has no parameter in"
                    f" {part}; {hint}"
                )


def _is_in(name: str, part: str) -> bool:
    """Return whether a parameter is a part of the model, or is in it."""
    return name == part or name.startswith(f"{part}.")
