"""What came of each stage of a detector's training, as its checkpoint tells."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from vadexport.errors import InputError

#: How a stage ends: all its steps, no better loss on the held-out images, or out of time.
ALL_STEPS: Final = "all steps"
NO_BETTER: Final = "no better loss"
OUT_OF_TIME: Final = "out of time"
_MOST_STAGES = 100


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        name: of the stage.
        steps: done, those before a resumption included.
        of: at most.
        best_step: whose weights the detector has.
        loss: of those weights, on the held-out images.
        ended: one of the constants above.
    """

    name: str
    steps: int
    of: int
    best_step: int
    loss: float
    ended: str

    @property
    def words(self) -> str:
        """For a reader."""
        return (
            f"{self.name}: {self.steps} of {self.of} steps ({self.ended}), best after "
            f"{self.best_step}"
        )

    def to_json(self) -> dict[str, Any]:
        """The form that checkpoints hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` wrote; raises InputError where it is something else."""
        names = {field.name for field in fields(cls)}
        if type(value) is not dict or value.keys() != names:
            raise InputError("a stage of its training is damaged: a field is missing or unknown")
        found = cls(**value)
        whole = (found.steps, found.of, found.best_step)
        if (
            any(type(number) is not int or number < 0 for number in whole)
            or type(found.loss) is not float
            or not math.isfinite(found.loss)
            or type(found.name) is not str
            or type(found.ended) is not str
        ):
            raise InputError("a stage of its training is damaged: a field is of another type")
        return found


def read_stages(value: Any) -> tuple[Stage, ...]:
    """Stages that a checkpoint holds; raises InputError where it is something else."""
    if type(value) is not list or len(value) > _MOST_STAGES:
        raise InputError("the stages of its training are damaged: no list, or too long a one")
    return tuple(Stage.from_json(each) for each in value)
