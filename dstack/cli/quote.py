"""`dstack quote`: what is in a quote."""

from __future__ import annotations

from dstack.cli.lazy import LazyGroup

_MODULES = {"show": ("dstack.cli.quote_show", "name every field of a quote, its certificates and its platform")}


command = LazyGroup(
    name="quote",
    modules=_MODULES,
    help="Look into quotes. Nothing is verified: that is `dstack verify`.",
)
