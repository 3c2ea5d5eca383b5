import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from rlhf_jax.lm.tokenizer import load as load_tokenizer
from rlhf_jax.preferences import pairs
from rlhf_jax.preferences.schema import Preference, PreferenceError

EOS = 7


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte, and brackets around a text that is encoded with special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[": 8, "]": 9} | {symbol: index + 10 for index, symbol in enumerate(alphabet) if symbol not in "[]"}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("[ $A ]", special_tokens=[("[", 8), ("]", 9)])
    return made


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def real(tokens, mask):
    return [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]


def test_prompts_stand_left_completions_right_and_end_of_text_is_real(tokenizer):
    preferences = [Preference("ab", "c", "de"), Preference("x", "yz", "w")]
    encoded, truncated = pairs.encode_pairs(tokenizer, preferences, prompt_length=3, completion_length=4, eos_id=EOS)
    a, b, c, d, e = ids(tokenizer, "abcde")
    assert encoded.chosen.prompts[0].tolist() == [0, a, b]
    assert encoded.chosen.prompt_mask.tolist() == [[False, True, True], [False, False, True]]
    assert encoded.chosen.completions[0].tolist() == [c, EOS, 0, 0]
    assert encoded.rejected.completions[0].tolist() == [d, e, EOS, 0]
    assert encoded.rejected.completion_mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    np.testing.assert_array_equal(encoded.chosen.prompts, encoded.rejected.prompts)
    assert truncated == 0
    assert encoded.chosen.completions.dtype == np.int32
    assert encoded.chosen.completion_mask.dtype == bool


def test_an_end_of_text_id_that_is_also_the_padding_still_counts(tokenizer):
    encoded, _ = pairs.encode_pairs(
        tokenizer, [Preference("a", "b", "cd")], prompt_length=2, completion_length=4, eos_id=0
    )
    assert real(encoded.chosen.completions, encoded.chosen.completion_mask) == [[*ids(tokenizer, "b"), 0]]


@pytest.mark.parametrize(
    ("preference", "prompt", "chosen", "truncated"),
    [
        (Preference("abcdef", "x", "y"), "cdef", "x$", 1),
        (Preference("abcd", "xy", "yz"), "abcd", "xy$", 0),
        (Preference("abcd", "xyz", "y"), "abcd", "xyz", 1),
        (Preference("abcd", "xyzw", "y"), "abcd", "xyz", 1),
        (Preference("abcd", "y", "xyzw"), "abcd", "y$", 1),
    ],
)
def test_a_cut_keeps_the_end_of_the_prompt_and_the_beginning_of_the_completion(
    tokenizer, preference, prompt, chosen, truncated
):
    encoded, share = pairs.encode_pairs(tokenizer, [preference], prompt_length=4, completion_length=3, eos_id=EOS)
    assert real(encoded.chosen.prompts, encoded.chosen.prompt_mask) == [ids(tokenizer, prompt)]
    expected = ids(tokenizer, chosen.removesuffix("$")) + [EOS] * chosen.endswith("$")
    assert real(encoded.chosen.completions, encoded.chosen.completion_mask) == [expected]
    assert share == truncated


def test_the_share_counts_pairs_not_texts(tokenizer):
    preferences = [Preference("abc", "xyz", "xyw"), Preference("a", "x", "y"), Preference("a", "y", "x")]
    assert pairs.encode_pairs(tokenizer, preferences, prompt_length=2, completion_length=3, eos_id=EOS)[1] == 1 / 3


def test_no_completion_is_emptied(tokenizer):
    encoded, _ = pairs.encode_pairs(
        tokenizer, [Preference("abc" * 50, "xyz", " ")], prompt_length=1, completion_length=1, eos_id=EOS
    )
    assert encoded.chosen.prompt_mask.sum() == encoded.chosen.completion_mask.sum() == 1
    assert encoded.rejected.completion_mask.all()


def test_an_empty_prompt_is_the_end_of_text_token(tokenizer):
    encoded, truncated = pairs.encode_pairs(
        tokenizer, [Preference("", "a", "b")], prompt_length=3, completion_length=3, eos_id=EOS
    )
    assert real(encoded.chosen.prompts, encoded.chosen.prompt_mask) == [[EOS]]
    assert truncated == 0


def test_pairs_that_a_cut_makes_identical_are_left_out(tokenizer):
    preferences = [Preference("p", "abcd", "abce"), Preference("q", "abcd", "xbce"), Preference("r", "ab", "abc")]
    encoded, truncated = pairs.encode_pairs(tokenizer, preferences, prompt_length=2, completion_length=3, eos_id=EOS)
    assert real(encoded.chosen.prompts, encoded.chosen.prompt_mask) == [ids(tokenizer, "q"), ids(tokenizer, "r")]
    assert truncated == 1
    assert (encoded.chosen.completions != encoded.rejected.completions).any(1).all()
    with pytest.raises(PreferenceError, match="no pair differs within 2 tokens"):
        pairs.encode_pairs(tokenizer, preferences[:1], prompt_length=2, completion_length=2, eos_id=EOS)


def test_no_token_straddles_the_border():
    bundled = load_tokenizer("bundled")
    encoded, _ = pairs.encode_pairs(
        bundled, [Preference("This is unbeliev", "able!", "ing.")], prompt_length=8, completion_length=8, eos_id=0
    )
    chosen = encoded.chosen
    assert bundled.decode(chosen.prompts[chosen.prompt_mask].tolist()) == "This is unbeliev"
    assert bundled.decode(chosen.completions[chosen.completion_mask].tolist()) == "able!"
    np.testing.assert_array_equal(chosen.prompts, encoded.rejected.prompts)


def test_prompts_alone_get_the_ids_they_have_in_pairs(tokenizer):
    texts = ["abcdef", "", "x"]
    tokens, mask = pairs.encode_prompts(tokenizer, texts, 4, EOS)
    encoded, _ = pairs.encode_pairs(
        tokenizer, [Preference(text, "a", "b") for text in texts], prompt_length=4, completion_length=2, eos_id=EOS
    )
    np.testing.assert_array_equal(tokens, encoded.chosen.prompts)
    np.testing.assert_array_equal(mask, encoded.chosen.prompt_mask)


def test_a_length_below_one_is_refused(tokenizer):
    with pytest.raises(ValueError, match="completion_length is 0"):
        pairs.encode_pairs(tokenizer, [Preference("a", "b", "c")], prompt_length=1, completion_length=0, eos_id=EOS)
    with pytest.raises(ValueError, match="prompt_length is 0"):
        pairs.encode_prompts(tokenizer, ["a"], 0, EOS)
