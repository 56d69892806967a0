"""Sizes: the parameters that a smaller run makes smaller, as `presets.yaml` declares them under `scale`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from helpers.parameters import BadRequestError, hint, limits_of


class Sizes(BaseModel):
    """What `--scale N` does to a preset. A value counts for those notebooks that declare the parameter.

    Attributes:
        divide: whole numbers, or lists of them, that are divided by N.
        shorten: lists of which the first Nth part stays.
        least: where more is needed than the low end of a parameter's range; for a list one number each, the last for
            all that follow.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    divide: list[str] = []
    shorten: list[str] = []
    least: dict[str, int | Annotated[list[int], Field(min_length=1)]] = {}

    def names(self) -> list[str]:
        """Return all parameters that are named here."""
        return [*self.divide, *self.shorten, *self.least]

    def check(self, model: type[BaseModel], elsewhere: set[str]) -> "Sizes":
        """Return the part that speaks of a notebook's own parameters.

        Args:
            model: the notebook's parameters.
            elsewhere: parameters of the chapter's other notebooks.

        Raises:
            BadRequestError: an unknown parameter, one that is no size, or a `least` of what is not divided.
        """
        fields = model.model_fields
        for name in self.names():
            if name not in fields and name not in elsewhere:
                raise BadRequestError(f"presets.yaml: scale: unknown parameter '{name}'{hint(name, fields)}")
        divide, shorten = ([name for name in names if name in fields] for names in (self.divide, self.shorten))
        for name in divide:
            if not _whole(fields[name].default):
                raise BadRequestError(f"presets.yaml: scale: divide: parameter '{name}' is no whole number")
        for name in shorten:
            if fields[name].annotation is not list:
                raise BadRequestError(f"presets.yaml: scale: shorten: parameter '{name}' is no list")
        if loose := self.least.keys() - set(self.divide):
            raise BadRequestError(f"presets.yaml: scale: least of '{min(loose)}', which is not divided")
        return Sizes(divide=divide, shorten=shorten, least={k: v for k, v in self.least.items() if k in divide})

    def scaled(self, model: type[BaseModel], values: Mapping[str, Any], scale: int) -> dict[str, Any]:
        """Return the sizes among `values` at an Nth: rounded up, at least 1, and never below what is allowed.

        A list is shortened before its numbers are divided, and keeps one number at least.

        Raises:
            BadRequestError: the scale is below 2, no size is declared, or nothing becomes smaller.
        """
        if scale < 2:
            raise BadRequestError(f"scale {scale}: a whole number from 2 on is needed")
        if not self.names():
            raise BadRequestError(f"scale {scale}: presets.yaml names no sizes of this notebook under 'scale'")
        found = {name: values[name][: _part(len(values[name]), scale)] for name in self.shorten}
        for name in self.divide:
            least, low = self.least.get(name, 0), int(limits_of(model, name).low or 0)
            floors = [max(low, one) for one in (least if isinstance(least, list) else [least])]
            found[name] = _divided(found.get(name, values[name]), scale, floors)
        if all(values[name] == value for name, value in found.items()):
            raise BadRequestError(f"scale {scale}: every size is as small as it may be: {', '.join(found)}")
        return found


def _part(number: int, scale: int) -> int:
    """An Nth, rounded up: what is there stays there."""
    return -(-number // scale)


def _divided(value: Any, scale: int, floors: list[int]) -> Any:
    """An Nth of a number, or of each in a list, kept from falling below its floor; none grows."""
    if isinstance(value, list):
        wide = floors + floors[-1:] * len(value)
        return [_divided(one, scale, [floor]) for one, floor in zip(value, wide, strict=False)]
    return min(value, max(_part(value, scale), floors[0]))


def _whole(value: Any) -> bool:
    """Whether a value is a whole number, or a list of them."""
    return all(type(one) is int for one in (value if isinstance(value, list) else [value]))
