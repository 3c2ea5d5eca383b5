import dataclasses

import pytest

from rlhf_jax.preferences.schema import Preference, PreferenceError


def test_a_preference_holds_text_and_does_not_change():
    preference = Preference(prompt="The sky is", chosen=" blue.", rejected=" green.")
    assert preference.prompt + preference.chosen == "The sky is blue."
    with pytest.raises(dataclasses.FrozenInstanceError):
        preference.chosen = " red."


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), [("", "a", "b"), ("x", "a", " "), ("x", "😀", "naïve")])
def test_an_empty_prompt_and_a_blank_completion_are_allowed(prompt, chosen, rejected):
    assert Preference(prompt, chosen, rejected).rejected == rejected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("x", "", "b"), "'chosen' is an empty completion"),
        (("x", "a", ""), "'rejected' is an empty completion"),
        (("x", "a", "a"), "'chosen' equals 'rejected'"),
        (("x\ud83d", "a", "b"), "'prompt' holds half of a surrogate pair"),
        (("x", "a", "\udc00b"), "'rejected' holds half of a surrogate pair"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(fields, reason):
    with pytest.raises(PreferenceError, match=reason) as caught:
        Preference(*fields)
    assert "\n" not in str(caught.value)
