"""Has Beam look at a method or parse its options once, which it else does at each of its steps.

That took a third of the time of a small pipeline. What Beam finds stays the same.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core
from apache_beam.typehints import decorators


def remember() -> None:
    """Makes Beam remember, in this process; a second call changes nothing."""
    if not isinstance(decorators.get_signature, _Signatures):
        signatures = _Signatures(decorators.get_signature)
        for module in (decorators, core):
            vars(module)["get_signature"] = signatures
        PipelineOptions.view_as = _remembered(PipelineOptions.view_as)


class _Signatures:
    """Signatures of functions; those of methods, which are asked for most, are kept."""

    def __init__(self, found: Callable[[Any], Any]):
        self._found = found
        self._kept: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def __call__(self, func: Any) -> Any:
        function = func.__func__ if isinstance(func, types.MethodType) else None
        if not isinstance(function, types.FunctionType):
            return self._found(func)
        if function not in self._kept:
            self._kept[function] = self._found(func)
        return self._kept[function]


def _remembered(view_as: Callable[[PipelineOptions, type], Any]) -> Callable[..., Any]:
    """Returns what keeps the views of options, which hold no values of their own."""
    kept: weakref.WeakKeyDictionary[PipelineOptions, dict[type, Any]] = weakref.WeakKeyDictionary()

    def _view_as(self: PipelineOptions, cls: type) -> Any:
        views = kept.setdefault(self, {})
        # A view shares the values of its options; they may have got others.
        if cls not in views or views[cls]._all_options is not self._all_options:
            views[cls] = view_as(self, cls)
        return views[cls]

    return _view_as
