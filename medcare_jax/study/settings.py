"""A study: one run, the seeds that it is repeated with, and the cells that differ in DA."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from medcare_jax.settings import Settings, SettingsError, build, make_settings

MEDCARE = "medcare"
KEEP_NOISE = "keep_noise"
ONE_LORA = "one_lora"
METHODS = (MEDCARE, KEEP_NOISE, ONE_LORA)

# What a cell may say: all cells of a method go on from the same MKA.
_SECTIONS = {
    MEDCARE: ("constraint", "da"),
    KEEP_NOISE: ("constraint", "da"),
    ONE_LORA: ("adapters", "da"),
}

_DATA = ("files", "weights", "epochs")  # what decides the batches of DA, which are read once


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way of doing Downstream Alignment.

    Attributes:
      name: Its row in the table and, with a digest, its folder.
      method: `medcare`: noise dropped, an alignment beside the knowledge. `keep_noise`: the noise
        aggregator stays, frozen. `one_lora`: a single LoRA learns in both stages.
      settings: Of the whole run, with what the cell changes.
    """

    name: str
    method: str
    settings: Settings

    @property
    def has_free_alignment(self) -> bool:
        """Whether an alignment learns, and nothing keeps it off anything."""
        return self.method != ONE_LORA and self.settings.constraint.kind == "none"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Sizes of the synthetic tasks, see `facts.py`; 0 facts: none are made."""

    facts: int = 0
    notes: int = 0
    aligned: int = 0
    test: int = 0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Tasks drawn anew for each seed from data that are there, see `drawn.py`.

    Attributes:
      folder: With `1-stage/train.json`, `2-stage/train.json` and `test`.
      exam: Task of English letters as which what was taught is asked, such as `medmcqa`.
      written: Task of the alignment's test, such as `ner`.
      exam_ids: Beginnings of the ids in stage 1 that are taught.
      written_ids: Beginnings of the ids in both stages that are the alignment's.
      taught: Exam questions of stage 1, asked again in the test.
      mixed: Alignment-required dialogues of stage 1.
      aligned: Alignment-required dialogues of stage 2.
      test: Items of the alignment's test.
      longest: Characters of a dialogue; longer ones are not drawn.
    """

    folder: str
    exam: str
    written: str
    exam_ids: tuple[str, ...]
    written_ids: tuple[str, ...]
    taught: int
    mixed: int
    aligned: int
    test: int
    longest: int

    def __post_init__(self) -> None:
        """Refuses to draw from nowhere."""
        if not self.folder:
            raise SettingsError(
                "folder is empty; name a folder in MedCareData's layout with "
                "--config.drawn.folder=FOLDER"
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """What `tools/ablate.py` does.

    Attributes:
      seeds: Of data, initial values and order; every cell is done with each.
      cells: In the order of the table.
      baseline: The cell that the others are compared with, seed by seed.
      facts: Synthetic tasks in place of the run's data.
      drawn: Tasks drawn for each seed in place of the run's data.
    """

    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    baseline: str
    facts: Facts
    drawn: Drawn | None

    def with_seed(self, cell: Cell, seed: int) -> Settings:
        """The settings of a cell's run with a seed."""
        return dataclasses.replace(cell.settings, seed=seed)


@dataclasses.dataclass(frozen=True)
class _Said:
    """The keys of a study's config."""

    run: Mapping[str, Any]
    seeds: tuple[int, ...]
    cells: tuple[Mapping[str, Any], ...]
    baseline: str
    facts: Mapping[str, Any]
    drawn: Mapping[str, Any]


def make_study(config: Mapping[str, Any]) -> Study:
    """The checked study of a config as `configs/ablation_*.py` makes it.

    Raises:
      SettingsError: An unknown method or key, a cell that would change what MKA is, a missing
        baseline, or a seed twice.
    """
    plain = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    said = build(_Said, {"facts": {}, "drawn": {}, **plain}, where="")
    if not said.seeds or len(set(said.seeds)) < len(said.seeds):
        raise SettingsError(f"seeds = {said.seeds!r}; expected at least one, each once")
    cells = tuple(_cell(each, said.run, where=f"cells[{n}]") for n, each in enumerate(said.cells))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise SettingsError(f"cells are named {', '.join(names)}; expected each name once")
    if said.baseline not in names:
        raise SettingsError(f"baseline = {said.baseline!r}; allowed are {', '.join(names)}")
    facts = build(Facts, {**dataclasses.asdict(Facts()), **said.facts}, where="facts.")
    drawn = build(Drawn, said.drawn, where="drawn.") if said.drawn else None
    return Study(said.seeds, cells, said.baseline, facts, drawn)


def _cell(said: Mapping[str, Any], run: Mapping[str, Any], *, where: str) -> Cell:
    """A cell from what it says, on top of the run; `where` it stands, if it has no name."""
    sections = dict(said)
    if not isinstance(name := sections.pop("name", None), str):
        raise SettingsError(f"{where} has no name; it has {', '.join(sections) or 'nothing'}")
    method = sections.pop("method", MEDCARE)
    if method not in METHODS:
        raise SettingsError(f"cells.{name}.method = {method!r}; allowed are {', '.join(METHODS)}")
    wrong = sections.keys() - set(_SECTIONS[method])
    if wrong:
        raise SettingsError(
            f"cells.{name} changes {', '.join(sorted(wrong))}; a cell of method {method!r} may "
            f"change {' and '.join(_SECTIONS[method])}, all else is the same for all cells"
        )
    for key, values in sections.items():
        if not isinstance(values, Mapping):
            raise SettingsError(f"cells.{name}.{key} = {values!r}; expected a section with keys")
    changed = {key: {**run.get(key, {}), **values} for key, values in sections.items()}
    da = run.get("da", {})
    of_data = [k for k in _DATA if changed.get("da", da).get(k) != da.get(k)]
    if of_data:
        raise SettingsError(
            f"cells.{name} changes da.{', da.'.join(of_data)}; all cells learn the same data in "
            "the same order. Fewer steps: da.max_steps"
        )
    try:
        return Cell(name, method, make_settings({**run, **changed}))
    except SettingsError as error:
        raise SettingsError(f"cells.{name}: {error}") from None
