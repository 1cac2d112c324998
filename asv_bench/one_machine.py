"""Changes to asv's pages: machines are not mixed in one curve, and a graph opens with the curves of one
machine.

`asv.conf.json` names this module, so `asv publish` loads it. On its own, asv draws the small curves of the
grid as means over all machines: such a curve falls where a faster machine begins. It opens a graph with all
machines at once, up to eight curves of each.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

from asv.graph import Graph, make_summary_graph
from asv.publishing import OutputPublisher

HERE = pathlib.Path(__file__).resolve().parent
#: asv's line before which ours must stand: its asv.js has made `$.asv` then, and graphdisplay.js has not used
#: it.
_BEFORE = '<script language="javascript" type="text/javascript"\n            src="asv_ui.js">'


def newest_machine(graphs: list[Any]) -> str:
    """The machine that measured the newest commit; of several, the one with most commits, then the first by
    name.
    """
    commits: dict[str, set[int]] = {}
    for graph in graphs:
        commits.setdefault(graph.params["machine"], set()).update(graph.data_points)
    return min(commits, key=lambda name: (-max(commits[name]), -len(commits[name]), name))


class OneMachine(OutputPublisher):
    """Writes the grid's curves anew, and adds a script to the page."""

    name = "one_machine"
    button_label = description = "One machine at first"
    order = 4  # after asv's own, which write the files that are changed here

    @classmethod
    def publish(cls, conf: Any, repo: Any, benchmarks: Any, graphs: Any, revisions: Any) -> None:
        """Called by `asv publish`, before it writes its index."""
        shown = {}
        for name in benchmarks:
            measured = graphs.get_graph_group(name)
            if not measured:  # asv writes no file, and its page then asks for one that is not there
                Graph(name, {"summary": ""}).save(conf.html_dir)
                continue
            shown[name] = newest_machine(measured)
            of_one = [g for g in measured if g.params["machine"] == shown[name]]
            make_summary_graph(of_one).save(conf.html_dir)
        html = pathlib.Path(conf.html_dir)
        shutil.copyfile(HERE / "one_machine.js", html / "one_machine.js")
        page = (html / "index.html").read_text()
        if page.count(_BEFORE) != 1:
            raise ValueError(
                "one_machine.py finds no line for asv_ui.js in asv's index.html (a new version of asv?)"
            )
        scripts = "\n    ".join(
            (
                f"<script>window.one_machine_of = {json.dumps(shown)};</script>",
                '<script src="one_machine.js"></script>',
                "",
            )
        )
        (html / "index.html").write_text(page.replace(_BEFORE, scripts + _BEFORE))
