"""The errors that users meet. Each says where it happened, what was given, what was expected and what to do."""

_NOT_SAID = object()
_LONGEST = 160  # characters of a given value that a message repeats


class TutorError(ValueError):
    """Base of every error that a user's input can cause.

    `problem` is one sentence with the place in it; `given`, `expected` and `fix` are added where they are known.
    """

    def __init__(self, problem: str, *, given: object = _NOT_SAID, expected: str = "", fix: str = "") -> None:
        parts = [problem]
        if given is not _NOT_SAID:
            text = repr(given)
            parts.append(f"given: {text if len(text) <= _LONGEST else text[: _LONGEST - 4] + ' ...'}")
        if expected:
            parts.append(f"expected: {expected}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts))


class ConfigError(TutorError):
    """A setting, a size or an argument is outside what the model or the function can take."""


class ShapeError(TutorError):
    """A tensor has another shape or type than the place where it arrived can take."""


class WeightsError(TutorError):
    """A weights file or a checkpoint is missing, broken, foreign, or of another size."""


class PromptError(TutorError):
    """A sentence cannot be read: empty, or longer than the text encoder's context."""


class AttentionTapError(TutorError):
    """An attention tap matches no site, edits to a wrong shape, or misses a declaration that it needs."""
