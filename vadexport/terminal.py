"""Text from outside, such as names of files, made fit for a terminal."""


def printable(text: str) -> str:
    """One line without what a terminal would take for a command, or a reader for another line."""
    return "".join(char if char.isprintable() else "�" for char in text)


def printable_lines(text: str) -> str:
    """Like `printable`, of each line; what names files must have been through that before."""
    return "\n".join(map(printable, text.split("\n")))
