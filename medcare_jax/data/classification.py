"""ICD-10-CM as a tuple of diagnoses that short questions can be asked about.

The classification is the one that the package ``simple_icd_10_cm`` carries (CDC, public domain).
"""

import dataclasses
import functools
import itertools
import re
import warnings
from collections import Counter

__all__ = ["Diagnosis", "read_diagnoses"]

_LAST_DISEASE_CHAPTER = 19  # 20 to 22 hold causes of accidents, visits and reserve codes
_LONGEST_TITLE = 60  # characters; keeps a dialogue near 110 tokens
_LONGEST_BLOCK = 70
_LONGEST_CODE = 6  # with its dot; finer codes differ by a side or an encounter only
_VAGUE = re.compile(
    r"\b(other|others|unspecified|specified|elsewhere|certain|nos|nec|encounter|assault"
    r"|left|right|bilateral|unilateral|trimester)\b",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\s*\([A-Z0-9]{3}(-[A-Z0-9]{3})?\)$")  # as in "Mycoses (B35-B49)"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """One entry of ICD-10-CM and what stands above it, as text.

    Attributes:
      code: With its dot, as in ``J45.2``.
      title: No other entry has this title.
      category: First three characters of the code.
      block: Title of the block right above the category.
      chapter: Title of the chapter.
      terms: Synonyms that stand for this entry alone.
      is_billable: Whether nothing finer stands below it.
    """

    code: str
    title: str
    category: str
    block: str
    chapter: str
    terms: tuple[str, ...]
    is_billable: bool


@functools.cache
def read_diagnoses() -> tuple[Diagnosis, ...]:
    """Returns the diagnoses of chapters 1 to 19 that are fit for short questions, in code order.

    Left out: titles that are long, vague, shared by two codes, or the same as their block's.
    The first call parses the classification (about 3 seconds); nothing is read on import.

    Examples:
      >>> {d.code: d.title for d in read_diagnoses()}["J45.2"]
      'Mild intermittent asthma'
    """
    with warnings.catch_warnings():  # it reads its files by a call that Python 3.11 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        import simple_icd_10_cm as icd10

    codes = list(filter(icd10.is_category_or_subcategory, dict.fromkeys(icd10.get_all_codes())))
    titles = [icd10.get_description(code) for code in codes]
    terms = [icd10.get_inclusion_term(code) for code in codes]
    meanings = Counter(itertools.chain(titles, *terms))

    def is_fit(text: str) -> bool:
        return len(text) <= _LONGEST_TITLE and meanings[text] == 1 and not _VAGUE.search(text)

    found = []
    for code, title, synonyms in zip(codes, titles, terms, strict=True):
        chapter = icd10.get_ancestors(code)[-1]
        if len(code) > _LONGEST_CODE or int(chapter) > _LAST_DISEASE_CHAPTER or not is_fit(title):
            continue
        # A block and its only category may share a name.
        block = icd10.get_description(icd10.get_parent(code[:3]), prioritize_blocks=True)
        found.append(
            Diagnosis(
                code=code,
                title=title,
                category=code[:3],
                block=_RANGE.sub("", block),
                chapter=_RANGE.sub("", icd10.get_description(chapter)),
                terms=tuple(filter(is_fit, synonyms)),
                is_billable=icd10.is_leaf(code),
            )
        )
    return tuple(d for d in found if d.block != d.title and len(d.block) <= _LONGEST_BLOCK)
