"""Near duplicates: what is found is one by a full comparison, and clear ones are found, as by comparing each with each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.near_duplicates import Sketcher, bands_for, likeness, minhash, near_duplicates
from dpo_core.data.pairs import PreferencePair
from dpo_core.data.words import WordHashes

WORDS = [f"word{i}" for i in range(400)]


def pair(prompt: str, chosen: str = "Yes indeed.", rejected: str = "No way.") -> PreferencePair:
    turns = [{"role": "user", "content": prompt}]
    sides = ([*turns, {"role": "assistant", "content": text}] for text in (chosen, rejected))
    return PreferencePair(turns, *sides)


def found_among(pairs, similarity=0.8, n=3, groups=None, prompt_alone=False, keep_last=False):
    sketcher = Sketcher(n, similarity, prompt_alone)
    bands = sketcher.bands(pairs)
    order = np.arange(len(pairs))[:: -1 if keep_last else 1]
    groups = np.zeros(len(pairs), dtype=np.int32) if groups is None else np.array(groups)
    return near_duplicates(
        lambda number: bands[order, number],
        bands_for(similarity)[0],
        order,
        lambda left, right: likeness(sketcher.parts(pairs[left]), sketcher.parts(pairs[right]), similarity),
        similarity,
        groups[order],
    )


def compared(sketcher: Sketcher, left: PreferencePair, right: PreferencePair) -> float:
    """In full, whatever the bound."""
    return likeness(sketcher.parts(left), sketcher.parts(right))


def each_with_each(pairs, similarity, n=3):
    """The slow twin."""
    sketcher, stays, gone = Sketcher(n, similarity, False), [], []
    for place, one in enumerate(pairs):
        if any(compared(sketcher, one, pairs[other]) >= similarity for other in stays):
            gone.append(place)
        else:
            stays.append(place)
    return gone


# A text, and how many of its words are changed: none or few (clearly like it) or most (clearly not).
DRAWN = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 0, 1, 150, 200])), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(DRAWN, st.integers(0, 2**32 - 1))
def test_what_is_clearly_alike_is_found_as_by_comparing_each_with_each(drawn, seed):
    random = np.random.RandomState(seed)
    texts = [[WORDS[i] for i in np.random.RandomState(number).permutation(400)[:200]] for number in range(4)]
    pairs = []
    for number, changed in drawn:
        words = list(texts[number])
        for place in random.permutation(200)[:changed]:
            words[place] = f"other{random.randint(10**6)}"
        pairs.append(pair(" ".join(words)))
    places, like, similarity = found_among(pairs)
    assert places.tolist() == each_with_each(pairs, 0.8)
    sketcher = Sketcher(3, 0.8, False)
    for place, other, alike in zip(places.tolist(), like.tolist(), similarity.tolist(), strict=True):
        assert other < place
        assert other not in places
        assert alike == pytest.approx(compared(sketcher, pairs[place], pairs[other]))
        assert alike > 0.799999


def test_one_prompt_with_other_answers_is_no_duplicate_unless_prompts_are_compared():
    prompt = " ".join(WORDS[:100])
    pairs = [
        pair(prompt, "I would start with the first one."),
        pair(prompt, "Better leave it, it is a trap."),
    ]
    assert found_among(pairs)[0].tolist() == []
    assert found_among(pairs, prompt_alone=True)[0].tolist() == [1]


def test_case_punctuation_and_blanks_make_no_other_text():
    pairs = [
        pair("What is the capital of France?"),
        pair("what is  the capital of france"),
        pair("What is it?"),
    ]
    assert found_among(pairs)[0].tolist() == [1]


def test_signs_alone_are_compared_as_they_are():
    pairs = [pair("Say it.", "!", "?"), pair("Say it.", "?", "!"), pair("Say it.", "!", "?")]
    places, like, _ = found_among(pairs)
    assert (places.tolist(), like.tolist()) == ([2], [0])


def test_languages_without_blanks_are_compared_by_their_characters():
    text = "今天天气很好我们一起去公园散步吧然后再去吃午饭晚上回家看书" * 2
    pairs = [pair(text), pair(text[:-1]), pair("完全不同的另一个问题是什么呢请告诉我答案好吗")]
    assert found_among(pairs)[0].tolist() == [1]


def test_groups_and_the_one_that_stays():
    pairs = [pair(" ".join(WORDS[:50]))] * 4
    assert found_among(pairs, groups=[0, 1, 0, 1])[1].tolist() == [0, 1]
    places, like, _ = found_among(pairs, keep_last=True)
    assert (places.tolist(), like.tolist()) == ([0, 1, 2], [3, 3, 3])


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_pairs_at_the_bound_are_hardly_ever_missed(similarity):
    bands, rows = bands_for(similarity)
    assert bands * rows <= 128
    assert 1 - (1 - similarity**rows) ** bands >= 0.995


def test_each_is_compared_with_all_that_stay_in_its_buckets():
    """Four rows share a bucket though they are nothing alike; the last is like one of those behind the first."""
    for like in range(4):
        places, others, alike = near_duplicates(
            lambda number: np.array([7, 7, 7, 7, 7, 9], dtype=np.uint64),
            2,
            np.arange(6),
            lambda place, other, like=like: float((place, other) == (4, like)),
            0.8,
            np.zeros(6, dtype=np.int32),
        )
        assert (places.tolist(), others.tolist(), alike.tolist()) == ([4], [like], [1.0])


def test_nothing_of_nothing():
    assert [len(part) for part in found_among([])] == [0, 0, 0]


@pytest.mark.parametrize("shared", [0, 250, 500, 750, 1000])
def test_signatures_agree_as_often_as_the_sets_do(shared):
    agreed = []
    for seed in range(20):
        values = np.random.RandomState(seed).randint(0, 1 << 62, 2000 - shared).astype(np.uint64)
        agreed.append(np.mean(minhash(values[:1000]) == minhash(values[1000 - shared :])))
    similarity = shared / (2000 - shared)
    assert np.mean(agreed) == pytest.approx(similarity, abs=4 * np.sqrt(0.25 / 128 / 20))


@given(st.tuples(*[st.sets(st.integers(0, 9), max_size=8)] * 6), st.sampled_from([0.5, 0.7, 0.8, 1.0]))
def test_rows_that_are_told_apart_early_are_those_below_the_bound(parts, bound):
    left, right = (
        [np.array(sorted(part), dtype=np.uint64) for part in some] for some in (parts[:3], parts[3:])
    )
    whole, early = likeness(left, right), likeness(left, right, bound)
    assert (early >= bound) == (whole >= bound)
    assert early == whole or early < bound


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "function_calls", "prefix"])
def test_other_thoughts_before_one_answer_are_no_duplicate(field):
    """A maths set has one prompt and one answer, 4, many times, and each time another way to it."""

    def thinking(thought: str) -> PreferencePair:
        made = pair("What is 2 and 2?", "4", "5")
        made.chosen[-1][field] = thought
        return made

    ways = [
        thinking("one step after the other, counting up"),
        thinking("double it, as both are the same number"),
    ]
    assert found_among(ways)[0].tolist() == []
    assert found_among([ways[0], thinking("one step after the other, counting up!")])[0].tolist() == [1]


def exact(left: list[str], right: list[str], n: int) -> float:
    """Jaccard similarity of two texts' runs of words, without a hash."""
    ours, theirs = ({tuple(of[i : i + n]) for i in range(len(of) - n + 1)} for of in (left, right))
    return len(ours & theirs) / len(ours | theirs)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 5]), st.integers(0, 300), st.integers(0, 80))
def test_signatures_of_texts_estimate_what_their_runs_of_words_have_in_common(seed, n, kept, changed):
    """The share of 128 places that agree has a standard error of sqrt(s (1 - s) / 128); five of them, hardly ever passed."""
    random = np.random.RandomState(seed)
    left = [WORDS[i] for i in random.randint(0, 400, 320)]
    right = left[320 - kept :] + [WORDS[i] for i in random.randint(0, 400, 320 - kept)]
    for place in random.permutation(320)[:changed]:
        right[place] = f"other{random.randint(10**6)}"
    hashes = WordHashes()
    agreed = np.mean(
        minhash(hashes.shingles(" ".join(left), n)) == minhash(hashes.shingles(" ".join(right), n))
    )
    similarity = exact(left, right, n)
    assert agreed == pytest.approx(similarity, abs=5 * np.sqrt(similarity * (1 - similarity) / 128) + 1 / 128)
