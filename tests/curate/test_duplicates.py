"""Shingles, signatures, clusters and the exact search, against plain Python."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepen.curate.clusters import SIMILARITY, find_clusters
from deepen.curate.corpus import INDEX, Corpus, save_array
from deepen.curate.leaks import find_leaks
from deepen.curate.shingles import NUM_BANDS, jaccard, sign
from deepen.formats.documents import content_hash


def plain_shingles(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[number : number + 5]) for number in range(max(1, len(words) - 4))}


def plain_jaccard(first, second):
    one, other = plain_shingles(first), plain_shingles(second)
    return len(one & other) / len(one | other)


def sets(*texts):
    signatures = sign(list(texts))
    return np.split(signatures.shingles, np.cumsum(signatures.sizes)[:-1])


def edited(text, num_edits, seed):
    generator, words = random.Random(seed), text.split()
    for _ in range(num_edits):
        words[generator.randrange(len(words))] = f"new{generator.randrange(10**6)}"
    return " ".join(words)


@pytest.fixture
def corpus(tmp_path):
    """``corpus(texts)``: the arrays that the stage would make."""

    def corpus(texts):
        signatures = sign(texts)
        index = np.zeros(len(texts), dtype=INDEX)
        index["hash_high"] = [int(content_hash(text)[:16], 16) for text in texts]
        index["hash_low"] = [int(content_hash(text)[16:], 16) for text in texts]
        index["num_bytes"] = [len(text.encode()) for text in texts]
        save_array(tmp_path / "bands.npy", signatures.bands)
        starts = np.concatenate([[0], np.cumsum(signatures.sizes)])
        source = np.zeros(len(texts), dtype=np.int64)
        return Corpus(index, source, starts, signatures.shingles, (tmp_path / "bands.npy",))

    return corpus


words = st.lists(st.sampled_from(["a", "b", "Cc", "d1", "e,"]), min_size=1, max_size=120).map(" ".join)


@settings(deadline=None)  # the first call compiles
@given(words, words)
def test_similarity_is_that_of_plain_sets(first, second):
    assert jaccard(*sets(first, second)) == pytest.approx(plain_jaccard(first, second))


@settings(deadline=None)  # the first call compiles
@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_has_sorted_shingles_of_its_own(first, second):
    for own in sets(first, second, first):
        assert len(own) >= 1 and np.all(own[1:] > own[:-1])
    assert jaccard(*sets(first, second, first)[::2]) == 1


def test_case_punctuation_and_invisible_characters_do_not_count():
    first = "The Über-model, in 2024: ΑΘΗΝΑ, Москва and so on; it goes well."
    second = "the über model in 2024 αθηνα москва and so\u00ad on it\u200b goes    WELL"
    assert jaccard(*sets(first, second)) == 1


def test_scripts_without_spaces_have_character_shingles():
    first = "深度學習是機器學習的分支是一種以人工神經網路為架構對資料進行表徵學習的演算法"
    (own,) = sets(first)
    assert len(own) == len(first) - 4
    assert jaccard(*sets(first, first[:-1] + "。")) == pytest.approx(1 - 1 / len(own))


def test_signatures_do_not_depend_on_the_batch(prose):
    texts = [prose(seed, 40 + seed) for seed in range(20)]
    together, alone = sign(texts), [sign([text]) for text in texts]
    assert np.array_equal(together.bands, np.concatenate([one.bands for one in alone], axis=1))
    assert np.array_equal(together.shingles, np.concatenate([one.shingles for one in alone]))


def test_bands_find_pairs_as_often_as_the_formula_says(prose):
    texts = [prose(seed, 200) for seed in range(150)]
    near = [edited(text, 5, seed) for seed, text in enumerate(texts)]
    bands = sign(texts + near).bands
    found = np.any(bands[:, :150] == bands[:, 150:], axis=0).mean()
    expected = np.mean([1 - (1 - plain_jaccard(*pair) ** 8) ** NUM_BANDS for pair in zip(texts, near, strict=True)])
    assert found == pytest.approx(expected, abs=0.08)
    assert not np.any(bands[:, 0] == bands[:, 1])


def test_clusters_are_the_planted_ones(corpus, prose):
    texts = [prose(seed, 150) for seed in range(30)]
    copies = [edited(texts[number], 2, number) for number in range(10)]
    labels = find_clusters(corpus([*texts, *copies, texts[3], texts[29]]))
    assert labels.tolist() == [*range(30), *range(10), 3, 29]


def test_bands_without_verification_would_join_more(corpus, prose):
    texts = [prose(seed, 100) for seed in range(40)]
    loose = [edited(text, 4, seed) for seed, text in enumerate(texts)]
    pairs = [plain_jaccard(*pair) for pair in zip(texts, loose, strict=True)]
    labels = find_clusters(corpus(texts + loose))
    joined = labels[40:] < 40
    assert all(pair >= SIMILARITY for pair, is_joined in zip(pairs, joined, strict=True) if is_joined)


def test_a_large_group_of_one_template_is_one_cluster(corpus, prose):
    template = prose(0, 300)
    labels = find_clusters(corpus([f"{template} number {number}" for number in range(500)]))
    assert set(labels.tolist()) == {0}


@pytest.mark.parametrize("num_edits", [0, 1, 2, 3, 4])
def test_the_exact_search_misses_nothing(corpus, prose, num_edits):
    held_out = [prose(seed, 100) for seed in range(25)]
    trained = [edited(text, num_edits, seed) for seed, text in enumerate(held_out)] + [prose(99, 100)]
    found = find_leaks(corpus(held_out + trained), np.arange(25), np.arange(25, 51))
    similarities = [plain_jaccard(*pair) for pair in zip(held_out, trained[:25], strict=True)]
    assert found.tolist() == [n if s >= SIMILARITY else -1 for n, s in enumerate(similarities)] + [-1]


def test_nothing_held_out_nothing_found(corpus, prose):
    assert find_leaks(corpus([prose(1)]), np.zeros(0, np.int64), np.arange(1)).tolist() == [-1]
