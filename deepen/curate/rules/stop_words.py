"""Stop words per language: a text in running language has some of them, a list of names or part numbers has none.

The English list is that of Gopher. The others are ours: for each language eight or more of the words that any page of
prose is full of; in Chinese and Japanese, where every character counts as a word, single characters. Words match as
they are written here, in small letters.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from deepen.curate.batch.text_facts import Words, words_of
from deepen.engine.compiled import njit

STOP_WORDS: dict[str, tuple[str, ...]] = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with"),
    "ar": ("في", "من", "على", "إلى", "أن", "عن", "التي", "الذي", "هذا", "هذه", "ما", "لا", "كان", "مع"),
    "bn": ("এবং", "ও", "এই", "করে", "থেকে", "একটি", "তার", "হয়", "না", "জন্য"),
    "cs": ("a", "je", "se", "na", "že", "by", "jsou", "jako", "které", "pro", "ve", "také"),
    "da": ("og", "at", "det", "er", "på", "som", "til", "af", "ikke", "med", "den", "har"),
    "de": ("der", "die", "und", "das", "ist", "nicht", "mit", "von", "den", "ein", "auf", "zu"),
    "el": ("και", "το", "του", "της", "να", "με", "για", "είναι", "από", "που", "στην", "δεν"),
    "es": ("de", "la", "que", "el", "en", "los", "por", "con", "una", "para", "las", "del"),
    "fa": ("و", "در", "به", "از", "که", "این", "است", "با", "را", "برای"),
    "fi": ("ja", "on", "ei", "että", "se", "oli", "mutta", "hän", "ovat", "kun", "myös", "joka"),
    "fr": ("le", "la", "les", "des", "et", "est", "que", "dans", "une", "pour", "qui", "du"),
    "he": ("של", "את", "על", "לא", "הוא", "זה", "עם", "גם", "כי", "היא"),
    "hi": ("के", "है", "में", "की", "और", "से", "का", "को", "पर", "ने", "हैं", "नहीं"),
    "hu": ("a", "az", "és", "hogy", "nem", "egy", "is", "volt", "meg", "csak", "mint", "ez"),
    "id": ("yang", "dan", "di", "dengan", "untuk", "dari", "ini", "tidak", "pada", "dalam", "itu"),
    "it": ("di", "che", "il", "la", "per", "un", "non", "sono", "con", "della", "nel", "una"),
    "ja": ("の", "に", "は", "を", "が", "で", "と", "て", "た", "も"),
    "ko": ("있다", "있는", "수", "그", "이", "것", "등", "및", "한", "것이다"),
    "nl": ("de", "het", "een", "van", "en", "dat", "niet", "met", "voor", "zijn", "aan", "te"),
    "no": ("og", "det", "er", "på", "som", "til", "av", "ikke", "med", "den", "har", "fra"),
    "pl": ("i", "w", "na", "nie", "się", "z", "do", "jest", "że", "jak", "przez", "oraz"),
    "pt": ("de", "que", "o", "os", "em", "um", "uma", "para", "não", "com", "do", "da"),
    "ro": ("și", "în", "de", "la", "cu", "nu", "este", "care", "pe", "din", "pentru", "mai"),
    "ru": ("и", "в", "не", "на", "что", "с", "по", "как", "это", "для", "из", "от"),
    "sv": ("och", "att", "det", "som", "är", "på", "för", "inte", "med", "till", "den", "av"),
    "ta": ("மற்றும்", "ஒரு", "இந்த", "என்று", "என", "அந்த", "இருந்து", "உள்ள"),
    "tr": ("ve", "bir", "bu", "için", "da", "de", "ile", "olarak", "daha", "çok", "gibi", "olan"),
    "uk": ("і", "в", "на", "не", "що", "з", "та", "як", "для", "до", "від", "є"),
    "ur": ("کے", "کی", "میں", "ہے", "اور", "سے", "کا", "کو", "نے", "پر"),
    "vi": ("là", "và", "của", "có", "không", "được", "trong", "cho", "các", "một", "những"),
    "zh": ("的", "是", "不", "了", "在", "有", "和", "人", "我", "也", "之", "而"),
}


Lists = tuple[tuple[str, tuple[str, ...]], ...]
"""Words by language."""


def count_stop_words(words: Words, lists: Lists) -> npt.NDArray[np.int64]:
    """How many different words of each list (at most 64 lists) each text has, int64 [texts, lists]."""
    keys, owners = _table(lists)
    return np.asarray(_count(words.hashes, words.offsets, keys, owners, len(lists)))


@lru_cache(maxsize=64)
def _table(lists: Lists) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """An open-addressing table of word hashes (0: empty) and, for each, the lists it is in as bits."""
    assert len(lists) <= 64, "the lists of a word are the bits of one number"
    size = 64
    while size < 8 * sum(len(own) for _, own in lists):
        size *= 2
    keys, owners = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
    for number, (_, own) in enumerate(lists):
        for word in own:
            key = int(words_of([word]).hashes[0])
            slot = key % size
            while int(keys[slot]) not in (0, key):
                slot = (slot + 1) % size
            keys[slot] = key
            owners[slot] |= np.uint64(1 << number)
    return keys, owners


@njit(cache=True)
def _count(hashes, offsets, keys, owners, num_lists):  # type: ignore[no-untyped-def]
    counts = np.zeros((len(offsets) - 1, num_lists), dtype=np.int64)
    seen = np.full(len(keys), -1, dtype=np.int64)
    mask = np.uint64(len(keys) - 1)
    for text in range(len(counts)):
        for key in hashes[offsets[text] : offsets[text + 1]]:
            slot = key & mask
            while keys[slot] != np.uint64(0):
                if keys[slot] == key:
                    if seen[slot] != text:
                        seen[slot] = text
                        for number in range(num_lists):
                            counts[text, number] += (owners[slot] >> np.uint64(number)) & np.uint64(1)
                    break
                slot = (slot + np.uint64(1)) & mask
    return counts
