"""The 16 CBLUE tasks: what a model wrote, in PromptCBLUE's layouts, to structures.

Every layout is Chinese with full-width marks. Only `reference` fills gaps by guesses: an attribute
that is no choice becomes the task's neutral one. With `strict` such a line says nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

from medcare_jax.evaluation.scoring import Rules

EVENT_KEYS = ("主体词", "发生状态", "描述词", "解剖部位")
_EVENT_LISTS = ("描述词", "解剖部位")
REPORT_KEYS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")

Parser = Callable[[str, Sequence[str], Rules], Any]
"""From a text and the answer choices of its item to the structure."""


def entities(text: str, choices: Sequence[str], rules: Rules) -> list[dict[str, str]]:
    """Lines `疾病实体：甲，乙`, one per type that was asked for.

    Examples:
      >>> entities("药物实体：布洛芬，叶酸", ["疾病", "药物"], "reference")[0]
      {'entity': '布洛芬', 'type': '药物'}
    """
    return [
        {"entity": mention, "type": choice}
        for choice in choices
        for line in text.split("\n")
        if line.startswith(f"{choice}实体")
        for mention in _listed(line.replace(f"{choice}实体：", ""))
    ]


def triples(text: str, choices: Sequence[str], rules: Rules) -> list[dict[str, str]]:
    """Lines `具有X关系的头尾实体对如下：头实体为甲，尾实体为乙。头实体为...`, one per relation.

    Examples:
      >>> triples("具有病因关系的头尾实体对如下：头实体为甲，尾实体为乙。", [], "reference")
      [{'predicate': '病因', 'subject': '甲', 'object': '乙'}]
    """
    found = []
    for line in text.split("\n"):
        predicate = line.split("关系的头尾实体对")[0][2:].strip()
        for pair in line.replace(f"具有{predicate}关系的头尾实体对如下：", "").split("。"):
            head, *tails = pair.split("，尾实体为")
            if tails:
                subject = head.replace("头实体为", "").strip()
                tail = tails[0].replace("尾实体为", "").strip()
                found.append({"predicate": predicate, "subject": subject, "object": tail})
    return found


def normalised(text: str, choices: Sequence[str], rules: Rules) -> list[dict[str, str]]:
    """Standard terms on the last line, each one of the choices; sorted, once each.

    Examples:
      >>> normalised("甲，丙，甲", ["甲", "乙"], "reference")
      [{'entity': '甲', 'type': 'normalization'}]
    """
    terms = {term for term in _listed(text.split("\n")[-1]) if term in choices}
    return [{"entity": term, "type": "normalization"} for term in sorted(terms)]


def events(text: str, choices: Sequence[str], rules: Rules) -> list[dict[str, Any]]:
    r"""Behind a first line, one event per line: `主体词：甲；发生状态：乙；描述词：丙，丁`.

    With `strict` a line without a subject is no event.

    Examples:
      >>> events("事件如下：\n主体词：癌；解剖部位：肝，胆", [], "reference")
      [{'主体词': '癌', '发生状态': '', '描述词': [], '解剖部位': ['肝', '胆']}]
    """
    found = [_event(line) for line in text.split("\n")[1:]]
    return [event for event in found if event["主体词"] or rules == "reference"]


def findings(neutral: str) -> Parser:
    r"""A parser of lines `发热：患有该症状` behind a first line.

    Args:
      neutral: the attribute that `reference` puts in place of one that is no choice.

    Examples:
      >>> findings("不标注")("如下：\n发热：也许", ["患有"], "reference")
      [{'entity': '发热', 'attr': '不标注'}]
      >>> findings("不标注")("如下：\n发热：也许", ["患有"], "strict")
      []
    """

    def parse(text: str, choices: Sequence[str], rules: Rules) -> list[dict[str, str]]:
        found = []
        for line in text.split("\n")[1:]:
            parts = line.split("：")
            if len(parts) != 2 or (rules == "strict" and parts[1] not in choices):
                continue
            attribute = parts[1] if parts[1] in choices else neutral
            found.append({"entity": parts[0].strip(), "attr": attribute})
        return found

    return parse


def report(text: str, choices: Sequence[str], rules: Rules) -> dict[str, str]:
    r"""Behind a first line, sections `主诉：...`; of a section given twice, the last.

    Examples:
      >>> report("报告如下：\n主诉：咳嗽。", [], "reference")
      {'主诉': '咳嗽。'}
    """
    found = {}
    for key in REPORT_KEYS:
        for line in text.strip().split("\n")[1:]:
            if line.startswith(f"{key}："):
                found[key] = line.strip().split(f"{key}：")[-1].strip()
    return found


def label(text: str, choices: Sequence[str], rules: Rules) -> str:
    """The whole answer, without blanks around it."""
    return text.strip()


def same_meaning(text: str, choices: Sequence[str], rules: Rules) -> str:
    """As `label`; 相同 and 不同 mean 是的 and 不是."""
    said = text.strip()
    return {"相同": "是的", "不同": "不是"}.get(said, said)


PARSERS: dict[str, Parser] = {
    "CMeEE-V2": entities,
    "CMeIE": triples,
    "CHIP-CDN": normalised,
    "CHIP-CDEE": events,
    "IMCS-V2-NER": entities,
    "CHIP-MDCFNPC": findings("不标注"),
    "IMCS-V2-SR": findings("无法根据上下文确定病人是否患有该症状"),
    "IMCS-V2-DAC": label,
    "IMCS-V2-MRG": report,
    "CHIP-CTC": label,
    "CHIP-STS": same_meaning,
    "KUAKE-IR": label,
    "KUAKE-QIC": label,
    "KUAKE-QQR": label,
    "KUAKE-QTR": label,
    "MedDG": label,
}
"""By task, in the benchmark's order."""


def parse(task: str, text: str, choices: Sequence[str] | None, rules: Rules) -> Any:
    """The structure of one answer.

    Args:
      task: a key of `PARSERS`.
      text: what a model wrote.
      choices: the item's answer choices; None where a task has none.
      rules: see the package.

    Raises:
      KeyError: the task is none of the 16.
    """
    return PARSERS[task](text, choices or (), rules)


def _listed(text: str) -> list[str]:
    """What stands between full-width commas."""
    return [part.strip() for part in text.split("，") if part.strip()]


def _event(line: str) -> dict[str, Any]:
    """The attributes of one line; those that it does not give are empty."""
    event: dict[str, Any] = {key: [] if key in _EVENT_LISTS else "" for key in EVENT_KEYS}
    for attribute in line.split("；"):
        for key in EVENT_KEYS:
            if attribute.startswith(f"{key}："):
                # The reference goes on with what is left: a value may begin with the next key.
                attribute = attribute.replace(f"{key}：", "").strip()
                event[key] = _listed(attribute) if key in _EVENT_LISTS else attribute
    return event
