"""Tables from results: ours beside the paper's, protocols beside each other, nothing invented."""

import pytest

from medcare_jax.evaluation.metrics import mcnemar_exact
from medcare_jax.evaluation.report import evaluation_tables as tables
from medcare_jax.evaluation.report.published import COLUMNS, ROWS
from medcare_jax.evaluation.report.wording import p_value
from medcare_jax.evaluation.tasks import TASKS
from tests.evaluation.report.evaluations import metric_score, results_of, task_result


def paper_results(names):
    exams = {n: task_result(COLUMNS[n], right=10 + i) for i, n in enumerate(names)}
    return results_of(exams)


def test_the_paper_comes_first_and_ours_has_an_average_if_it_is_whole():
    names = list(COLUMNS)
    table = tables.paper_table(paper_results(names))
    assert [row.name.text for row in table.rows] == [*ROWS, "some/model"]
    assert [cell.text for cell in table.rows[0].cells] == [f"{v:.2f}" for v in ROWS["Qwen1.5-7B"]]
    ours = table.rows[-1]
    assert ours.kind == "ours"
    shares = [100 * (10 + i) / 40 for i in range(8)]
    assert [cell.text for cell in ours.cells[:-1]] == [f"{share:.2f}" for share in shares]
    assert ours.cells[-1].text == f"{sum(shares) / 8:.2f}"


def test_what_is_not_the_papers_way_stands_beside_our_row():
    results = paper_results(["cmexam", "cmb"])
    results["settings"] = {"rules": "reference", "limit": 0, "max_new_tokens": 0}
    assert tables.paper_table(results).rows[-1].name.note == "here"
    results["settings"] = {"rules": "strict", "limit": 50, "max_new_tokens": 64}
    for task in results["tasks"].values():
        task["protocol"] = "likelihood"
    assert tables.paper_table(results).rows[-1].name.note == (
        "here, by likelihood, strict rules, up to 50 items of each, answers up to 64 tokens"
    )


def test_an_average_of_some_is_none():
    ours = tables.paper_table(paper_results(["cmexam", "cmb"])).rows[-1]
    assert [cell.text for cell in ours.cells] == ["–", "–", "27.50", "25.00", *["–"] * 5]
    assert ours.cells[-1].note == "2 of 8"


def test_without_its_exams_there_is_no_paper_table():
    assert not tables.paper_table(results_of({"x": task_result("X")})).rows


def test_other_exams_are_told_apart_by_language():
    results = results_of(
        {
            "cmexam": task_result("CMExam"),
            "a": task_result("A", language="en"),
            "b": task_result("B", language="zh"),
            "c": task_result("C", language="en", kind="alignment-required"),
        }
    )
    names = {
        lang: [r.name.text for r in tables.exam_table(results, lang).rows] for lang in ("en", "zh")
    }
    assert names == {"en": ["A"], "zh": ["B"]}


def test_cblue_is_shown_task_by_task():
    task = task_result("CBLUE", "mean_score", protocols=("generate",), types=("CMeEE", "CMeIE"))
    rows = tables.cblue_table(results_of({"cblue": task})).rows
    assert [row.name.text for row in rows] == ["CMeEE", "CMeIE", "mean of the tasks"]
    types = task["protocols"]["generate"]["scores"]["mean_score"]["types"]
    assert rows[0].cells[1].text == f"{100 * types['CMeEE']['score']:.2f}"
    assert not tables.other_table(results_of({"cblue": task})).rows


def test_a_task_that_waits_for_its_judge_says_so():
    task = task_result("CCTE", "judge", right=None, protocols=("generate",))
    (row,) = tables.other_table(results_of({"ccte": task})).rows
    assert (row.cells[1].text, row.cells[1].note) == ("–", "not scored yet")
    task["protocols"]["generate"]["scores"]["judge"] = metric_score([3.0, 4.0])
    (row,) = tables.other_table(results_of({"ccte": task})).rows
    assert row.cells[1].text == "3.50"


def test_protocols_are_compared_on_the_same_items():
    task = task_result("MedQA", items=40, right=10, unreadable=0.125)
    table = tables.protocol_table(results_of({"medqa": task}))
    assert table.columns == ["task", "generate", "likelihood", "difference"]
    generate, likelihood, change = table.rows[0].cells
    assert generate.text == "25.0%"
    assert generate.note.endswith("; 12.5% unreadable")
    assert likelihood.text == "32.5%"
    outcomes = [p["scores"]["accuracy"]["outcomes"] for p in task["protocols"].values()]
    assert (change.text, change.note) == ("+7.5", p_value(mcnemar_exact(*outcomes)))


def test_one_protocol_is_not_compared():
    single = task_result("MedQA", protocols=("generate",))
    assert not tables.protocol_table(results_of({"medqa": single})).rows


def test_types_and_what_was_left_out():
    task = task_result("MedMCQA", types=("Surgery", ""), left_out=3)
    results = results_of({"medmcqa": task, "medqa": task_result("MedQA")})
    assert [row.name.note for row in tables.type_table(results).rows] == ["Surgery", "no type"]
    assert tables.left_out(results) == "Left out: MedMCQA: 3 too long."


@pytest.mark.parametrize("make", [tables.paper_table, tables.cblue_table, tables.other_table,
                                  tables.protocol_table, tables.type_table])  # fmt: skip
def test_no_tasks_are_no_rows(make):
    assert not make(results_of({})).rows


def test_tasks_stand_in_the_order_of_their_table():
    known = ["medqa", "cmexam"]
    results = results_of({name: task_result(name) for name in ("x", *sorted(known))})
    assert list(tables.in_table_order(results)["tasks"]) == [n for n in TASKS if n in known] + ["x"]
