"""Tasks of the lm-evaluation-harness as a probe: the harness makes the prompts and judges the answers, we answer.

Prompts are made once, for all items that the probe asks, in the order of the data set: with random examples before a
question an item's prompt depends on that order, and base, checkpoints and subsets must see the same one.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepen.errors import DeepenError, MissingExtraError
from deepen.evaluate.documents.material import Material
from deepen.evaluate.items.tables import Outcome, smallest, stratified, table_of
from deepen.formats.documents.found_items import ProbeItem, strings_in
from deepen.model.loss.model import LossModel
from deepen.model.weights.load import load_tokenizer

INSTALL = "pip install 'deepen[lm-eval]'"
_FEW_SHOT_SEED = 1234
"""The harness's own default, for the choice of examples."""
_METRICS = ("acc", "exact_match")
"""Metrics that are taken if the settings name none, in this order; else the task's first."""


@dataclass(frozen=True)
class Wanted:
    """What of the harness is asked."""

    tasks: tuple[str, ...]
    include: str | None = None
    shots: int | None = None
    limit: int | None = None
    metric: str | None = None
    filter: str | None = None


def prepare_tasks(wanted: Wanted, material: Material) -> Callable[[LossModel, str | None], pa.Table]:
    """Load the tasks and make all prompts; see ``Probe.prepare`` for what is returned.

    Raises ``MissingExtraError`` without the harness, ``DeepenError`` for a task that cannot be asked.
    """
    _need_harness()
    from deepen.evaluate.harness.model import HarnessModel

    loaded = list(_load(wanted))
    _make_prompts(loaded, wanted)
    tokenizer = load_tokenizer(material.tokenizer)

    def measure(model: LossModel, what: str | None) -> pa.Table:
        asked = HarnessModel(model, tokenizer)
        return table_of(outcome for one in loaded for outcome in _outcomes(one, asked, wanted, material.only))

    return measure


def items_of(wanted: Wanted, probe: str) -> list[ProbeItem]:
    """The documents that are asked, with all their texts, as items of ``probe``. Makes no prompts.

    Raises as ``prepare_tasks`` does.
    """
    _need_harness()
    loaded = list(_load(wanted))
    _choose(loaded, wanted)
    return [
        ProbeItem(probe, one.entry, one.id_of(place), tuple(strings_in(one.task.eval_docs[number])))
        for one in loaded
        for place, number in enumerate(one.documents)
    ]


def _need_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the probe `lm_eval` needs the lm-evaluation-harness", hint=f"`{INSTALL}`") from error
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass
class Loaded:
    """One task of the harness with its prompts."""

    entry: str
    """The task or group of the recipe that it belongs to."""
    name: str
    task: Any
    documents: tuple[int, ...] = ()
    """Places in the data set of the items that are asked, ascending."""
    instances: Sequence[Any] = ()

    def id_of(self, place: int) -> str:
        """The id of the item that is the ``place``-th of ``documents``."""
        return f"{self.name}:{self.documents[place]}"


def _load(wanted: Wanted) -> Iterator[Loaded]:
    """The tasks in the order of the recipe; the harness's own index, which takes long, is read only if needed."""
    from lm_eval.tasks import TaskManager

    files = [name for name in wanted.tasks if name.endswith((".yaml", ".yml"))]
    folders = {Path(name).expanduser().parent for name in files}
    include = [str(folder) for folder in sorted(folders)]
    if wanted.include is not None:
        include.insert(0, str(Path(wanted.include).expanduser()))
    manager = TaskManager(include_path=include or None, include_defaults=False)
    entries = [_name_in(Path(name)) if name in files else name for name in wanted.tasks]
    if any(entry not in manager.all_tasks for entry in entries):
        manager = TaskManager(include_path=include or None, include_defaults=True)
    for entry in entries:
        if entry not in manager.all_tasks:
            raise DeepenError(
                f"the harness has no task `{entry}`", hint="`lm_eval ls tasks` lists them; `include` adds a folder"
            )
        for name, task in manager.load([entry])["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise DeepenError(
                    f"`{name}` runs code that the model writes", hint="run it with the harness itself, in a sandbox"
                )
            yield Loaded(entry, name, task)


def _name_in(path: Path) -> str:
    """What a task file calls its task; the file's name if it does not say."""
    found = re.search(
        r"""^[{\s]*["']?(?:task|group)["']?\s*:\s*["']?([\w.-]+)""", path.expanduser().read_text(), re.MULTILINE
    )
    return found[1] if found else path.stem


def _make_prompts(loaded: Sequence[Loaded], wanted: Wanted) -> None:
    """Choose the items of every task and make their prompts."""
    _choose(loaded, wanted)
    for one in loaded:
        shots = one.task.get_config("num_fewshot")
        if wanted.shots is not None and shots != 0:
            one.task.set_config(key="num_fewshot", value=wanted.shots)
        elif shots is None:
            one.task.set_config(key="num_fewshot", value=0)
        one.task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
        if one.documents:
            one.task.build_all_requests(samples=list(one.documents), rank=0, world_size=1)
            one.instances = list(one.task.instances)


def _choose(loaded: Sequence[Loaded], wanted: Wanted) -> None:
    """Choose the items of every task: its share of the limit."""
    sizes = {one.name: len(one.task.eval_docs) for one in loaded}
    if not any(sizes.values()):
        raise DeepenError("the tasks have no items", hint="look at their `test_split` and data files")
    shares = sizes if wanted.limit is None else stratified({k: v for k, v in sizes.items() if v}, wanted.limit)
    for one in loaded:
        names = {str(place): place for place in range(sizes[one.name])}
        one.documents = tuple(sorted(names[name] for name in smallest(list(names), shares.get(one.name, 0))))


def _outcomes(one: Loaded, model: Any, wanted: Wanted, only: frozenset[str] | None) -> Iterator[Outcome]:
    """Ask one task (its items in ``only``, if set)."""
    chosen = [i for i in one.instances if only is None or one.id_of(i.doc_id) in only]
    if not chosen:
        return
    for instance in chosen:
        # Prompts are made once and asked of every model: answers of the one before must go.
        instance.resps, instance.filtered_resps = [], {}
    by_type: dict[str, list[Any]] = {}
    for instance in chosen:
        # Each repeat is a request of its own, as in the harness's evaluator.
        by_type.setdefault(instance.request_type, []).extend([instance] * instance.repeats)
    cut: dict[int, int] = {}
    model.tells_greedy = one.task.OUTPUT_TYPE != "multiple_choice"  # which looks at likelihoods alone
    for request_type, requests in by_type.items():
        responses = getattr(model, request_type)(requests, disable_tqdm=True)
        for response, instance, tokens in zip(responses, requests, model.cut_tokens, strict=True):
            instance.resps.append(response)
            cut[instance.doc_id] = max(tokens, cut.get(instance.doc_id, 0))
    one.task._instances = chosen  # what the harness's filters work on
    one.task.apply_filters()
    by_place: dict[int, list[Any]] = {}
    for instance in chosen:
        by_place.setdefault(instance.doc_id, []).append(instance)
    for place, instances in sorted(by_place.items()):
        outcome = _outcome(one, place, sorted(instances, key=lambda instance: instance.idx), wanted)
        yield replace(outcome, cut_tokens=cut.get(place, 0))


def _outcome(one: Loaded, place: int, instances: Sequence[Any], wanted: Wanted) -> Outcome:
    document = instances[0].doc
    key = wanted.filter or next(iter(instances[0].filtered_resps))
    if key not in instances[0].filtered_resps:
        known = ", ".join(instances[0].filtered_resps)
        raise DeepenError(f"`{one.name}` has no filter `{key}`", hint=f"its filters are {known}")
    responses = [instance.filtered_resps[key] for instance in instances]
    value = _metric(one, one.task.process_results(document, responses), wanted.metric)
    nll: tuple[float, ...] = ()
    answer = str(responses[0])
    if instances[0].request_type == "loglikelihood":
        nll = tuple(-float(response[0]) for response in responses)
        answer = str(instances[min(range(len(nll)), key=nll.__getitem__)].args[1])
    name = one.id_of(place)
    return Outcome(
        name, one.entry, name, value=value, gold=str(one.task.doc_to_target(document)), answer=answer, nll=nll,
        bytes=tuple(len(str(instance.args[1]).encode()) for instance in instances) if nll else (),
    )  # fmt: skip


def _metric(one: Loaded, metrics: dict[str, Any], wanted: str | None) -> float:
    """The value of the metric that is asked for; raises ``DeepenError`` when it is not a number per item."""
    name = wanted or next((known for known in _METRICS if known in metrics), next(iter(metrics), ""))
    value = metrics.get(name)
    if isinstance(value, bool | int | float) and one.task.higher_is_better().get(name, True):
        return float(value) if math.isfinite(float(value)) else math.nan
    usable = ", ".join(key for key, found in metrics.items() if isinstance(found, bool | int | float)) or "none"
    raise DeepenError(
        f"`{one.name}` has no metric `{name}` that is a number per item of which more is better",
        hint=f"set `metric` to one of: {usable}; perplexities are what the probe `held_out` measures",
    )
