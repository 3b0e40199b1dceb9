"""Layer trees: how they are read and unrolled, and the shapes, parameters and operations that follow."""

from __future__ import annotations

from typing import Any

import pytest

from harness.core.network import Input, ModelSpec, Network
from harness.core.validation import ConfigError, Mistake

OUTPUT: dict[str, Any] = {"kind": "output"}


def dense(units: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "dense", "units": units, **more}


def repeat(times: Any, *body: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "repeat", "times": times, "body": list(body)}


def network(*tree: dict[str, Any], shape: tuple[int, ...] = (64,), outputs: int = 10) -> Network:
    return ModelSpec.parse(list(tree)).resolve(Input(shape), outputs)


def mistakes(*tree: Any) -> dict[str, Mistake]:
    with pytest.raises(ConfigError) as caught:
        ModelSpec.parse(list(tree))
    by_key = {mistake.key: mistake for mistake in caught.value.mistakes}
    assert len(by_key) == len(caught.value.mistakes)
    return by_key


def test_parameters_and_operations_of_a_feed_forward_network_are_the_closed_forms() -> None:
    """Catches: biases not counted, a multiply-add counted once, activations counted, wrong fan-in.

    64-64-32-10: 64*64 + 64*32 + 32*10 = 6,464 multiply-adds, 12,928 operations; and 106 biases.
    """
    relu = {"kind": "activation", "function": "relu"}
    net = network(dense(64), relu, dense(32), relu, {"kind": "dropout", "rate": 0.1}, OUTPUT)
    assert net.flops() == 12_928
    assert net.size() == 6_464 + 64 + 32 + 10
    assert net.out_shape == (10,)
    kernel = net.params()["2.kernel"]
    assert (kernel.shape, kernel.fan_in, kernel.fan_out) == ((64, 32), 64, 32)


def test_dense_acts_on_the_last_axis() -> None:
    """Catches: a dense layer that flattens, and operations that forget the other axes."""
    net = network(dense(5), {"kind": "flatten"}, OUTPUT, shape=(7, 3), outputs=2)
    first = net.nodes[0]
    assert first.out_shape == (7, 5)
    assert first.flops == 2 * 7 * 3 * 5
    assert net.params()["0.kernel"].shape == (3, 5)
    assert [node.out_shape for node in net.nodes] == [(7, 5), (35,), (2,)]


def test_weights_are_named_by_place_and_keep_the_order_of_the_layers() -> None:
    """Catches: names that change with the number of copies, and two layers that share a name."""
    net = network(
        {"kind": "flatten"}, repeat(2, dense(4), dense(3, use_bias=False)), OUTPUT, shape=(2, 3), outputs=1
    )
    assert list(net.params()) == [
        *("1.0.0.kernel", "1.0.0.bias", "1.0.1.kernel"),
        *("1.1.0.kernel", "1.1.0.bias", "1.1.1.kernel"),
        *("2.kernel", "2.bias"),
    ]
    assert net.params()["1.1.0.kernel"].shape == (3, 4)


def test_the_output_layer_is_a_dense_layer_of_the_tasks_size_without_activation() -> None:
    """Catches: a task's size that does not arrive, or an initialiser that gets lost on the way."""
    last = network({"kind": "output", "kernel_init": "he_uniform", "use_bias": False}, outputs=3).nodes[-1]
    assert last.layer.kind == "dense" and last.out_shape == (3,)
    assert dict(last.params)["kernel"].init == "he_uniform"
    assert [name for name, _ in last.params] == ["kernel"]


def test_repeat_is_its_body_so_many_times() -> None:
    """Catches: a copy too many or too few, and 0 copies that are not nothing."""
    three = network(repeat(3, dense(8)), OUTPUT)
    assert [node.out_shape for node in three.nodes] == [(8,), (8,), (8,), (10,)]
    assert len(network(repeat(0, dense(8)), OUTPUT).nodes) == 1


def test_repeats_nest() -> None:
    """Catches: an inner repeat that is not unrolled, or whose paths are those of the outer one."""
    net = network(repeat(2, repeat(2, dense(4)), dense(8)), OUTPUT)
    assert [node.path for node in net.nodes] == [
        *("0.0.0.0.0", "0.0.0.1.0", "0.0.1"),
        *("0.1.0.0.0", "0.1.0.1.0", "0.1.1"),
        "1",
    ]
    assert [node.out_shape for node in net.nodes[:3]] == [(4,), (4,), (8,)]


@pytest.mark.parametrize("times", [2, None])
def test_a_list_in_the_body_gives_each_copy_its_own(times: int | None) -> None:
    """Catches: every copy with the first value, and lists that say nothing about the number of copies."""
    net = network(repeat(times, dense([7, 5]), {"kind": "dropout", "rate": 0.5}), OUTPUT)
    assert [node.out_shape for node in net.nodes] == [(7,), (7,), (5,), (5,), (10,)]


def test_one_number_and_a_depth_are_the_same_network_as_a_list() -> None:
    """Catches: two ways to say one network that would be two results."""
    assert network(repeat(2, dense(64)), OUTPUT) == network(repeat(None, dense([64, 64])), OUTPUT)


def test_lists_of_the_wrong_length_are_refused() -> None:
    """Catches: values that are silently left over, or an IndexError."""
    problems = mistakes(repeat(3, dense([64, 32])), OUTPUT)
    assert "3 copies, but a list in the body has 2 values" in problems["model.layers[0].times"].problem
    two = mistakes(repeat(None, dense([64, 32]), {"kind": "dropout", "rate": [0.1, 0.2, 0.3]}), OUTPUT)
    assert "2, 3 values" in two["model.layers[0].times"].problem
    assert "how many copies" in mistakes(repeat(None, dense(64)), OUTPUT)["model.layers[0].times"].problem


def test_all_mistakes_of_a_tree_come_at_once_and_those_of_a_body_once() -> None:
    """Catches: stopping at the first layer, and a mistake in a body repeated for every copy."""
    problems = mistakes(
        {"kind": "flaten"},
        repeat(4, dense(0), {"kind": "activation", "function": "rleu"}),
        dense(8, unit=3),
        "relu",
        {"kind": ["dense"]},
        {"kind": "dropout", "rate": 1.0},
        OUTPUT,
    )
    assert set(problems) == {
        "model.layers[0].kind",
        "model.layers[1].body[0].units",
        "model.layers[1].body[1].function",
        "model.layers[2].unit",
        "model.layers[3].kind",
        "model.layers[4].kind",
        "model.layers[5].rate",
    }
    assert problems["model.layers[0].kind"].suggestion == "flatten"
    assert "repeat" in problems["model.layers[0].kind"].allowed
    assert problems["model.layers[1].body[1].function"].suggestion == "relu"


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ([dense(8)], "model.layers"),
        ([OUTPUT, OUTPUT], "model.layers[0]"),
        ([OUTPUT, dense(8), OUTPUT], "model.layers[0]"),
        ([], "model.layers"),
        ([repeat(2, OUTPUT)], "model.layers[0].body[0]"),
        ([repeat(1)], "model.layers[0].body"),
    ],
)
def test_the_output_is_the_last_layer_and_no_other(tree: list[Any], key: str) -> None:
    """Catches: a network without an output of the task's size, or with two."""
    assert key in mistakes(*tree)


@pytest.mark.parametrize("tree", [None, "dense", {"kind": "output"}, 3])
def test_what_is_no_list_of_layers_is_refused(tree: object) -> None:
    """Catches: a TypeError for a tree that YAML gives as a text or a mapping."""
    with pytest.raises(ConfigError, match="is not a list of layers"):
        ModelSpec.parse(tree)


def test_a_layer_that_cannot_take_what_reaches_it_is_named() -> None:
    """Catches: an output over images that would give one answer a row of pixels."""
    with pytest.raises(ConfigError) as caught:
        network(dense(5), OUTPUT, shape=(8, 8))
    (mistake,) = caught.value.mistakes
    assert mistake.key == "model.layers[1]"
    assert "(8, 5)" in mistake.problem and "'flatten'" in mistake.problem
