"""Keys and patients put through a whole run are found again in nothing that it leaves or says."""

import json
import pathlib

import pytest

from tests.reliability import tiny_job

# Words that no program would write of itself, in what must not get out.
PATIENT, ASKED, KEY = "Quillfeather", "Ottolinghausen", "sk-zyxwv98765"
SENTENCE = f"Mrs. {PATIENT} of Elm Street has had a cough for three days."
SECRETS = dict.fromkeys(("MEDCARE_JUDGE_KEY", "WANDB_API_KEY", "HF_TOKEN"), KEY)


def spoil(path: pathlib.Path, sentence: str) -> None:
    """Puts a sentence into the question and the answer of each record of a file."""
    records = json.loads(path.read_text())
    for record in records:
        record["conversations"][0]["value"] += f"\n{sentence}"
        if "eval" not in record:
            record["conversations"][1]["value"] += f" {sentence}"
    path.write_text(json.dumps(records))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The means to start runs, and data with patients in all of it."""
    folder = tmp_path_factory.mktemp("canaries")
    data = tiny_job.write_data(folder / "data")
    for stage in ("1-stage", "2-stage"):
        spoil(data / stage / "train.json", SENTENCE)
    spoil(data / "test" / "unseen.json", f"The patient is Mr. {ASKED}.")
    with tiny_job.warm(folder / "cache", **SECRETS) as start:
        yield start, data, folder


def holders(folder: pathlib.Path, word: str) -> set[str]:
    """Files below a folder that hold a word or have it in their name."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if word.lower() in path.name.lower()
        or (path.is_file() and word.lower().encode() in path.read_bytes().lower())
    }


@pytest.mark.slow
@pytest.mark.parametrize("writes_samples", [False, True])
def test_a_whole_run_keeps_them_to_itself(setting, writes_samples):
    start, data, folder = setting
    assert len(holders(data, PATIENT)) == 2
    assert holders(data, ASKED) == {"test/unseen.json"}
    workdir, log = folder / f"run-{writes_samples}", folder / f"log-{writes_samples}"
    argv = tiny_job.arguments(
        data,
        workdir,
        data__row_length=1024,
        evaluation__write_samples=writes_samples,
        evaluation__protocols=("generate", "likelihood"),
    )
    start.start(argv, log)
    assert start.wait() == 0, log.read_text()[-3000:]
    assert (workdir / "report.html").exists()
    assert holders(folder, KEY) == set()
    assert {name.split("/")[0] for name in holders(folder, PATIENT)} == {"data"}
    found = holders(workdir, ASKED)
    states = ("base", *tiny_job.STAGES)
    samples = {f"evaluation/{state}/samples.jsonl" for state in states}
    assert found == (samples if writes_samples else set())
    assert all((workdir / name).stat().st_mode & 0o077 == 0 for name in found)
    assert ASKED not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text.replace(SENTENCE, f"{SENTENCE}\\u0000"), "train.json:2: conversations"),
        (lambda text: text.replace(SENTENCE, f'{SENTENCE}"', 1), "not JSON"),
        (lambda text: text.replace('"human"', '"patient"', 1), "expected one of system, human"),
    ],
)
def test_an_error_names_the_place_and_nobody(setting, tmp_path, damage, said, debug):
    start, data, folder = setting
    path = tmp_path / "train.json"
    records = json.loads((data / "1-stage" / "train.json").read_text())
    path.write_text(damage("[\n" + ",\n".join(map(json.dumps, records)) + "\n]"))
    log = tmp_path / "log"
    argv = tiny_job.arguments(data, tmp_path / "run", mka__files=(str(path),))
    start.start([*argv, *debug], log)
    assert start.wait() == 1
    assert said in log.read_text()
    assert ("Traceback" in log.read_text()) is bool(debug)
    assert holders(tmp_path, PATIENT) == {"train.json"}
    assert holders(tmp_path, KEY) == set()
