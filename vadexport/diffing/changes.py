"""What changed from one side to the other: of the build, of how it was verified, of figures."""

from collections.abc import Iterator
from typing import Any, Final

from vadexport.artifact import Manifest
from vadexport.diffing.result import Change
from vadexport.diffing.sides import Side, object_at, value_at
from vadexport.reporting.wording import FIGURES, limits_in_words, shown

#: Digits of a SHA-256 that are shown.
_SHOWN: Final = 16
#: Where `parity.json` holds a figure, its title, its form.
_FIGURES: Final = (
    (("figures", "auroc_reference"), "image AUROC of the reference", ".4f"),
    (("figures", "auroc"), "image AUROC", ".4f"),
    *((("figures", key), title, form) for key, title, form in FIGURES),
    (("evidence", "kendall"), "Kendall's tau", ".4f"),
    (("evidence", "f1_max", "reference"), "F1-max of the reference", ".4f"),
    (("evidence", "f1_max", "artifact"), "F1-max", ".4f"),
    (("evidence", "aupro", "reference"), "AUPRO of the reference", ".4f"),
    (("evidence", "aupro", "artifact"), "AUPRO", ".4f"),
    (("evidence", "map_spearman"), "mean rank correlation of maps", ".5f"),
    (("evidence", "mask_iou"), "mean IoU of masks", ".4f"),
    (("planted", "images"), "planted defects", "d"),
    (("planted", "auroc", "reference"), "AUROC on planted defects of the reference", ".4f"),
    (("planted", "auroc", "artifact"), "AUROC on planted defects", ".4f"),
    (("planted", "drift_max"), "largest drift on planted defects", ".3g"),
    (("planted", "flips"), "flips on planted defects", "d"),
    (("size_mb",), "size on disk, MB", ".4g"),
)
#: Of the environment, what is another one each time.
_FLEETING: Final = ("verified_at", "load_before", "load_after", "latency_rounds", "gpu")
#: ... and what of it a latency hangs on.
_MACHINE: Final = (
    "processor",
    "gpu name",
    "processors",
    "affinity",
    "quota",
    "governor",
    "threads",
    "system",
)


def build_changes(before: Manifest | None, after: Manifest | None) -> Iterator[Change]:
    """Of two artifacts' manifests."""
    if before is None or after is None:
        return
    yield from _differences(_facts(before), _facts(after), missing="none")


def _differences(
    before: dict[str, str], after: dict[str, str], missing: str | None = None
) -> Iterator[Change]:
    """Facts that differ; where `missing` is None, only those that both have."""
    for name in dict.fromkeys((*before, *after)):
        if missing is None and not (name in before and name in after):
            continue
        old, new = before.get(name, missing), after.get(name, missing)
        if old != new:
            yield Change(name, str(old), str(new))


def _facts(manifest: Manifest) -> dict[str, str]:
    """Everything of a manifest that a reader compares, in words."""
    image_input, thresholds, source = manifest.image_input, manifest.thresholds, manifest.source
    rung = manifest.parity[-1] if manifest.parity else {}
    return {
        "target": str(manifest.target),
        "source": f"{source.get('family')}, sha256 {source.get('sha256', '')[:16]}",
        "input": f"{image_input.dtype} {image_input.shape}",
        "map": str(manifest.map_size),
        "threshold": "none" if thresholds is None else f"{thresholds.image:.6g}",
        "drift unit": f"{manifest.drift_unit:.6g}",
        "calibration": "none" if manifest.calibration is None else manifest.calibration.sha256[:16],
        "drift when built": f"{rung.get('drift_max')}",
        "proven on": manifest.proven_on,
        "built on": manifest.processor,
        **{f"precision of {part}": kind for part, kind in manifest.precision.items()},
        **{f"version of {name}": version for name, version in manifest.tools.items()},
        **{
            f"file {name}": f"{entry.size:,} bytes, sha256 {entry.sha256[:16]}"
            for name, entry in manifest.files.items()
        },
    }


def verified_changes(first: Side, second: Side) -> Iterator[Change]:
    """Of what was verified, to which limits, and where."""
    if first.parity is None or second.parity is None:
        return
    yield from _differences(_verified(first.parity), _verified(second.parity))
    yield from _differences(_limits(first.parity), _limits(second.parity))
    before, after = _environment(first.parity), _environment(second.parity)
    if before and after:
        for one in _differences(before, after, missing="none"):
            yield Change(f"verified with {one.name}", one.before, one.after)


def _verified(parity: dict[str, Any]) -> dict[str, str]:
    """What a report is of; what an older vadexport did not write is left out."""
    facts = {
        "target": (parity.get("target"), ""),
        "reference": (parity.get("source_name"), ""),
        "threshold": (parity.get("threshold"), ".6g"),
        "drift unit": (parity.get("drift_unit"), ".6g"),
        "drift unit from": (parity.get("drift_unit_from"), ""),
        "proven on": (parity.get("proven_on"), ""),
    }
    digests = object_at(parity, "sha256")
    known = {
        f"sha256 of {name}": digests[key][:_SHOWN]
        for key, name in (
            ("manifest", "the manifest"),
            ("source", "what it was built from"),
            ("reference", "the reference"),
            ("images", "the images"),
        )
        if isinstance(digests.get(key), str)
    }
    return {**{name: shown(value, form) for name, (value, form) in facts.items()}, **known}


def _limits(parity: dict[str, Any]) -> dict[str, str]:
    limits = limits_in_words(object_at(parity, "limits"))
    return {f"limit of {name}": words for name, words in limits.items()}


def _environment(report: dict[str, Any] | None) -> dict[str, str]:
    """Where and with what it was verified, without what is another one each time."""
    found = object_at(report, "environment")
    gpu = value_at(found, "gpu", "name")
    kept = {
        **({} if gpu is None else {"gpu name": gpu}),
        **{key: value for key, value in found.items() if key not in _FLEETING},
    }
    return {name.replace("_", " "): shown(value, "") for name, value in kept.items()}


def figure_changes(first: Side, second: Side) -> Iterator[Change]:
    """Of parity and latency."""
    old, new = first.parity, second.parity
    if object_at(old, "figures") and object_at(new, "figures"):
        for keys, title, form in _FIGURES:
            pair = [shown(value_at(report, *keys), form) for report in (old, new)]
            if pair[0] != pair[1]:
                yield Change(title, *pair)
    if first.latency and second.latency:
        reports = (first.latency, second.latency)
        medians = [shown(value_at(one, "artifact", "median_ms"), ".3g") for one in reports]
        if medians[0] != medians[1]:
            yield Change("median latency, ms", *medians)
        ratios = [_speedup(one) for one in reports]
        if ratios[0] != ratios[1]:
            yield Change("speed-up [95% interval]", *ratios)


def _speedup(latency: dict[str, Any]) -> str:
    found = object_at(latency, "speedup")
    ratio, low, high = (shown(found.get(key), ".3g") for key in ("ratio", "low", "high"))
    return f"{ratio} [{low}–{high}]"


def unlike_measurements(first: Side, second: Side) -> Iterator[str]:
    """Why a difference of two latencies is not the artifact's alone, for a reader."""
    if first.latency is None or second.latency is None:
        return
    found = _differences(_conditions(first.latency), _conditions(second.latency))
    differ = [f"{one.name} {one.before} → {one.after}" for one in found]
    if differ:
        yield (
            "latency was not measured under like conditions, so its change is not the artifact's "
            f"alone: {'; '.join(differ)}"
        )


def _conditions(latency: dict[str, Any]) -> dict[str, str]:
    """What a latency hangs on, beside the artifact and what runs it."""
    known = _environment(latency)
    machine: dict[str, str] = {name: known[name] for name in _MACHINE if name in known}
    return {**machine, "images a call": shown(latency.get("batch"), "")}
