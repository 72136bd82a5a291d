"""Charts of a run as HTML fragments: loss, gain and forgetting over time, their plane, mixture, funnel.

Every chart takes plain records (what the stages wrote) and returns a fragment; the chart library is put into the page
once by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from deepen.formats.training.scores import Candidate

COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#8a6d00", "#5c6b7a")
_OUTCOME_COLOURS = ("#0b6e99", "#7fb7a3", "#d9730d", "#e8b04b", "#ad1a72", "#6940a5", "#b07d62", "#b8c2cc")
_MOST_POINTS = 1_500
_MOST_REASONS = len(_OUTCOME_COLOURS) - 3

Records = Sequence[Mapping[str, Any]]


def fragment(figure: go.Figure, height: int = 340) -> str:
    """The figure as HTML without the library."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        colorway=COLOURS,
        font={"family": "system-ui, DejaVu Sans, sans-serif", "size": 13, "color": "#1d2733"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hovermode="x unified" if figure.layout.hovermode is None else figure.layout.hovermode,
    )
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    )


def smoothed(values: Sequence[float | None], window: int) -> list[float | None]:
    """Exponential moving average with the given window, started at the first value; None (a step whose loss was not
    finite) stays none and moves nothing."""
    out: list[float | None] = []
    now: float | None = None
    for value in values:
        if value is not None:
            now = value if now is None else now + (value - now) * 2 / (window + 1)
        out.append(None if value is None else now)
    return out


def loss_chart(metrics: Records) -> str:
    """Training loss over tokens: every step faintly, smoothed on top, each source dashed."""
    thinned = metrics[:: max(1, len(metrics) // _MOST_POINTS)]
    tokens = [record["tokens"] for record in thinned]
    losses = [record["loss"] for record in thinned]
    window = max(5, len(thinned) // 40)
    figure = go.Figure()
    figure.add_scatter(x=tokens, y=losses, name="each step", line={"color": "#c5d5de", "width": 1}, hoverinfo="skip")
    figure.add_scatter(
        x=tokens, y=smoothed(losses, window), name="all sources", line={"width": 2.5, "color": COLOURS[0]}
    )
    names = sorted({name for record in thinned for name in record.get("loss_by_source", {})})
    for index, name in enumerate(names if len(names) > 1 else []):
        points = [(r["tokens"], r["loss_by_source"][name]) for r in thinned if name in r.get("loss_by_source", {})]
        colour = COLOURS[1 + index % (len(COLOURS) - 1)]
        figure.add_scatter(
            x=[x for x, _ in points], y=smoothed([y for _, y in points], window), name=name,
            line={"width": 1.8, "dash": "dot", "color": colour},
        )  # fmt: skip
    figure.update_xaxes(title="tokens trained")
    figure.update_yaxes(title="loss (nats per token)")
    return fragment(figure)


def learning_rate_chart(metrics: Records) -> str:
    """Learning rate and gradient norm over tokens."""
    thinned = metrics[:: max(1, len(metrics) // _MOST_POINTS)]
    tokens = [record["tokens"] for record in thinned]
    figure = go.Figure()
    figure.add_scatter(x=tokens, y=[record["learning_rate"] for record in thinned], name="learning rate")
    figure.add_scatter(
        x=tokens, y=[record["gradient_norm"] for record in thinned], name="gradient norm", yaxis="y2",
        line={"color": "#d9730d", "width": 1},
    )  # fmt: skip
    figure.update_layout(
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "title": "gradient norm",
            "showgrid": False,
            "tickmode": "auto",
            "tickformat": ".2g",
        }
    )
    figure.update_xaxes(title="tokens trained")
    figure.update_yaxes(title="learning rate", tickformat=".1e", selector=0)
    return fragment(figure, 260)


def change_chart(checkpoints: Records, budget: float) -> str:
    """Relative change of bits per byte against the base, per probe, with intervals and the forgetting budget."""
    figure = go.Figure()
    probes = list(
        dict.fromkeys(
            (s["probe"], s["ability"])
            for c in checkpoints
            for s in c["scores"]
            if ":" in s["probe"] and s["unit"] == "bits per byte"
        )
    )
    for probe, ability in probes:
        points = [
            (c["tokens"], s) for c in checkpoints for s in c["scores"] if (s["probe"], s["ability"]) == (probe, ability)
        ]
        figure.add_scatter(
            x=[0, *(tokens for tokens, _ in points)],
            y=[0, *(score["difference"] for _, score in points)],
            error_y=_error_bars([score for _, score in points]),
            name=f"{probe.partition(':')[2]} ({ability})",
            line={"dash": "solid" if ability == "new" else "dot"},
        )
    _draw_budget(figure, budget)
    figure.add_hline(y=0, line={"color": "#5c6b7a", "width": 1})
    figure.update_xaxes(title="tokens trained")
    figure.update_yaxes(title="bits per byte against the base", tickformat="+.0%")
    return fragment(figure)


def _draw_budget(figure: go.Figure, budget: float) -> None:
    line = {"color": "#b3261e", "dash": "dash", "width": 1}
    figure.add_hline(y=budget, line=line, annotation_text="forgetting budget")


def _error_bars(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Interval ends as plotly wants them, with none at the starting point."""
    ends = [score["interval"] or (score["difference"], score["difference"]) for score in scores]
    upper = [0.0, *(end[1] - score["difference"] for end, score in zip(ends, scores, strict=True))]
    lower = [0.0, *(score["difference"] - end[0] for end, score in zip(ends, scores, strict=True))]
    return {"type": "data", "symmetric": False, "array": upper, "arrayminus": lower, "width": 3, "thickness": 1}


def plane_chart(runs: Mapping[str, Sequence[Candidate]], budget: float, chosen: Candidate | None) -> str:
    """Gain against forgetting: the path of every run from the base at the origin, blends beside, the choice marked."""
    figure = go.Figure()
    for index, (name, candidates) in enumerate(runs.items()):
        known = [one for one in candidates if one.new is not None and one.kept is not None]
        path = [one for one in known if not one.blend]
        labels = ["base" if index == 0 else "", *(str(one.step) for one in path)]
        _draw_path(figure, path, name, labels, mode="lines+markers+text", textposition="top center")
        averages = [one for one in known if one.blend and all(part.step is not None for part in one.blend)]
        between = [one for one in known if one.blend and one not in averages]
        if between:
            order = sorted(between, key=lambda one: one.blend[0].weight)
            titles = ["", *(one.title for one in order)]
            style: dict[str, Any] = {"line": {"dash": "dot", "width": 1}, "marker": {"size": 6, "symbol": "diamond"}}
            _draw_path(figure, order, f"{name}: mixed with the base", titles, mode="lines+markers", **style)
        for one in averages:
            marker = {"size": 11, "symbol": "star"}
            _draw_path(figure, [one], one.title, [one.title], mode="markers", from_base=False, marker=marker)
    if chosen is not None and chosen.new is not None and chosen.kept is not None:
        marker = {"size": 18, "symbol": "circle-open", "color": "#1a7f4b", "line": {"width": 3}}
        _draw_path(figure, [chosen], "chosen", [chosen.title], mode="markers", from_base=False, marker=marker)
    _draw_budget(figure, budget)
    figure.update_xaxes(title="gain: fewer bits per byte on the domain", tickformat="+.0%")
    figure.update_yaxes(title="forgetting: more bits per byte on kept text", tickformat="+.1%")
    figure.update_layout(hovermode="closest")
    return fragment(figure, 400)


def _draw_path(
    figure: go.Figure, path: Sequence[Candidate], name: str, labels: list[str], *, from_base: bool = True, **style: Any
) -> None:
    start = [0.0] if from_base else []
    figure.add_scatter(
        x=[*start, *(-(one.new or 0.0) for one in path)], y=[*start, *((one.kept or 0.0) for one in path)], name=name,
        text=labels, hovertext=labels, **({"marker": {"size": 8}, "textfont": {"size": 11}} | style),
    )  # fmt: skip


def timeline_chart(kept: Sequence[tuple[int, Mapping[str, Any]]], budget: float, decisions: Records) -> str:
    """Kept ability over steps against the budget, and a mark where something was decided."""
    figure = go.Figure()
    figure.add_scatter(
        x=[step for step, _ in kept], y=[score["difference"] for _, score in kept], name="kept ability",
        error_y=_error_bars([score for _, score in kept]), mode="lines+markers",
    )  # fmt: skip
    for action in dict.fromkeys(map(_doing, decisions)):
        own = [one for one in decisions if _doing(one) == action]
        symbol = "triangle-up" if action == _GIVEN_BACK else "triangle-down"
        figure.add_scatter(
            x=[one["step"] for one in own], y=[budget] * len(own), name=action, mode="markers",
            marker={"size": 12, "symbol": symbol}, hovertext=[one["reason"] for one in own],
        )  # fmt: skip
    _draw_budget(figure, budget)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="bits per byte against the base", tickformat="+.1%")
    figure.update_layout(hovermode="closest")
    return fragment(figure, 300)


_GIVEN_BACK = "replay given back"


def _doing(decision: Mapping[str, Any]) -> str:
    """What a decision did, in words."""
    gives = decision["action"] == "more_replay" and decision["details"].get("by", 0) < 0
    return _GIVEN_BACK if gives else str(decision["action"]).replace("_", " ")


def mixture_chart(shares: Mapping[str, Sequence[float]], steps: Sequence[int]) -> str:
    """Share of each source in the tokens of each part of the run; ``steps`` are where the parts end."""
    figure = go.Figure()
    for name, values in shares.items():
        figure.add_scatter(x=list(steps), y=list(values), name=name, stackgroup="one", line={"width": 0.5})
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="share of tokens", tickformat=".0%", range=[0, 1])
    return fragment(figure, 280)


def funnel_chart(flows: Mapping[str, Mapping[str, int]]) -> str:
    """What became of each source's documents: kept, held out and dropped by reason, as shares of what was read.

    ``flows`` holds ``kept`` and ``held out`` first; all but the most frequent reasons are drawn as one.
    """
    figure = go.Figure()
    totals = {name: max(1, sum(flow.values())) for name, flow in flows.items()}
    for index, (outcome, counts) in enumerate(_outcomes(flows).items()):
        figure.add_bar(
            y=list(flows),
            x=[count / totals[name] for count, name in zip(counts, flows, strict=True)],
            name=outcome,
            orientation="h",
            marker={"color": _OUTCOME_COLOURS[index]},
            customdata=counts,
            hovertemplate="%{customdata:,} documents (%{x:.1%})",
        )
    figure.update_layout(barmode="stack", hovermode="closest", legend_traceorder="normal")
    figure.update_xaxes(title="share of the documents read", tickformat=".0%")
    return fragment(figure, 170 + 45 * len(flows))


def _outcomes(flows: Mapping[str, Mapping[str, int]]) -> dict[str, list[int]]:
    """Counts per source by outcome: kept, held out, the most frequent reasons, all others."""
    sums = Counter({outcome: 0 for flow in flows.values() for outcome in flow})
    for flow in flows.values():
        sums.update(flow)
    fixed = ["kept", "held out"]
    reasons = [reason for reason, _ in sums.most_common() if reason not in fixed]
    shown = [*fixed, *reasons[:_MOST_REASONS]]
    outcomes = {outcome: [flow.get(outcome, 0) for flow in flows.values()] for outcome in shown}
    if others := reasons[_MOST_REASONS:]:
        outcomes["other reasons"] = [sum(flow.get(reason, 0) for reason in others) for flow in flows.values()]
    return outcomes
