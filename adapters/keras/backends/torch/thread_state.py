"""Defaults for the global state that Keras looks up in its thread at every operation.

Scopes, masks and settings are attributes of a `threading.local` that `get_global_attribute` reads by name. A
missing attribute raises an AttributeError, which Keras formats and discards: 250 times a step of an FNN on
torch, 480 times a step of an RNN. An attribute of None means the same and costs nothing. Of the six
attributes that steps read, `fit` sets two in a user's script when it tries out its loss; the adapter's own
loop does not.
"""

from __future__ import annotations

from keras.src.backend.common import global_state

ATTRIBUTES = (
    "_keras_mask_dict",
    "autocast_scope",
    "distribution",
    "stateless_scope",
    "torch_device",
    "traceback_filtering",
)


def set_defaults() -> None:
    """Set the attributes that this thread lacks to None; existing values stay."""
    for name in ATTRIBUTES:
        global_state.set_global_attribute(name, global_state.get_global_attribute(name))
