"""The report of a sweep: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_exfm.tuner.scaling.figures import plot_compute, plot_data
from keras_exfm.tuner.scaling.sweep import excess, laws

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .25rem .7rem; text-align: right;
border-bottom: 1px solid #ddd } td:first-child, th:first-child { text-align: left }
img { max-width: 100% } div { overflow-x: auto }
</style>
<h1>{{ title }}</h1>
<p>Quality is {{ quality }}: less is better. A size's figure is the mean over its seeds.</p>
<h2>Quality against compute</h2>
<img alt="Quality against training FLOPs an example" src="data:image/png;base64,{{ compute }}">
<div><table><tr><th>model</th><th>training FLOPs an example</th><th>seeds</th><th>quality</th>
<th>deviation</th></tr>
{% for row in sizes %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<h2>The law L(C) = a + b C<sup>-c</sup></h2>
{% if laws %}<div><table><tr><th>model</th><th>a</th><th>b</th><th>c</th>
<th>largest size, predicted</th><th>observed</th><th>holds</th></tr>
{% for row in laws %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p>With 95 % bootstrap intervals; the largest size as the law of the smaller ones predicts it.</p>
{% else %}<p>A law needs at least four sizes of a model.</p>{% endif %}
<h2>Quality against examples seen</h2>
<img alt="Quality against examples seen" src="data:image/png;base64,{{ data }}">
"""


def write_page(
    records: Sequence[dict[str, Any]], path: str | os.PathLike[str], title: str = "Scaling law"
) -> Path:
    """Writes figures, sizes and laws of a sweep into one HTML file.

    Args:
        records: Of `Sweep.records`.
        path: The HTML file.
        title: Defaults to `"Scaling law"`.

    Returns:
        The path.

    Raises:
        ValueError: Without a record.
    """
    import jinja2

    with tempfile.TemporaryDirectory() as folder:
        pictures = {
            name: base64.b64encode(draw(records, Path(folder) / f"{name}.png").read_bytes())
            for name, draw in (("compute", plot_compute), ("data", plot_data))
        }
    known = all(r["figures"].get("bayes_ne") is not None for r in records)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(_PAGE).render(
        title=title,
        quality="NE beyond the best possible" if known else "normalized entropy",
        sizes=_sizes(records),
        laws=_laws(records),
        **{name: data.decode() for name, data in pictures.items()},
    )
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(html, encoding="utf-8")
    os.replace(unfinished, file)
    return file


def _sizes(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    groups: dict[tuple[str, float], list[float]] = {}
    for record in records:
        key = (record["name"], float(record["cost"]["training_flops"]))
        groups.setdefault(key, []).append(excess(record["figures"]))
    return [
        [
            name,
            f"{flops:,.0f}",
            str(len(values)),
            f"{np.mean(values):.5f}",
            f"{np.std(values, ddof=1):.5f}" if len(values) > 1 else "",
        ]
        for (name, flops), values in sorted(groups.items())
    ]


def _laws(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, (law, check) in sorted(laws(records).items()):
        row = [name]
        for part in "abc":
            low, high = law.interval(part)
            row.append(f"{getattr(law, part):.3g} [{low:.3g}, {high:.3g}]")
        if check is None:
            row += ["", "", ""]
        else:
            row += [
                f"{check.expected:.5f} [{check.low:.5f}, {check.high:.5f}]",
                f"{check.observed:.5f}",
                "yes" if check.holds else "no",
            ]
        rows.append(row)
    return rows
