"""What changed from one artifact, or report, to another."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Something that differs, before and after, in words."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class ChangedImage:
    """An image that both verified.

    Attributes:
        name: as listed.
        before: its raw score.
        after: likewise.
        drift: difference, in drift units of the first.
        decision: whether its decision changed.
    """

    name: str
    before: float
    after: float
    drift: float
    decision: bool


@dataclass(frozen=True)
class Diff:
    """All that changed.

    Attributes:
        build: of what was built, and with what.
        verified: of what was verified, to which limits, and where.
        figures: of the verifications.
        images: whose decision changed, then those whose score changed most; at most 20.
        shared: number of images that both verified.
        decisions: number of these whose decision changed.
        only_before: number of images that only the first verified.
        only_after: number of images that only the second verified.
        worse: checks that fall short now and did not before, new ones too, and those that are no
            longer made, in words.
        unverified: which of the two has no report of `verify`, or another artifact's.
        notes: what the figures must be read with, in words.
    """

    build: tuple[Change, ...]
    verified: tuple[Change, ...]
    figures: tuple[Change, ...]
    images: tuple[ChangedImage, ...]
    shared: int
    decisions: int
    only_before: int
    only_after: int
    worse: tuple[str, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether images were compared, no decision changed, and no check is worse."""
        return not self.reasons

    @property
    def exit_status(self) -> int:
        """1 where something changed that must not, or no image could be compared; 2 unverified."""
        return _status(fell_short=bool(self._changes), unverified=bool(self.unverified))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not hold, in words."""
        missing = (
            f"{one} was not verified: `vadexport verify` it first" for one in self.unverified
        )
        return (*self._changes, *missing)

    @property
    def _changes(self) -> tuple[str, ...]:
        words = list(self.worse)
        if self.decisions:
            words.append(f"{self.decisions} of {self.shared} decisions changed")
        if not self.shared and not self.unverified:
            words.append(
                f"no image was verified by both: {self.only_before} by the first alone, "
                f"{self.only_after} by the second"
            )
        return tuple(words)


@dataclass(frozen=True)
class FolderDiff:
    """All that changed between two folders of several artifacts, or of their reports.

    Attributes:
        pairs: what changed in each that both have, by the name of its folder.
        removed: names that only the first has.
        added: names that only the second has.
        short: checks that fall short of those that were added, in words.
        unverified: names of those that were added and have no report of `verify`.
    """

    pairs: dict[str, Diff]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    short: tuple[str, ...]
    unverified: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether each pair held, none is gone, and what is new was verified and held."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """As that of a pair."""
        statuses = {one.exit_status for one in self.pairs.values()}
        fell_short = bool(self.removed or self.short or 1 in statuses)
        return _status(fell_short=fell_short, unverified=bool(self.unverified or 2 in statuses))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not hold, in words."""
        return (
            *(
                f"{name}: {'; '.join(one.reasons)}"
                for name, one in self.pairs.items()
                if one.reasons
            ),
            *(f"{name}: no longer there" for name in self.removed),
            *self.short,
            *(f"{name}: new, and not verified" for name in self.unverified),
        )


def _status(*, fell_short: bool, unverified: bool) -> int:
    """What fell short is known; what was not verified is wrong input."""
    return 1 if fell_short else 2 if unverified else 0
