"""Made-up evaluations in the shape of `results.json`."""

from medcare_jax.evaluation.metrics import estimate


def outcomes_of(items, right, shift=0):
    """`right` ones among `items`, spread evenly."""
    return [int(((i + shift) * right) % items < right) for i in range(items)]


def metric_score(outcomes, types=("",)):
    """A `MetricScore` whose items take the types in turn."""
    groups = {name: outcomes[k :: len(types)] for k, name in enumerate(types)}
    return {
        **estimate(outcomes)._asdict(),
        "types": {n: {"score": sum(o) / len(o), "items": len(o)} for n, o in groups.items() if o},
        "outcomes": outcomes,
    }


def task_result(
    title,
    metric="accuracy",
    *,
    items=40,
    right=10,
    protocols=("generate", "likelihood"),
    unreadable=0.125,
    kind="knowledge-intensive",
    language="zh",
    left_out=0,
    types=("",),
    shift=0,
):
    """A `TaskResult`; `right` of None has no scores yet, each further protocol has 3 more right."""
    return {
        "title": title,
        "language": language,
        "kind": kind,
        "metric": metric,
        "protocol": protocols[0],
        "items": items,
        "left_out": {"too long": left_out},
        "protocols": {
            name: {
                "unreadable": unreadable if name == "generate" else None,
                "scores": {}
                if right is None
                else {
                    metric: metric_score(
                        outcomes_of(items, min(items, right + 3 * k), shift), types
                    )
                },
            }
            for k, name in enumerate(protocols)
        },
    }


def results_of(tasks, *, status="complete", name="some/model"):
    """A whole `Results`."""
    return {
        "format": 1,
        "status": status,
        "model": {
            "name": name,
            "kind": "huggingface",
            "digest": "ab" * 32,
            "tokenizer": "",
            "keep": [],
            "stage": None,
            "step": None,
        },
        "settings": {"seed": 0, "max_new_tokens": 64},
        "versions": {"jax": "0.10.2"},
        "data": {task: [{"file": f"{task}.json", "sha256": "cd" * 32}] for task in tasks},
        "tasks": tasks,
    }
