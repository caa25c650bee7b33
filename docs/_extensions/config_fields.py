"""The directive {config-fields}: every field of a config, with type, default and meaning."""

import re
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from pi0_jax import fields
from pi0_jax.train.config import RunConfig

_FIELD = re.compile(r"  (?P<name>\S+) +(?P<rest>\S.*)")


class ConfigFields(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for line in fields.explain(RunConfig).splitlines():
            if found := _FIELD.fullmatch(line):
                kind, equals, default = found["rest"].partition(" = ")
                usual = f", default `{default}`" if equals else ""
                text += ["", f"`{found['name']}`: *{kind}*{usual}", ": "]
                continue
            if line.startswith(" "):
                text[-1] += line.strip().replace("<", r"\<") + " "
            elif line:
                text += ["", f"**{line}**", ""]
        node = nodes.container()
        self.state.nested_parse(StringList(text), 0, node)
        return node.children


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("config-fields", ConfigFields)
    return {"parallel_read_safe": True}
