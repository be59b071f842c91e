"""`index.html`: a verification as one page that needs nothing but a browser."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vadexport import __version__
from vadexport.artifact import MANIFEST_FILE
from vadexport.errors import MissingPackageError
from vadexport.reporting.distributions import distribution_plot
from vadexport.reporting.frontier import search_section
from vadexport.reporting.notable import drift_of, notable_images
from vadexport.reporting.pictures import ExhibitPictures, colour_scale, exhibit_pictures
from vadexport.reporting.plots import drift_plot, latency_plot, score_plot
from vadexport.reporting.timing import latency_rows
from vadexport.reporting.wording import (
    FIGURES,
    MISSING,
    figure,
    kind,
    limit_rows,
    loss,
    measured,
    percent,
    shown,
    unchecked,
    verdict,
    warm_up,
)
from vadexport.verification.latency import LatencyFigures
from vadexport.verification.losses import Compared
from vadexport.verification.result import Exhibit, Verification

_TEMPLATE: Final = "report.html.j2"
#: Rows of the table of images: those that changed most; `parity.json` has all.
_NOTABLE: Final = 30


@dataclass(frozen=True)
class _Headline:
    title: str
    value: str
    detail: str


def html_report(v: Verification) -> str:
    """The page: one file, no script, no request to any network.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise MissingPackageError("jinja2", "report") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vadexport.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        figure=figure,
        measured=measured,
        percent=percent,
        verdict=verdict,
        kind=kind,
        markup=Markup,
    )
    return environment.get_template(_TEMPLATE).render(
        v=v,
        version=__version__,
        headlines=_headlines(v),
        unchecked=unchecked(v),
        scores=score_plot(v.records, v.threshold),
        distributions=distribution_plot(v.records, v.threshold),
        drifts=drift_plot(v.records, v.threshold, v.drift_unit, v.limits.max_drift),
        latency=latency_plot(v.latency) if v.latency else None,
        runs=_runs(v),
        layers=v.latency.artifact.execution.executed_layers if v.latency else (),
        exhibits=_exhibits(v),
        scale=colour_scale(),
        notable=notable_images(v, _NOTABLE),
        ladder_titles=[title for _, title, _ in FIGURES],
        ladder=[_rung(found) for found in v.ladder],
        search=search_section(v.search),
        climbed=[_rung(found) for found in (v.diagnosis.ladder if v.diagnosis else ())],
        limits=limit_rows(v),
        environment=[
            *_identity(v),
            *((key.replace("_", " "), _words(one)) for key, one in v.environment.items()),
        ],
    )


def _headlines(v: Verification) -> list[_Headline]:
    found = v.figures
    size = _Headline("size on disk", f"{measured(v.identity.megabytes)} MB", "the artifact's files")
    headlines = [
        _auroc(v),
        _Headline(
            "largest drift",
            figure(found.drift_max),
            f"drift units; {_quantiles(v)}",
        ),
        _Headline(
            "mean drift",
            figure(found.drift_mean),
            f"drift units; median {figure(found.drift_median)}",
        ),
        _Headline(
            "Spearman",
            figure(found.spearman, ".5f"),
            f"rank correlation of raw scores with the reference's{_kendall(v)}",
        ),
        _Headline(
            "flips",
            MISSING if found.flips is None else f"{found.flips} of {found.images}",
            _flips_bound(v),
        ),
        _Headline(
            "largest map difference",
            percent(found.map_max),
            f"of the mean range of the reference's maps; mean {percent(found.map_mean)}{_masks(v)}",
        ),
    ]
    for name, one in _where_labelled(v):
        headlines.append(_Headline(name, _change(one.reference, one.artifact), _loss(one)))
    if v.latency is None:
        return [*headlines, _Headline("median latency", MISSING, "not measured"), size]
    artifact, reference, ratio = v.latency.artifact, v.latency.reference, v.latency.speedup.ratio
    return [
        *headlines,
        _Headline(
            "median latency",
            f"{measured(reference.median_ms)} → {measured(artifact.median_ms)} ms",
            f"reference in {reference.execution.precision} → "
            f"artifact in {artifact.execution.precision}",
        ),
        _Headline(
            "speed-up",
            f"{measured(ratio.value)}×",
            f"95% interval {measured(ratio.low)} to {measured(ratio.high)}",
        ),
        size,
    ]


def _auroc(v: Verification) -> _Headline:
    """On labelled images, else on planted defects."""
    before, after = v.figures.auroc_reference, v.figures.auroc
    if before is not None or after is not None:
        return _Headline(
            "image AUROC", _change(before, after), _loss(v.evidence.auroc if v.evidence else None)
        )
    if v.planted is None:
        return _Headline("image AUROC", MISSING, "no images of both labels")
    found = v.planted
    return _Headline(
        "AUROC on planted defects",
        _change(found.auroc.reference, found.auroc.artifact),
        f"on {found.images} images with and without: {_loss(found.auroc)}; largest drift "
        f"{figure(found.drift_max)}",
    )


def _where_labelled(v: Verification) -> Iterator[tuple[str, Compared]]:
    """Metrics beyond AUROC that labels or masks allow."""
    if v.evidence is None:
        return
    for name, found in (("F1-max", v.evidence.f1_max), ("AUPRO", v.evidence.aupro)):
        if found is not None:
            yield name, found


def _change(before: float | None, after: float | None) -> str:
    return f"{figure(before, '.4f')} → {figure(after, '.4f')}"


def _flips_bound(v: Verification) -> str:
    """What so many images prove of others."""
    words = "images whose decision differs from the reference's"
    if v.evidence is None or v.evidence.flips is None:
        return words
    bound = v.evidence.flips
    return (
        f"{words}; for images like these the rate is {percent(bound.low)} to "
        f"{percent(bound.high)} (95% interval, Clopper–Pearson)"
    )


def _loss(found: Compared | None) -> str:
    return "reference → artifact" + ("" if found is None else f"; {loss(found.loss)}")


def _quantiles(v: Verification) -> str:
    """Drift that so many of the images have at most."""
    known = v.evidence.drift_quantiles if v.evidence else {"95": v.figures.drift_p95}
    words = ", ".join(f"{share}% {figure(drift)}" for share, drift in known.items())
    return f"of the images have at most: {words}"


def _kendall(v: Verification) -> str:
    found = v.evidence.kendall if v.evidence else None
    return "" if found is None else f"; Kendall's τ {figure(found, '.4f')}"


def _masks(v: Verification) -> str:
    found, ranks = (v.evidence.mask_iou, v.evidence.map_spearman) if v.evidence else (None, None)
    words = "" if ranks is None else f"; pixels' mean rank correlation {figure(ranks, '.5f')}"
    return words + ("" if found is None else f"; masks' mean IoU {figure(found, '.4f')}")


def _identity(v: Verification) -> list[tuple[str, str]]:
    """What the page is of, to the byte."""
    found = v.identity
    files = ((f"SHA-256 of {name}", digest) for name, digest in found.files.items())
    return [
        ("artifact", v.artifact_name),
        ("size of its files", f"{measured(found.megabytes)} MB"),
        (f"SHA-256 of {MANIFEST_FILE}", found.manifest),
        *files,
        ("SHA-256 of what it was built from", found.source or "unknown"),
        ("SHA-256 of the reference", found.reference),
        ("SHA-256 over those of the images", found.images or "no image was compared"),
    ]


def _runs(v: Verification) -> list[tuple[str, str, str]]:
    """How reference and artifact ran, a row a fact."""
    if v.latency is None:
        return []
    facts = (_run(v.latency.reference), _run(v.latency.artifact))
    rows = [(name, value, facts[1][name]) for name, value in facts[0].items()]
    return [*latency_rows(v.latency), *rows]


def _run(found: LatencyFigures) -> dict[str, str]:
    execution = found.execution
    layers = ", ".join(f"{count} in {name}" for name, count in execution.layers.items())
    return {
        "backend": execution.backend,
        "precision": execution.precision,
        "device": execution.device,
        "threads": str(execution.threads),
        "executed layers": layers or "unknown",
        "timed calls": str(len(found.samples_ms)),
        "calls before, to warm up": warm_up(found),
        **_footprint(found),
        "of these, calls that waited for a processor": percent(found.disturbed_calls),
    }


def _footprint(found: LatencyFigures) -> dict[str, str]:
    taken = found.footprint
    if taken is None:
        return {}
    return {
        "loading, in a fresh process": f"{measured(taken.load_ms)} ms",
        "first call": f"{measured(taken.first_ms)} ms",
        "peak memory of the process": MISSING
        if taken.peak_mb is None
        else f"{measured(taken.peak_mb)} MB",
    }


def _exhibits(v: Verification) -> list[tuple[Exhibit, float, ExhibitPictures]]:
    return [(one, drift_of(one.record, v), exhibit_pictures(one)) for one in v.exhibits]


def _rung(found: Mapping[str, Any]) -> tuple[str, list[str], str]:
    """Name, figures and verdict of a step of the build."""
    held = found.get("held")
    return (
        shown(found.get("rung"), ""),
        [shown(found.get(key), form) for key, _, form in FIGURES],
        verdict(held) if isinstance(held, bool) else shown(held, ""),
    )


def _words(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value))
    return str(value)
