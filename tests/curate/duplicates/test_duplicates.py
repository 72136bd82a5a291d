"""Shingles, signatures, clusters and the exact search, against plain Python."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from deepen.curate.batch.texts import texts_of
from deepen.curate.duplicates import pairs
from deepen.curate.duplicates.clusters import find_clusters, similarities
from deepen.curate.duplicates.leaks import find_leaks
from deepen.curate.duplicates.near_duplicates import NearDuplicates
from deepen.curate.duplicates.pairs import SIMILARITY, PairPart, find_pairs, pair_parts
from deepen.curate.duplicates.shingles import NUM_BANDS, sign, similar
from deepen.curate.passes.corpus import PartFiles, open_corpus
from deepen.curate.passes.parts import FirstPart, first_pass
from deepen.formats.documents.documents import Document, content_hash, document_id, write_documents


def plain_shingles(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[number : number + 5]) for number in range(max(1, len(words) - 4))}


def plain_jaccard(first, second):
    one, other = plain_shingles(first), plain_shingles(second)
    return len(one & other) / len(one | other)


def sets(*texts):
    signatures = sign(texts_of(texts))
    return np.split(signatures.shingles, np.cumsum(signatures.sizes)[:-1])


def edited(text, num_edits, seed):
    generator, words = random.Random(seed), text.split()
    for _ in range(num_edits):
        words[generator.randrange(len(words))] = f"new{generator.randrange(10**6)}"
    return " ".join(words)


@pytest.fixture
def corpus(tmp_path):
    """``corpus(texts, texts of a second source, ...)``: the arrays and pairs that the stage would make."""

    def corpus(*sources, weakest=SIMILARITY, strongest=SIMILARITY):
        parts = []
        for source, texts in enumerate(sources):
            documents = [
                Document(document_id(str(source), str(row)), text, str(source), content_hash=content_hash(text))
                for row, text in enumerate(texts)
            ]
            path = tmp_path / f"in/{source}.parquet"
            write_documents(path, documents, path.parent)
            first_pass(FirstPart(str(source), str(path), str(tmp_path), (), "f"))
            parts.append((source, PartFiles(tmp_path, str(source))))
        (tmp_path / "parts.txt").write_text("".join(f"{files.name}\n" for _, files in parts))
        template = PairPart(str(tmp_path), str(tmp_path / "parts.txt"), 0, 0, 0, 1, weakest, strongest, "f")
        work = pair_parts(sum(map(len, sources)), template)
        for part in work:
            find_pairs(part)
        return open_corpus(parts, [part.path for part in work])

    return corpus


def clusters(corpus):
    return find_clusters(corpus, SIMILARITY)


def similarity_of(first, second):
    return similar(first, second, 0.0)


words = st.lists(st.sampled_from(["a", "b", "Cc", "d1", "e,"]), min_size=1, max_size=120).map(" ".join)


@settings(deadline=None)  # the first call compiles
@given(words, words)
def test_similarity_is_that_of_plain_sets(first, second):
    assert similarity_of(*sets(first, second)) == pytest.approx(plain_jaccard(first, second))


@settings(deadline=None)  # the first call compiles
@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_has_sorted_shingles_of_its_own(first, second):
    for own in sets(first, second, first):
        assert len(own) >= 1 and np.all(own[1:] > own[:-1])
    assert similarity_of(*sets(first, second, first)[::2]) == 1


def test_case_punctuation_and_invisible_characters_do_not_count():
    first = "The Über-model, in 2024: ΑΘΗΝΑ, Москва and so on; it goes well."
    second = "the über model in 2024 αθη\u200bνα мос\u00adква a\u00adnd so\u00ad on it\u200b goes    WELL"
    assert similarity_of(*sets(first, second)) == 1


def test_scripts_without_spaces_have_character_shingles():
    first = "深度學習是機器學習的分支是一種以人工神經網路為架構對資料進行表徵學習的演算法"
    (own,) = sets(first)
    assert len(own) == len(first) - 4
    assert similarity_of(*sets(first, first[:-1] + "。")) == pytest.approx(1 - 1 / len(own))


def test_signatures_do_not_depend_on_the_batch(prose):
    texts = [prose(seed, 40 + seed) for seed in range(20)]
    together, alone = sign(texts_of(texts)), [sign(texts_of([text])) for text in texts]
    assert np.array_equal(together.bands, np.concatenate([one.bands for one in alone], axis=1))
    assert np.array_equal(together.shingles, np.concatenate([one.shingles for one in alone]))


def test_bands_find_pairs_as_often_as_the_formula_says(prose):
    texts = [prose(seed, 200) for seed in range(150)]
    near = [edited(text, 5, seed) for seed, text in enumerate(texts)]
    bands = sign(texts_of(texts + near)).bands
    found = np.any(bands[:, :150] == bands[:, 150:], axis=0).mean()
    expected = np.mean([1 - (1 - plain_jaccard(*pair) ** 8) ** NUM_BANDS for pair in zip(texts, near, strict=True)])
    assert found == pytest.approx(expected, abs=0.08)
    assert not np.any(bands[:, 0] == bands[:, 1])


def test_clusters_are_the_planted_ones(corpus, prose):
    texts = [prose(seed, 150) for seed in range(30)]
    copies = [edited(texts[number], 2, number) for number in range(10)]
    labels = clusters(corpus([*texts, *copies, texts[3], texts[29]]))
    assert labels.tolist() == [*range(30), *range(10), 3, 29]


def test_bands_without_verification_would_join_more(corpus, prose):
    texts = [prose(seed, 100) for seed in range(40)]
    loose = [edited(text, 4, seed) for seed, text in enumerate(texts)]
    pairs = [plain_jaccard(*pair) for pair in zip(texts, loose, strict=True)]
    labels = clusters(corpus(texts + loose))
    joined = labels[40:] < 40
    assert all(pair >= SIMILARITY for pair, is_joined in zip(pairs, joined, strict=True) if is_joined)


def test_a_large_group_of_one_template_is_one_cluster(corpus, prose):
    template = prose(0, 300)
    labels = clusters(corpus([f"{template} number {number}" for number in range(500)]))
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


def test_pairs_are_exact_and_each_is_found_once(corpus, prose):
    texts = [prose(seed, 150) for seed in range(40)]
    made = corpus(texts, [edited(text, seed % 5, seed) for seed, text in enumerate(texts)])
    found = np.concatenate([np.load(path) for path in made.pair_files])
    assert len(found) > 30 and len(np.unique(found[["first", "second"]])) == len(found)
    for first, second, similarity in found.tolist():
        assert second == first + 40
        assert similarity == pytest.approx(plain_jaccard(texts[first], edited(texts[first], first % 5, first)))


@pytest.mark.parametrize("limits", [(1, 10**9, 64), (10**9, 2_000, 64), (10**9, 2_000, 3), (7, 50, 2)])
def test_cutting_the_work_changes_no_cluster(corpus, prose, monkeypatch, limits):
    texts = [prose(seed, 100) for seed in range(30)]
    texts += [edited(text, 1, seed) for seed, text in enumerate(texts[:20])] + [f"{texts[0]} {n}" for n in range(40)]
    whole = clusters(corpus(texts[:50], texts[50:]))
    for name, value in zip(("_DOCUMENTS_PER_PART", "_SHINGLES_PER_BLOCK", "_DOCUMENTS_PER_BLOCK"), limits, strict=True):
        monkeypatch.setattr(pairs, name, value)
    monkeypatch.setattr(pairs, "_BANDS_TOGETHER_UP_TO", 0)
    assert clusters(corpus(texts[:50], texts[50:])).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == 30


def drops(corpus, **settings):
    found = NearDuplicates(**settings).apply(corpus, np.ones(corpus.num_documents, dtype=np.bool_))
    assert found.values.tolist() == similarities(corpus, found.documents, found.kept).tolist()
    return dict(zip(found.documents.tolist(), found.kept.tolist(), strict=True))


def test_the_best_document_of_a_cluster_is_kept(corpus, prose):
    text, other = prose(1, 120), prose(2, 120)
    made = corpus([text, other], [f"{text} with more", f"{text} with", other])
    assert drops(made) == {2: 0, 3: 0, 4: 1}
    assert drops(made, keep="first") == {2: 0, 3: 0, 4: 1}
    assert drops(made, keep="longest") == {0: 2, 3: 2, 4: 1}
    assert drops(made, across_sources=False) == {3: 2}


def test_members_alike_only_through_others_stay(corpus, prose):
    words = prose(3, 400).split()
    chain = [" ".join(words[start : start + 200]) for start in (0, 15, 30, 45)]
    made = corpus(chain)
    assert clusters(made).tolist() == [0, 0, 0, 0]
    assert drops(made, keep="first") == {1: 0, 3: 2}


def test_what_is_dropped_already_is_no_reason_to_drop(corpus, prose):
    made = corpus([prose(1), prose(1), prose(1)])
    found = NearDuplicates().apply(made, np.array([False, True, True]))
    assert (found.documents.tolist(), found.kept.tolist(), found.values.tolist()) == ([2], [1], [1.0])


def test_another_similarity_finds_other_pairs(corpus, prose):
    texts = [prose(seed, 150) for seed in range(20)]
    near, far = (
        [f"{text} a b c d" for text in texts],
        [edited(text, 3 + seed % 2, seed) for seed, text in enumerate(texts)],
    )
    made = corpus(texts + near + far, weakest=0.7, strongest=0.95)
    assert len(drops(made, similarity=0.95)) == 20
    assert 20 < len(drops(made, keep="longest")) < len(drops(made, keep="longest", similarity=0.7)) <= 40


def test_an_unlikely_similarity_is_refused():
    with pytest.raises(ValidationError):
        NearDuplicates(similarity=0.5)
