"""`junit.xml`: one test case a check, for whatever shows tests of a pipeline."""

import re
from typing import Final
from xml.etree import ElementTree as ET

from vadexport.reporting.wording import WITHOUT_SCORES, limit_rows
from vadexport.verification.result import Verification

#: XML 1.0 has no other characters, not even as references.
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(v: Verification) -> str:
    """The file's text: a check that fell short is a failure, a limit that was not checked skipped.

    A limit's case has one name, judged or not, so that whatever compares runs knows it again. The
    form is that of Jenkins' JUnit plugin, which GitLab, GitHub's actions and others read.
    """
    unchecked = [row for row in limit_rows(v) if row.verdict == "not checked"]
    cases = [(check.name, check) for check in v.checks]
    counts = {
        "tests": str(len(cases) + len(unchecked)),
        "failures": str(sum(not check.held for check in v.checks)),
        "errors": "0",
        "skipped": str(len(unchecked)),
    }
    name = _clean(f"vadexport verify {v.target}")
    suites = ET.Element("testsuites", {"name": name, **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": name, **counts})
    properties = ET.SubElement(suite, "properties")
    for key, value in _properties(v).items():
        ET.SubElement(properties, "property", {"name": key, "value": _clean(value)})
    kind = _clean(f"vadexport.{v.target}")
    for each, check in cases:
        case = ET.SubElement(suite, "testcase", {"classname": kind, "name": each})
        if check.held:
            ET.SubElement(case, "system-out").text = _clean(check.line)
        else:
            failure = ET.SubElement(
                case, "failure", {"message": _clean(check.line), "type": "limit"}
            )
            if v.diagnosis is not None and check.judged and each not in WITHOUT_SCORES:
                failure.text = _clean("\n".join(v.diagnosis.lines))
    for row in unchecked:
        case = ET.SubElement(suite, "testcase", {"classname": kind, "name": row.name})
        ET.SubElement(case, "skipped", {"message": _clean(f"{row.words}: {row.line}")})
    if v.warnings:
        ET.SubElement(suite, "system-err").text = _clean("\n".join(v.warnings))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _properties(v: Verification) -> dict[str, str]:
    return {
        "artifact": v.artifact_name,
        "reference": v.source_name,
        "images": str(v.figures.images),
        "drift_unit": f"{v.drift_unit:.6g}",
        "proven_on": v.proven_on,
        "manifest_sha256": v.identity.manifest,
        "reference_sha256": v.identity.reference,
    }


def _clean(text: str) -> str:
    """Names of files may hold what XML has no way to write."""
    return _NOT_XML.sub("\ufffd", text)
