"""Paired differences against known outcomes, and evaluations that cannot be paired."""

import pytest

from medcare_jax.evaluation.metrics import mcnemar_exact, paired_p_value
from medcare_jax.evaluation.report.paired import compare_folders, difference
from medcare_jax.evaluation.results import write_results
from tests.evaluation.report.evaluations import metric_score, results_of, task_result
from tests.evaluation.report.reading import read_page


def write(folder, results):
    folder.mkdir()
    write_results(folder, results)
    return folder


def test_right_or_wrong_is_mcnemars():
    before, after = [0] * 12 + [1] * 8, [1] * 9 + [0] * 3 + [1] * 8
    found = difference(metric_score(before), metric_score(after))
    assert found.delta == pytest.approx(0.45)
    assert found.p == mcnemar_exact(before, after)
    assert found.interval.score == pytest.approx(0.45)
    assert found.interval.low < 0.45 < found.interval.high
    assert found.verdict == "better"
    assert difference(metric_score(after), metric_score(before)).verdict == "worse"
    assert difference(metric_score(before), metric_score(before)).verdict == "unclear"


def test_equal_models_differ_by_nothing():
    score = metric_score([i % 2 for i in range(50)])
    found = difference(score, score)
    assert found == (0, (0, 0, 0), 1)
    assert found.verdict == "unclear"


def test_a_mark_more_on_one_item_is_as_unclear_as_one_less():
    before = metric_score([3] * 20)
    more, less = (difference(before, metric_score([3] * 19 + [mark])) for mark in (4, 2))
    assert (more.delta, more.interval.low, more.p) == (pytest.approx(0.05), 0, 1)
    assert more.interval.high == -less.interval.low
    assert (more.verdict, less.verdict) == ("unclear", "unclear")


def test_graded_scores_are_judged_by_a_permutation_of_signs():
    before = [0.1 * (i % 5) for i in range(50)]
    better = [value + 0.3 + 0.01 * (i % 3) for i, value in enumerate(before)]
    found = difference(metric_score(before), metric_score(better))
    assert found.p == paired_p_value(before, better) < 0.001
    assert found.verdict == "better"
    # Pairing takes out what the items differ by, so the interval is far narrower than a score's.
    assert found.interval.high - found.interval.low < 0.01
    mixed = [value + (0.2 if i % 2 else -0.2) for i, value in enumerate(before)]
    assert difference(metric_score(before), metric_score(mixed)).verdict == "unclear"


def test_a_score_that_is_no_mean_has_no_interval():
    score = {"score": 0.5, "low": 0.4, "high": 0.6, "types": {}, "outcomes": []}
    found = difference(score, {**score, "score": 0.75})
    assert (found.delta, found.interval, found.p, found.verdict) == (0.25, None, None, "unclear")


def test_two_models_side_by_side(tmp_path):
    one = results_of({"medqa": task_result("MedQA", right=10)}, name="one")
    two = results_of({"medqa": task_result("MedQA", right=30)}, name="two")
    folders = [write(tmp_path / "a", one), write(tmp_path / "b", two)]
    paths = compare_folders(folders, tmp_path)
    rows = read_page(paths[1].read_text()).rows
    assert rows[0] == [["task"], ["A"], ["B"], ["B − A"]]
    assert rows[1][:2] == [["MedQA", "accuracy, generate, 40 items"], ["25.0%", "14.2 to 40.2"]]
    outcomes = [
        r["tasks"]["medqa"]["protocols"]["generate"]["scores"]["accuracy"]["outcomes"]
        for r in (one, two)
    ]
    assert rows[1][3][0] == "+50.0"
    assert mcnemar_exact(*outcomes) < 0.001
    assert rows[1][3][1].endswith("p < 0.001")
    text = paths[0].read_text()
    assert "- B: two (" in text
    assert "+50.0 (" in text


def test_a_third_model_is_compared_with_the_first(tmp_path):
    folders = [
        write(tmp_path / name, results_of({"medqa": task_result("MedQA", right=right)}, name=name))
        for name, right in (("a", 10), ("b", 12), ("c", 20))
    ]
    rows = read_page(compare_folders(folders, tmp_path)[1].read_text()).rows
    assert rows[0][4:] == [["B − A"], ["C − A"]]
    assert rows[1][5][0] == "+25.0"


def test_other_items_are_not_compared(tmp_path):
    one = results_of({"medqa": task_result("MedQA"), "cmb": task_result("CMB")})
    two = results_of({"medqa": task_result("MedQA"), "cmb": task_result("CMB")})
    two["data"]["cmb"][0]["sha256"] = "ee" * 32
    folders = [write(tmp_path / "a", one), write(tmp_path / "b", two)]
    text = compare_folders(folders, tmp_path)[0].read_text()
    assert "| CMB" not in text
    assert "- CMB was scored on different items" in text


def test_marks_of_other_items_are_not_compared(tmp_path):
    """As many marks on both sides, of which one is missing on another item."""
    folders = []
    for name, digest in (("a", "3 is missing"), ("b", "9 is missing")):
        task = task_result("CCTE", "rouge_l", protocols=("generate",))
        task["left_out"]["not marked by the judge"] = 1
        scores = task["protocols"]["generate"]["scores"]
        scores["judge"] = {**metric_score([3, 4, 5]), "items": digest}
        folders.append(write(tmp_path / name, results_of({"ccte": task})))
    text = compare_folders(folders, tmp_path)[0].read_text()
    assert "- CCTE, judge, generate was scored on different items" in text
    assert "rouge l, generate" in text


@pytest.mark.parametrize("change", [{"model": "another"}, {"rubric": "another"}, None])
def test_marks_of_other_judges_are_not_compared(tmp_path, change):
    judge = {"url": "https://judge.test", "model": "a", "rubric": "r"}
    folders = []
    for name, mine in (("a", judge), ("b", judge | (change or {}))):
        task = task_result("CCTE", "rouge_l", protocols=("generate",))
        task["protocols"]["generate"]["scores"]["judge"] = metric_score([3, 4, 5])
        results = results_of({"ccte": task})
        results["settings"]["judge"] = {"ccte": mine}
        folders.append(write(tmp_path / name, results))
    text = compare_folders(folders, tmp_path)[0].read_text()
    said = "- CCTE, judge, generate was marked by different judges or rubrics"
    assert (said in text) == (change is not None)
    assert ("judge, generate, " in text) == (change is None)
    assert "rouge l, generate" in text


def test_answers_read_by_other_rules_are_not_compared(tmp_path):
    """What rules do not touch is: letters by likelihood, and ROUGE of English."""
    folders = []
    for rules in ("reference", "strict"):
        meqsum = task_result("MeQSum", "rouge_l", protocols=("generate",))
        results = results_of({"medqa": task_result("MedQA"), "meqsum": meqsum})
        results["settings"]["rules"] = rules
        folders.append(write(tmp_path / rules, results))
    text = compare_folders(folders, tmp_path)[0].read_text()
    assert "- MedQA, accuracy, generate was read by different rules" in text
    assert "MedQA (accuracy, generate" not in text.replace("**", "")
    assert "MedQA (accuracy, likelihood" in text.replace("**", "")
    assert "MeQSum (rouge l, generate" in text.replace("**", "")


def test_what_one_judge_marked_alone_keeps_its_other_scores(tmp_path):
    one, two = (task_result("MeQSum", "rouge_l", protocols=("generate",)) for _ in range(2))
    one["left_out"]["not marked by the judge"] = 0
    one["protocols"]["generate"]["scores"]["judge"] = metric_score([3, 4, 5])
    folders = [
        write(tmp_path / name, results_of({"meqsum": task}))
        for name, task in zip("ab", (one, two), strict=True)
    ]
    text = compare_folders(folders, tmp_path)[0].read_text()
    assert "rouge l, generate" in text
    assert "different items" not in text


def test_answers_of_a_file_are_compared_with_those_of_a_model(tmp_path):
    """What `--predictions` leaves, whose items are no prompts that could be too long."""
    one, two = results_of({"medqa": task_result("MedQA")}), results_of({"medqa": task_result("M")})
    two["tasks"]["medqa"]["left_out"] = {}
    folders = [write(tmp_path / name, each) for name, each in (("a", one), ("b", two))]
    assert "| MedQA" in compare_folders(folders, tmp_path)[0].read_text()


def test_nothing_in_common_is_refused(tmp_path):
    folders = [
        write(tmp_path / name, results_of({task: task_result(task)}))
        for name, task in (("a", "medqa"), ("b", "cmb"))
    ]
    with pytest.raises(ValueError, match="medqa was not scored by all"):
        compare_folders(folders, tmp_path)


def test_what_is_no_pair_is_refused(tmp_path):
    folder = write(tmp_path / "a", results_of({"medqa": task_result("MedQA")}))
    with pytest.raises(ValueError, match="two or more"):
        compare_folders([folder], tmp_path)
    with pytest.raises(ValueError, match="twice"):
        compare_folders([folder, folder], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        compare_folders([folder, tmp_path / "b"], tmp_path)
