"""How long work tells whoever started it what it is doing."""


class Listener:
    """Hears nothing; a command line or a program overrides what it wants to hear."""

    def step(self, name: str, done: int, total: int, detail: str = "") -> None:
        """Part `done` of `total` of the step `name` is finished; `detail`, say, is the loss."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""

    def warn(self, text: str) -> None:
        """Something that the user should know may spoil the result."""
