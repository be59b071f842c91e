"""Limits that somebody set, and that nothing can be held against here."""

from collections.abc import Collection, Iterator, Sequence

from vadexport.detectors.exportable import Exportable
from vadexport.errors import InputError
from vadexport.images import ImageFile
from vadexport.machine import peak_megabytes
from vadexport.verification.unjudged import flag_of
from vadexport.verifying.options import VerifyOptions


def check_judgeable(
    options: VerifyOptions,
    precisions: Collection[str],
    detector: Exportable,
    files: Sequence[ImageFile],
) -> None:
    """Refuse limits that were given and could only be passed over.

    Raises:
        InputError: there is such a limit; the line says why.
    """
    given = frozenset[str]().union(*map(options.given, precisions))
    for name, reason in _impossible(detector, files):
        if name in given:
            raise InputError(f"{flag_of(name)} cannot be judged: {reason}; leave that limit out")


def _impossible(detector: Exportable, files: Sequence[ImageFile]) -> Iterator[tuple[str, str]]:
    """Names of limits that cannot be judged, each with the reason."""
    if detector.thresholds is None:
        yield "max_flips", "the detector makes no decisions"
    if detector.map_size is None:
        yield "max_map_drift", "the detector gives no map"
    if all(file.label is True for file in files):  # where some are not, defects are planted
        yield "min_auroc_delta", "all images are anomalous"
    if len(files) == 1:
        yield "min_spearman", "one image alone has no rank"
    if peak_megabytes() is None:
        yield "max_memory_mb", "this system does not tell how much memory a process takes"
