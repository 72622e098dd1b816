"""Records of test files, and the files they stand in."""

import json

from medcare_jax.data.records import parse_record
from medcare_jax.evaluation.tasks import TASKS

NER = {"task_type": "ner", "task_dataset": "BC5CDR", "answer_choices": ["Disease"]}


def record(prompt, answer, number=0, /, **gold):
    """A test item whose `eval.answer` is the answer unless `gold` says otherwise."""
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, "eval": {"sample_id": f"s{number}", "answer": answer, **gold}}


def parsed(prompt, answer, /, **gold):
    """The checked record of such an item."""
    return parse_record(record(prompt, answer, **gold), "file.json:1")


def write(folder, name, *items):
    """The file of a task with these items, as JSON Lines."""
    path = folder / f"{TASKS[name].files[0]}.json"
    path.write_text("\n".join(json.dumps(item, ensure_ascii=False) for item in items))
    return path
