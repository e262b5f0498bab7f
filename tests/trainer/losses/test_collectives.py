"""The exchange of one replica; several have processes of their own in `test_replicas.py`."""

import types

import pytest
import tensorflow as tf

from sigline.trainer.losses import collectives


def _context(monkeypatch, strategy):
    context = types.SimpleNamespace(num_replicas_in_sync=2, strategy=strategy)
    monkeypatch.setattr(tf.distribute, "get_replica_context", lambda: context)


def test_single_replica_visits_its_own_rows_once():
    exchange = collectives.exchange_for_context()

    def visit(rows, state, home):
        assert home
        return rows + 1, state + 1

    found, state = exchange.sweep(visit, tf.constant([1, 2]), 0, tf.add)
    assert exchange.num_replicas == 1
    assert found.numpy().tolist() == [2, 3]
    assert state == 1


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"ring or all_gather\. Received: form='star'"):
        collectives.exchange_for_context("star")


def test_strategy_without_a_ring_gathers(monkeypatch):
    _context(monkeypatch, object())
    assert isinstance(collectives.exchange_for_context(), collectives.AllGather)


def test_ring_where_there_is_none_is_refused(monkeypatch):
    _context(monkeypatch, object())
    with pytest.raises(RuntimeError, match=r"object has no ring.*Use auto or all_gather"):
        collectives.exchange_for_context("ring")


def test_ring_of_a_tpu_sends_to_the_next_replica():
    @tf.function(autograph=False)
    def shift(x):
        return collectives.tpu_ring(3).shift([x])

    operations = shift.get_concrete_function(tf.zeros(2)).graph.get_operations()
    (permute,) = [x for x in operations if x.type == "CollectivePermute"]
    pairs = tf.get_static_value(permute.inputs[1]).tolist()
    assert pairs == [[0, 1], [1, 2], [2, 0]]
