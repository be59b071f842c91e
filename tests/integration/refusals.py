"""How a command refuses."""


def assert_refused(result, status, *words):
    """One line of error that says all of `words`, no traceback, the right exit status."""
    lines = [line for line in result.err.splitlines() if not line.startswith(("  ", "warning:"))]
    assert result.status == status, result.err
    assert "Traceback" not in result.err
    assert len(lines) == 1, result.err
    if status == 2:
        assert lines[0].startswith("vadexport: error: ")
    for word in words:
        assert str(word) in lines[-1]
