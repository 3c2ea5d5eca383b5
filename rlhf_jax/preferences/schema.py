"""One human choice: a prompt, and the completion that was preferred to another."""

import re
from dataclasses import dataclass

from rlhf_jax.errors import UserError


class PreferenceError(UserError):
    """Preference data that cannot be used: one line that says where, why and what to do."""


@dataclass(frozen=True)
class Preference:
    """x, y⁺ and y⁻ as text. `prompt + chosen` is a whole text: the completions carry their own leading space.

    The prompt may be empty. A completion may be white space, which people do reject, but not nothing at all.

    Raises:
        PreferenceError: for an empty completion, equal completions, or text that is not valid Unicode.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self):
        for field in ("prompt", "chosen", "rejected"):
            text = getattr(self, field)
            if not text and field != "prompt":
                raise PreferenceError(f"{field!r} is an empty completion; remove the pair or give its text")
            if re.search("[\ud800-\udfff]", text):
                raise PreferenceError(f"{field!r} holds half of a surrogate pair, which is not a character; remove it")
        if self.chosen == self.rejected:
            raise PreferenceError("'chosen' equals 'rejected', so nothing was preferred; remove the pair")
