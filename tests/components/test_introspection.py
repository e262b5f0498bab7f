"""Beam finds the same when it looks once."""

import inspect

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.transforms import core
from apache_beam.typehints import decorators

from sigline.components import introspection

introspection.remember()


class _Fn(beam.DoFn):
    def process(self, element, *more, moment=beam.DoFn.TimestampParam):
        yield element, more, moment


def test_signatures_are_those_of_python():
    for method in (_Fn().process, _Fn().process, _Fn().start_bundle, beam.DoFn().process):
        assert core.get_signature(method) == inspect.signature(method)
        assert decorators.get_signature(method) == inspect.signature(method)
    assert core.get_signature(_Fn.process) == inspect.signature(_Fn.process)
    assert core.get_signature(_Fn().process) == inspect.signature(_Fn().process)
    assert decorators.get_signature(str.upper).parameters["self"].annotation is str


def test_views_share_the_values_of_their_options():
    options = PipelineOptions(["--direct_num_workers=2"], runner="one")
    assert options.view_as(DirectOptions).direct_num_workers == 2
    options.view_as(DirectOptions).direct_num_workers = 3
    options.view_as(StandardOptions).streaming = True
    assert options.view_as(DirectOptions).direct_num_workers == 3
    assert options.view_as(StandardOptions).view_as(DirectOptions).direct_num_workers == 3
    assert (options.view_as(StandardOptions).runner, options.get_all_options()["streaming"]) == (
        "one",
        True,
    )
    other = PipelineOptions(["--direct_num_workers=2"])
    assert other.view_as(DirectOptions).direct_num_workers == 2
    options._all_options = {"direct_num_workers": 7}
    assert options.view_as(DirectOptions).direct_num_workers == 7


def test_second_call_changes_nothing():
    before = decorators.get_signature, PipelineOptions.view_as
    introspection.remember()
    assert (decorators.get_signature, PipelineOptions.view_as) == before
